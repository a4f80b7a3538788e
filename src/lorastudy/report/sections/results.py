"""The results: a table of means and spreads, and a table of paired differences."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from lorastudy.analysis.overview import COMPARED_METRICS, Analysis
from lorastudy.protocol.records import TrivialPredictor
from lorastudy.report.document import Block, Cell, Details, Heading, Paragraph, Table, TableColumn
from lorastudy.report.findings.wording import (
    difference_decimals,
    margin_was_set,
    margin_words,
    rows_that_belong_together,
    verdict,
    why_these_items_alone,
)
from lorastudy.report.numbers import (
    ABSENT,
    count,
    decimals_for,
    decimals_of_size,
    duration_unit,
    how_measured,
    interval,
    mean_sd,
    number,
    p_value,
    signed,
    size_unit,
)
from lorastudy.stats.comparison import Comparison
from lorastudy.stats.rate_choice import rates_of
from lorastudy.stats.reference import missing_reference
from lorastudy.stats.study import STUDIED_KEYS, StudyArm, reporting_split
from lorastudy.stats.summary import (
    EXACT_MATCH,
    FORGETTING,
    FORGETTING_BEFORE,
    LOSS,
    LOSS_BEFORE,
    PERPLEXITY,
    TOKEN_ACCURACY,
    ArmSummary,
    Costs,
    Metric,
    Spread,
)
from lorastudy.stats.trivial import PREDICTOR_NAMES, constant_answer, trivial_spreads
from lorastudy.stats.verdicts import MAX_SIGN_FLIP_SEEDS, MIN_SEEDS_ONE_SIDED, smallest_sign_flip_p
from lorastudy.suite.question import MIN_SEEDS
from lorastudy.suite.targets import in_words

_ABSENT_CELL = Cell(ABSENT)
#: The metrics of the table, with what their columns' titles say of the unit.
_SHOWN = {LOSS: " (nats/token)", PERPLEXITY: "", TOKEN_ACCURACY: "", EXACT_MATCH: ""}


def _in_short(analysis: Analysis) -> str:
    """What a score is, and on which rows."""
    return (
        f"Scores, held-out loss too, are those on the {rows_that_report(analysis)}: means ± sample standard deviations over "
        "seeds. A dash means not measured, or unknown."
    )


def rows_that_report(analysis: Analysis) -> str:
    """`test rows`, or `validation rows` in a study without any."""
    return "test rows" if reporting_split(analysis.study) == "test" else "validation rows"


def _shown(analysis: Analysis) -> Mapping[Metric, str]:
    """The metrics of the table. Those that the suite adds come after those that every run has."""
    units = {
        metric: f" ({metric.unit})" if metric.is_in_units and metric.unit != metric.title.lower() else ""
        for metric in analysis.criterion.added_metrics
    }
    return {**_SHOWN, **units}


def results_blocks(analysis: Analysis, *, level: int) -> list[Block]:
    """Every arm with its metrics and costs; an arm without a completed seed has a row of dashes."""
    table = arms_table(analysis)
    guesses = _trivial_rows(analysis, num_columns=len(table.columns))
    how = (
        f"{how_measured(analysis.summaries)} Costs are medians. If packs differ, the smallest and largest value follow in "
        "brackets; after a step time comes ± half its interquartile distance."
        f"{_before_training(analysis)}{_what_guessing_is(analysis)}"
    )
    return [
        Heading(level=level, text="Results"),
        Paragraph((f"{_in_short(analysis)}{_which_adapter(analysis)}",)),
        replace(table, rows=(*table.rows, *guesses)),
        Details(summary="How this was measured", blocks=(Paragraph((how,)),)),
    ]


def arms_table(analysis: Analysis) -> Table:
    """A row for each arm, with its metrics and costs."""
    parts = (_identity(analysis), *_metric_columns(analysis), *_cost_columns(analysis))
    columns = tuple(column for column, _ in parts)
    rows = tuple(tuple(cell(summary) for _, cell in parts) for summary in analysis.summaries)
    return Table(columns=(columns[0], TableColumn("Seeds"), *columns[1:]), rows=_with_seeds(analysis, rows))


def _which_adapter(analysis: Analysis) -> str:
    """Which adapters were scored, if the best ones were selected; empty if it is always the last one."""
    selected = {
        run.selected_step is not None for summary in analysis.summaries for run in summary.arm.completed
    }
    if True not in selected:
        return ""
    whose = "" if selected == {True} else ", where the suite selects it"
    return f" They are those of the adapter with the lowest validation loss of each run{whose}, not of its last step."


def comparison_blocks(analysis: Analysis, *, level: int) -> list[Block]:
    """Paired differences from the reference, with verdicts for the primary metric; empty for a single arm."""
    reference = analysis.reference
    comparisons = analysis.primary_comparisons
    if reference is None or not comparisons:
        return []
    rule = (
        f"Arm minus reference ({reference.name}, {_how_named(analysis, reference)}), per seed and held-out item, then "
        f"averaged; {_about(analysis)} Verdicts are about {analysis.primary.title.lower()}, of which "
        f"{'less' if analysis.primary.lower_is_better else 'more'} is better: {_rule(analysis)}"
    )
    blocks: list[Block] = [
        Heading(level=level, text=f"Paired comparisons with {reference.name}"),
        _comparison_table(comparisons),
        Details(summary="How verdicts are reached", blocks=(Paragraph((rule,)),)),
    ]
    others = [
        metric
        for metric in analysis.criterion.compared_metrics
        if metric != analysis.primary and _measured(analysis, metric)
    ]
    if others:
        note = "Other metrics, same pairs, without verdicts: paired difference with its 95 % interval."
        blocks += [Paragraph((note,)), _secondary_table(analysis, others)]
    return blocks


def _about(analysis: Analysis) -> str:
    """What the intervals cover."""
    made = [comparison for comparison in analysis.primary_comparisons if comparison.interval]
    if all(comparison.covers_new_items for comparison in made):
        return f"intervals are about new seeds and new items{rows_that_belong_together(made)}."
    return f"intervals are about new seeds on these items, since {why_these_items_alone(analysis)}."


def _how_named(analysis: Analysis, reference: StudyArm) -> str:
    """How the reference was chosen: by the suite or the design, at which rate, or in place of one that failed."""
    study = analysis.study
    if analysis.criterion.reference is not None and reference.is_named(analysis.criterion.reference):
        return "named by the suite"
    designed, num_rates = missing_reference(study), len(rates_of(study, reference))
    named = (
        "named by the design and not by its result"
        if designed is None
        else f"in place of {designed.name}, the reference by design, which has no completed run"
    )
    if num_rates > 1 and reporting_split(study) == "test":
        return f"{named}; its learning rate is the best of {num_rates} on rows that do not report"
    if num_rates > 1 and study.experiment_type in STUDIED_KEYS:
        return f"{named}, but for its learning rate, the best of {num_rates} by its result"
    return named


def _rule(analysis: Analysis) -> str:
    """What a verdict requires."""
    comparisons = analysis.primary_comparisons
    family = sum(comparison.t_p is not None for comparison in comparisons)
    holm = f", Holm-corrected over these {family} comparisons," if family > 1 else ""
    rule = (
        f"one of the two is better when the paired t test{holm} and the exact sign-flip test are both below .05, which "
        f"takes at least {MIN_SEEDS} seeds.{_margin_rule(analysis)}{_open_rule(comparisons)}{_untuned_rule(comparisons)}"
    )
    if any(comparison.n > MAX_SIGN_FLIP_SEEDS for comparison in comparisons):
        return f"{rule} Beyond {MAX_SIGN_FLIP_SEEDS} seeds the t test alone decides."
    return rule


def _margin_rule(analysis: Analysis) -> str:
    """What "as good" requires, or why no arm can be."""
    if analysis.criterion.margin_lost is not None:
        return (
            f" The suite's margin is a share of the gain, and {analysis.criterion.margin_lost}; so no arm can be called as good "
            "as the reference."
        )
    if analysis.criterion.margin is None:
        return " The suite names no margin, so no arm can be called as good as the reference."
    tested = (
        "the difference"
        if analysis.criterion.margin_share is None
        else "the difference less that share of the gain, whose noise counts too,"
    )
    return (
        f" An arm is as good within the margin of {margin_words(analysis)}, {margin_was_set(analysis)}, when the 95 % "
        f"interval of {tested} excludes a loss that large and the one-sided sign-flip test is below .05, which takes "
        f"at least {MIN_SEEDS_ONE_SIDED} seeds; ranks are tested from the largest down until the first that fails."
    )


def _untuned_rule(comparisons: Sequence[Comparison]) -> str:
    """What the verdict "untuned" means; empty if no arm has it."""
    if not any(comparison.verdict == "untuned" for comparison in comparisons):
        return ""
    return (
        " Untuned: this holds only at the learning rates that were tried. Since no arm had its rate tuned, an arm that the tests "
        "show to be better is called ahead."
    )


def _open_rule(comparisons: Sequence[Comparison]) -> str:
    """What an open verdict does not mean; empty if none is open."""
    if not any(comparison.verdict == "cannot tell" for comparison in comparisons):
        return ""
    return " Cannot tell: neither is shown, which does not make the two equal."


def _before_training(analysis: Analysis) -> str:
    """The base model's loss without an adapter, if that is one number for all arms."""
    spreads = [spread for summary in analysis.summaries if (spread := summary.score(LOSS_BEFORE))]
    values = {number(value, 3) for spread in spreads for value in spread.values}
    if len(values) != 1:
        return ""
    return f" The base model without an adapter has a held-out loss of {values.pop()} nats per token."


#: Shown characters of the constant answer.
_ANSWER_SHOWN = 60
_PREDICTORS: tuple[TrivialPredictor, ...] = ("frequencies", "unigram", "constant")


def _what_guessing_is(analysis: Analysis) -> str:
    """What the rows below the arms are; empty if no run recorded trivial scores."""
    if not _trivial_scores(analysis):
        return ""
    answer = constant_answer(analysis.study)
    text = (
        "" if answer is None else f" (“{answer[:_ANSWER_SHOWN]}{'…' if len(answer) > _ANSWER_SHOWN else ''}”)"
    )
    return (
        " The rows marked “no model” are not arms but trivial predictors, which know only the training answers: one gives answers "
        "with their frequencies in training, one gives tokens with theirs, and one always gives the most frequent answer"
        f"{text}."
    )


def _trivial_rows(analysis: Analysis, *, num_columns: int) -> list[tuple[Cell, ...]]:
    """The scores of guessing, in the columns of the arms' metrics; guessing has no seeds and no costs."""
    scores = _trivial_scores(analysis)
    rows = []
    for predictor in _PREDICTORS:
        if any(predictor in of_metric for of_metric in scores.values()):
            cells = [
                _trivial_cell(analysis, metric, spread=scores.get(metric, {}).get(predictor))
                for metric in _shown(analysis)
            ]
            rest = num_columns - 2 - len(cells)
            name = f"{PREDICTOR_NAMES[predictor]} (no model)"
            rows.append((Cell(name), _ABSENT_CELL, *cells, *[_ABSENT_CELL] * rest))
    return rows


def _trivial_scores(analysis: Analysis) -> Mapping[Metric, Mapping[TrivialPredictor, Spread]]:
    """By metric, without metrics that no predictor has. Perplexity is the exponential of the loss, as for arms."""
    found = {metric: trivial_spreads(analysis.study, metric=metric) for metric in COMPARED_METRICS}
    perplexities = {
        predictor: Spread.of(map(math.exp, spread.values)) for predictor, spread in found[LOSS].items()
    }
    found[PERPLEXITY] = {name: spread for name, spread in perplexities.items() if spread is not None}
    return {metric: by_predictor for metric, by_predictor in found.items() if by_predictor}


def _trivial_cell(analysis: Analysis, metric: Metric, *, spread: Spread | None) -> Cell:
    """With the decimals of the arms. Seeds may train on different rows, so there may be a spread."""
    if spread is None:
        return _ABSENT_CELL
    decimals = metric_decimals(analysis, metric)
    text = mean_sd(spread, decimals) if spread.sd else number(spread.mean, decimals)
    return Cell(text, spread.mean)


CellOf = Callable[[ArmSummary], Cell]
Part = tuple[TableColumn, CellOf]


def _identity(analysis: Analysis) -> Part:
    reference = analysis.reference.name if analysis.reference else None

    def cell(summary: ArmSummary) -> Cell:
        name = summary.arm.name
        marks = [
            *(["reference"] if name == reference else []),
            *(["untuned"] if name in analysis.untuned else []),
            *(["stopped by racing"] if summary.arm.was_pruned else []),
        ]
        return Cell(f"{name} ({', '.join(marks)})" if marks else name)

    return TableColumn("Arm", numeric=False), cell


def _metric_columns(analysis: Analysis) -> list[Part]:
    columns: list[Part] = [
        (TableColumn(f"{metric.title}{unit}"), _mean_sd_cell(analysis, metric))
        for metric, unit in _shown(analysis).items()
    ]
    return [*columns, (TableColumn("Base-domain loss, before → after"), _forgetting_cell(analysis))]


def _cost_columns(analysis: Analysis) -> list[Part]:
    def plain(read: Callable[[ArmSummary], Spread | None]) -> CellOf:
        return lambda summary: _count_cell(read(summary))

    def scaled(read: Callable[[ArmSummary], Spread | None], scale: float) -> CellOf:
        return lambda summary: _scaled_cell(read(summary), scale)

    every = [summary.costs for summary in analysis.summaries]
    adapter_unit, adapter_scale = size_unit(_medians(cost.adapter_bytes for cost in every))
    memory_unit, memory_scale = size_unit(_medians(cost.peak_memory_bytes for cost in every))
    step_unit, step_scale = duration_unit(_medians(cost.step_seconds for cost in every))
    modules = [profiled_modules(summary) for summary in analysis.summaries]
    saved = "Adapter or model" if any(summary.arm.is_full for summary in analysis.summaries) else "Adapter"
    return [
        *([(TableColumn("Adapted layers", numeric=False), _modules_cell)] if any(modules) else []),
        (TableColumn("Trainable parameters"), plain(lambda s: s.costs.trainable_parameters)),
        (TableColumn(f"{saved} ({adapter_unit})"), scaled(lambda s: s.costs.adapter_bytes, adapter_scale)),
        (
            TableColumn(f"Peak memory ({memory_unit})"),
            scaled(lambda s: s.costs.peak_memory_bytes, memory_scale),
        ),
        (TableColumn(f"Step ({step_unit})"), lambda s: _step_cell(s.costs, step_scale)),
        (TableColumn("Tokens/s"), plain(lambda s: s.costs.tokens_per_second)),
    ]


def profiled_modules(summary: ArmSummary) -> str | None:
    """The number of layers that the arm adapts, by role, in words; None if they were not counted."""
    if summary.arm.is_full:
        return "all weights"
    counts = (run.profile.modules_by_role for run in summary.arm.completed if run.profile is not None)
    return next((in_words(by_role) for by_role in counts if by_role), None)


def _modules_cell(summary: ArmSummary) -> Cell:
    words = profiled_modules(summary)
    return _ABSENT_CELL if words is None else Cell(words)


def _with_seeds(analysis: Analysis, rows: tuple[tuple[Cell, ...], ...]) -> tuple[tuple[Cell, ...], ...]:
    """The rows with the completed seeds after the arm's name, as `5 of 6` if some did not complete."""
    full = []
    for summary, row in zip(analysis.summaries, rows, strict=True):
        runs = analysis.study.reporting_runs(summary.arm)
        num_completed, num_runs = sum(run.status == "completed" for run in runs), len(runs)
        seeds = Cell(
            str(num_completed) if num_completed == num_runs else f"{num_completed} of {num_runs}",
            num_completed,
        )
        full.append((row[0], seeds, *row[1:]))
    return tuple(full)


def _mean_sd_cell(analysis: Analysis, metric: Metric) -> CellOf:
    decimals = metric_decimals(analysis, metric)

    def cell(summary: ArmSummary) -> Cell:
        spread = summary.score(metric)
        return Cell(mean_sd(spread, decimals), spread.mean) if spread else _ABSENT_CELL

    return cell


def metric_decimals(analysis: Analysis, metric: Metric) -> int:
    """The decimals of the metric's means, the same for all arms."""
    spreads = [summary.score(metric) for summary in analysis.summaries]
    return decimals_for(spread.sd for spread in spreads if spread)


def _forgetting_cell(analysis: Analysis) -> CellOf:
    spreads = [summary.score(FORGETTING) for summary in analysis.summaries]
    decimals = decimals_for(spread.sd for spread in spreads if spread)

    def cell(summary: ArmSummary) -> Cell:
        before, after = summary.score(FORGETTING_BEFORE), summary.score(FORGETTING)
        if before is None and after is None:
            return _ABSENT_CELL
        start = number(before.mean, max(decimals, decimals_of_size(before.mean))) if before else ABSENT
        return Cell(f"{start} → {mean_sd(after, decimals)}", after.mean if after else None)

    return cell


def _medians(spreads: Iterable[Spread | None]) -> list[float]:
    return [spread.median for spread in spreads if spread]


def _count_cell(spread: Spread | None) -> Cell:
    return Cell(count(spread.median), spread.median) if spread else _ABSENT_CELL


def _scaled_cell(spread: Spread | None, scale: float) -> Cell:
    if spread is None:
        return _ABSENT_CELL
    decimals = decimals_of_size(spread.median / scale)
    shown = [number(value / scale, decimals) for value in (spread.median, spread.minimum, spread.maximum)]
    between = "" if len(set(shown)) == 1 else f" ({shown[1]} to {shown[2]})"
    return Cell(f"{shown[0]}{between}", spread.median)


def _step_cell(costs: Costs, scale: float) -> Cell:
    cell = _scaled_cell(costs.step_seconds, scale)
    if costs.step_seconds is None or costs.step_noise is None:
        return cell
    decimals = decimals_of_size(costs.step_seconds.median / scale)
    half = number(costs.step_noise.half_quartile_distance / scale, decimals)
    return Cell(f"{number(costs.step_seconds.median / scale, decimals)} ± {half}", cell.value)


def _measured(analysis: Analysis, metric: Metric) -> bool:
    return any(comparison.n for comparison in analysis.comparisons.get(metric.key, ()))


def _comparison_table(comparisons: tuple[Comparison, ...]) -> Table:
    titles = (
        f"Difference ({unit})" if (unit := comparisons[0].metric.unit) else "Difference",
        "95 % interval",
        "p (t test, Holm)",
        "p (sign flip)",
        "least possible p (sign flip)",
    )
    return Table(
        columns=(
            TableColumn("Arm", numeric=False),
            TableColumn("Pairs"),
            *(TableColumn(title) for title in titles),
            TableColumn("Verdict", numeric=False),
        ),
        rows=tuple(_comparison_row(comparison) for comparison in comparisons),
    )


def _comparison_row(comparison: Comparison) -> tuple[Cell, ...]:
    decimals, n = difference_decimals(comparison), comparison.n
    mean = comparison.mean
    least = smallest_sign_flip_p(n) if n else None
    return (
        Cell(comparison.arm),
        Cell(str(n), n),
        _ABSENT_CELL if mean is None else Cell(signed(mean, decimals), mean),
        Cell(
            interval(comparison.interval, decimals), comparison.interval[0] if comparison.interval else None
        ),
        Cell(p_value(comparison.holm_p), comparison.holm_p),
        Cell(p_value(comparison.sign_flip_p), comparison.sign_flip_p),
        Cell(p_value(least), least),
        Cell(verdict(comparison)),
    )


def _secondary_table(analysis: Analysis, metrics: list[Metric]) -> Table:
    names = [comparison.arm for comparison in analysis.primary_comparisons]
    columns = (
        TableColumn("Arm", numeric=False),
        *(TableColumn(f"{metric.title}, difference") for metric in metrics),
    )
    return Table(
        columns=columns,
        rows=tuple(
            (Cell(name), *(_difference_cell(analysis.comparison(name, metric)) for metric in metrics))
            for name in names
        ),
    )


def _difference_cell(comparison: Comparison | None) -> Cell:
    if comparison is None or comparison.mean is None:
        return _ABSENT_CELL
    decimals = difference_decimals(comparison)
    bounds = f" {interval(comparison.interval, decimals)}" if comparison.interval else ""
    return Cell(f"{signed(comparison.mean, decimals)}{bounds}", comparison.mean)
