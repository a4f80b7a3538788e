"""The report of imported results: what they show, what they cannot show, and how sure every number is."""

import statistics
from collections import Counter
from collections.abc import Sequence

from lorastudy.analysis.imported import ImportedAnalysis, ImportedArm
from lorastudy.report.document import (
    Block,
    Bullets,
    Cell,
    Estimate,
    Figure,
    Heading,
    Panel,
    Paragraph,
    Strong,
    Table,
    TableColumn,
    Text,
)
from lorastudy.report.findings.wording import difference_decimals, verdict, verdict_clauses
from lorastudy.report.numbers import (
    ABSENT,
    count,
    decimals_for,
    interval,
    listing,
    mean_sd,
    names,
    number,
    signed,
    size,
)
from lorastudy.report.sections.front import StudySummary
from lorastudy.report.sections.method import fairness_blocks
from lorastudy.report.sections.overview import setting_text
from lorastudy.stats.study import differing_settings
from lorastudy.store.views import ImportedResult

#: Settings that a reader looks for first; shown if they were recorded and differ between arms.
_SHOWN_KEYS = (
    "method",
    "base_model",
    "lora_rank",
    "lora_alpha",
    "target_modules",
    "learning_rate",
    "quantization",
)
_TEXT = {
    "Arm",
    "method",
    "base_model",
    "target_modules",
    "quantization",
    "May be the best",
    "Verdict",
    "Base model",
}
_SHORT_HASH = 12
#: Most arms in one figure; more would not fit on a screen.
MAX_DRAWN = 24


def imported_blocks(analysis: ImportedAnalysis) -> list[Block]:
    """The whole report of one suite of imported results."""
    return [
        Heading(level=1, text=f"Imported results: {analysis.suite_name}"),
        Paragraph((Strong("What was imported."), f" {_what(analysis)}")),
        Paragraph((Strong("Answer."), f" {_answer(analysis)}")),
        Heading(level=2, text="What can be told"),
        Bullets(_can(analysis)),
        *_cannot_blocks(analysis),
        *fairness_blocks(analysis.lint, num_arms=len(analysis.study.arms), level=2),
        *_comparison_blocks(analysis),
        *_best_blocks(analysis),
        *_models_blocks(analysis),
        Heading(level=2, text="Results"),
        *_figure(analysis),
        Paragraph((_how_to_read(analysis),)),
        _table(analysis),
        *([Bullets(tuple((note,) for note in analysis.study.notes))] if analysis.study.notes else []),
        *_environment_blocks(analysis.results),
        Heading(level=2, text="Sources"),
        _sources(analysis.results),
    ]


def imported_summary(analysis: ImportedAnalysis) -> StudySummary:
    """The report in a few of its own lines."""
    title = f"Imported results: {analysis.suite_name}"
    return StudySummary(title=title, answer=_answer(analysis), parts=(), limits=_cannot(analysis))


def _what(analysis: ImportedAnalysis) -> str:
    results = analysis.results
    tools = listing(dict.fromkeys(result.tool for result in results))
    times = sorted({result.imported_at[:10] for result in results if result.imported_at})
    when = f", imported on {listing(times)}" if times else ""
    return (
        f"{_counted(len(results), 'result')} of {_counted(len(analysis.study.arms), 'arm')} from {tools}{when}{_grid(analysis)}. They were not "
        f"measured here; this report takes their numbers as they are. Primary metric: {analysis.metric.name}, "
        f"{'lower' if analysis.metric.lower_is_better else 'higher'} is better{_items(analysis)}. {_seeds(results)}"
    )


def _grid(analysis: ImportedAnalysis) -> str:
    num_configurations, num_arms = len(analysis.arms), len(analysis.study.arms)
    if num_configurations == num_arms:
        return ""
    return f"; arms that differ in their learning rate only are {num_configurations} configurations, each at its best rate"


def _answer(analysis: ImportedAnalysis) -> str:
    """What follows for the choice of an arm: a verdict if seeds are paired, else never a single name."""
    if analysis.comparisons:
        text = verdict_clauses(analysis.comparisons, reference=_reference(analysis), margin="none")
        return f"{analysis.metric.title}, paired over seeds with {_reference(analysis)}{_rates(analysis)}: {text}."
    if analysis.against_best:
        return _answer_by_best(analysis)
    shares = analysis.shares
    if len(shares) < 2 and analysis.invalid:
        return f"No verdict: {_why_invalid(analysis)}."
    if len(shares) < 2:
        return "No verdict is possible: no two arms share six seeds, and the metric is not a share of a known number of items."
    within = " of their environment and base model" if analysis.num_groups > 1 else ""
    if len(analysis.may_be_best) == analysis.num_groups:
        return (
            f"One adapter scored higher than all others{within} by more than the noise of the items. Whether its "
            "configuration would with another seed, these results cannot say."
        )
    return (
        f"No single configuration comes out best. {len(analysis.may_be_best)} of {len(shares)} arms may be the best"
        f"{within} by the noise of the items alone (Hsu's comparisons with the best, all together at 95 %). The noise "
        "between seeds comes on top and is not known."
    )


def _answer_by_best(analysis: ImportedAnalysis) -> str:
    """For arms with paired seeds and no reference: which one is the best, or which may be."""
    found = analysis.against_best
    best = [arm for arm, one in found.items() if one.is_best]
    behind = [arm for arm, one in found.items() if one.is_behind]
    left = [arm for arm in found if arm not in behind]
    what = f"{analysis.metric.title}, paired over seeds{_rates(analysis)}"
    if best and analysis.untuned.isdisjoint(found):
        text = f"{names(best)} is better than every other arm"
    elif best:
        text = f"{names(best)} is ahead of every other arm, untuned, so it is not called better"
    else:
        text = f"not decided: {names(left)} may each be the best"
        text += f"; {names(behind)} {'is' if len(behind) == 1 else 'are'} behind" if behind else ""
    invalid = f" {_why_invalid(analysis)}." if analysis.invalid else ""
    return f"{what}: {text} (Hsu's comparisons with the best, all together at 95 %).{invalid}"


def _why_invalid(analysis: ImportedAnalysis) -> str:
    by_reason: dict[str, list[str]] = {}
    for arm, why in analysis.invalid.items():
        by_reason.setdefault(why, []).append(arm)
    text = [f"{names(arms)} cannot be compared ({why})" for why, arms in by_reason.items()]
    return listing(text)


def _rates(analysis: ImportedAnalysis) -> str:
    """A note that verdicts hold only at the rates used, if these were not tuned."""
    compared = {*analysis.against_best, *(one.arm for one in analysis.comparisons)}
    return "" if analysis.untuned.isdisjoint(compared) else ", at the learning rates that were used"


def _reference(analysis: ImportedAnalysis) -> str:
    return analysis.comparisons[0].reference


def _can(analysis: ImportedAnalysis) -> tuple[Text, ...]:
    shares = analysis.shares
    if len(shares) < 2:
        return ((f"The observed {analysis.metric.name} of each arm, as it was reported.",),)
    tied = sorted(arm.name for arm in analysis.may_be_best)
    apart = len(shares) - len(tied)
    half_width = 100 * statistics.median(_half_width(arm) for arm in shares)
    how_far = (
        "How far each result may be from the score of the same adapter on new items of the same kind: "
        f"{number(half_width, 1)} points to either side for the middle arm (95 %, Wilson)."
    )
    lower = (
        f"{apart} of {len(shares)} adapters are behind another one by more than the noise of the items, all comparisons "
        "taken together."
    )
    return (
        (how_far,),
        (lower,),
        (Strong("May be the best"), f" (in the order of their names): {names(tied)}."),
    )


def _cannot_blocks(analysis: ImportedAnalysis) -> list[Block]:
    items = _cannot(analysis)
    return [Heading(level=2, text="What cannot be told"), Bullets(items)] if items else []


def _cannot(analysis: ImportedAnalysis) -> tuple[Text, ...]:
    items = []
    if not analysis.comparisons and not analysis.against_best:
        items.append(
            "Whether another seed would give the same order: no arm has enough seeds to estimate the noise between seeds, "
            "so every verdict between configurations is open (cannot tell: too few seeds)."
        )
    undecided = [comparison.arm for comparison in analysis.comparisons if comparison.verdict == "cannot tell"]
    if undecided:
        reference = _reference(analysis)
        items.append(f"Which is better, {reference} or {names(undecided)}: neither was shown.")
    items += _limits_of_shares(analysis)
    untuned = next((finding for finding in analysis.lint if finding.code == "LS101"), None)
    if untuned:
        items.append(
            f"What {len(untuned.arms)} of {_counted(len(analysis.study.arms), 'arm')} can do at a better learning rate: it was "
            "not varied."
        )
    scores = [score for result in analysis.results for score in result.scores[1:]]
    others = sorted({score.metric for score in scores if score.num_items is None})
    if others:
        items.append(f"How sure {listing(others)} is: neither items nor their number were recorded.")
    return tuple((item,) for item in items)


def _limits_of_shares(analysis: ImportedAnalysis) -> list[str]:
    """What shares of items leave open although their intervals are known."""
    if len(analysis.shares) < 2:
        return []
    order = (
        f"The order of the arms: of {len(analysis.shares) - 1} neighbours in it, {analysis.num_distinct_neighbours} can be "
        "told apart, each pair by itself."
    )
    highest = (
        "How good the highest is: it was picked for being highest, so its score is partly luck and its next one will "
        "probably be lower."
    )
    items = (
        "How the arms differ item by item: the files hold no items, so shares are compared as if of independent items. "
        "Paired over the same items, some differences would be known better."
    )
    return [order, highest, items]


def _how_to_read(analysis: ImportedAnalysis) -> str:
    return (
        "In the order of the observed score, which is not a ranking. Where a result is a share of items: its 95 % interval "
        "(Wilson), and how far below the best of the others of its environment and base model it is at most (Hsu, all together "
        "at 95 %; 0: it is the best). A dash means not recorded."
        if analysis.shares
        else "In the order of the observed score, which is not a ranking. A dash means not recorded."
    )


def _figure(analysis: ImportedAnalysis) -> list[Figure]:
    """The shares with their intervals; of too many arms for a page, the highest ones."""
    shown = analysis.shares[:MAX_DRAWN]
    if len(analysis.shares) < 2:
        return []
    which = (
        "All arms"
        if len(shown) == len(analysis.shares)
        else f"The first {len(shown)} of {len(analysis.shares)} arms"
    )
    rows = tuple(
        Estimate(arm=arm.name, rank=None, mean=share.value, low=low, high=high, values=())
        for arm in shown
        if (share := arm.share) is not None
        for low, high in [share.interval]
    )
    return [
        Figure(
            name="imported_shares",
            kind="dots",
            title=f"{analysis.metric.title}, with 95 % intervals",
            caption=f"{which}, in the order of the observed score. Dot: observed share; bar: 95 % interval over items (Wilson), "
            "for the adapter as it was trained. The noise between seeds is not in it.",
            alt=f"Observed {analysis.metric.name} of each arm, with its interval",
            arms=tuple(arm.name for arm in shown),
            panels=(Panel(label=f"{analysis.metric.title} (share)", rows=rows),),
        )
    ]


def _table(analysis: ImportedAnalysis) -> Table:
    keys = [key for key in _SHOWN_KEYS if key in differing_settings(analysis.study.arms)]
    has_shares, has_several = bool(analysis.shares), any(len(arm.results) > 1 for arm in analysis.arms)
    has_grid = any(arm.num_rates > 1 for arm in analysis.arms)
    has_diverged = any(arm.num_diverged for arm in analysis.arms)
    titles = (
        "Arm",
        *keys,
        *(["Rates tried"] if has_grid else []),
        *(["Results"] if has_several else []),
        *(["Diverged"] if has_diverged else []),
        analysis.metric.title,
        *(["95 % interval", "Below the best by at most", "May be the best"] if has_shares else []),
        "Trainable parameters",
        "Peak memory",
    )
    decimals = decimals_for([arm.share.standard_error for arm in analysis.arms if arm.share] or [None])
    rows = tuple(
        (
            Cell(arm.name),
            *(_setting(arm, key) for key in keys),
            *([Cell(str(arm.num_rates), arm.num_rates)] if has_grid else []),
            *([Cell(str(len(arm.results)), len(arm.results))] if has_several else []),
            *([Cell(str(arm.num_diverged), arm.num_diverged)] if has_diverged else []),
            Cell(mean_sd(arm.scores, decimals), arm.scores.mean if arm.scores else None),
            *(_share_cells(arm, decimals) if has_shares else ()),
            _cost(arm, "num_trainable_parameters"),
            _cost(arm, "peak_memory_bytes"),
        )
        for arm in analysis.arms
    )
    return Table(columns=tuple(TableColumn(title, numeric=title not in _TEXT) for title in titles), rows=rows)


def _share_cells(arm: ImportedArm, decimals: int) -> tuple[Cell, ...]:
    if arm.share is None:
        return (Cell(ABSENT),) * 3
    own, against = Cell(interval(arm.share.interval, decimals)), arm.against_best
    if against is None:
        return (own, *(Cell(ABSENT),) * 2)
    return (
        own,
        Cell(number(against.upper, decimals), against.upper),
        Cell("yes" if arm.may_be_best else "no"),
    )


def _comparison_blocks(analysis: ImportedAnalysis) -> list[Block]:
    """The paired comparisons over seeds, by the same rules as for your own runs; empty without pairs."""
    if not analysis.comparisons:
        return []
    reference = analysis.comparisons[0].reference
    rows = []
    for comparison in analysis.comparisons:
        decimals = difference_decimals(comparison)
        mean = ABSENT if comparison.mean is None else signed(comparison.mean, decimals)
        rows.append(
            (
                Cell(comparison.arm),
                Cell(str(comparison.n), comparison.n),
                Cell(mean, comparison.mean),
                Cell(interval(comparison.interval, decimals)),
                Cell(verdict(comparison)),
            )
        )
    columns = ("Arm", "Shared seeds", "Mean difference", "95 % interval", "Verdict")
    rule = (
        f"Arm minus {reference}, the named reference, per seed, then averaged; verdicts by the same rules as for your own "
        "runs."
    )
    return [
        Heading(level=2, text=f"Paired comparisons with {reference}"),
        Paragraph((rule,)),
        Table(
            columns=tuple(TableColumn(title, numeric=title not in {"Arm", "Verdict"}) for title in columns),
            rows=tuple(rows),
        ),
    ]


def _best_blocks(analysis: ImportedAnalysis) -> list[Block]:
    """Each arm with paired seeds against the best of the others; empty with a named reference."""
    if not analysis.against_best:
        return []
    decimals = decimals_for([one.upper - one.lower for one in analysis.against_best.values()])
    rows = tuple(
        (
            Cell(name),
            Cell(f"[{number(one.lower, decimals)}, {number(one.upper, decimals)}]"),
            Cell("the best" if one.is_best else "behind" if one.is_behind else "may be the best"),
        )
        for name, one in analysis.against_best.items()
    )
    how = (
        "How much worse than the best of the others each arm is, with bounds that hold for all of them together at 95 % "
        "(Hsu), from differences between runs of one seed. The file names no reference; give one to `lorastudy report` "
        "as --reference."
    )
    columns = (
        TableColumn("Arm", numeric=False),
        TableColumn("Worse than the best by"),
        TableColumn("Verdict", numeric=False),
    )
    return [Heading(level=2, text="Against the best"), Paragraph((how,)), Table(columns=columns, rows=rows)]


def _models_blocks(analysis: ImportedAnalysis) -> list[Block]:
    """With several base models: each model's score by rank, every rank at its best rate."""
    cells: dict[str, dict[int, list[ImportedArm]]] = {}
    for arm in analysis.arms:
        settings = arm.results[0].settings
        model, rank = settings.get("base_model"), settings.get("lora_rank")
        if model is not None and rank is not None and arm.scores is not None:
            cells.setdefault(str(model), {}).setdefault(int(rank), []).append(arm)
    ranks = sorted({rank for by_rank in cells.values() for rank in by_rank})
    if len(cells) < 2 or len(ranks) < 2:
        return []
    decimals = decimals_for([arm.scores.sd for arm in analysis.arms if arm.scores] or [None])
    sign = analysis.metric.cost_sign

    def best(arms: Sequence[ImportedArm]) -> Cell:
        scores = [arm.scores.mean for arm in arms if arm.scores]
        if not scores:
            return Cell(ABSENT)
        value = min(scores, key=lambda score: sign * score)
        return Cell(number(value, decimals), value)

    rows = tuple(
        (Cell(model), *(best(by_rank.get(rank, ())) for rank in ranks))
        for model, by_rank in sorted(cells.items())
    )
    how = (
        f"Mean {analysis.metric.name} of each rank at its best learning rate, and of several arms of one rank the best "
        "observed. Scores of different base models are not compared."
    )
    columns = (TableColumn("Base model", numeric=False), *(TableColumn(f"r={rank}") for rank in ranks))
    return [
        Heading(level=2, text="By base model and rank"),
        Paragraph((how,)),
        Table(columns=columns, rows=rows),
    ]


def _environment_blocks(results: Sequence[ImportedResult]) -> list[Block]:
    sentence = Counter(result.sources.get("environment", "not recorded") for result in results)
    items: tuple[Text, ...] = tuple(
        (f"{text}: {_counted(n, 'result')}",) for text, n in sentence.most_common()
    )
    return [Heading(level=2, text="Environment"), Bullets(items)]


def _sources(results: Sequence[ImportedResult]) -> Table:
    """Each file once, with its hash, its tool and how many results it gave."""
    files = Counter(
        (result.file, result.file_sha256, result.tool, result.imported_at or "") for result in results
    )
    rows = tuple(
        (Cell(file), Cell(digest[:_SHORT_HASH]), Cell(tool), Cell(at[:19]), Cell(str(n), n))
        for (file, digest, tool, at), n in files.items()
    )
    titles = ("File", f"SHA-256, first {_SHORT_HASH} digits", "Tool", "Imported at (UTC)", "Results")
    return Table(columns=tuple(TableColumn(title, numeric=title == "Results") for title in titles), rows=rows)


def _items(analysis: ImportedAnalysis) -> str:
    numbers = sorted({arm.share.num_items for arm in analysis.arms if arm.share is not None})
    return f", over {listing(count(n) for n in numbers)} items each" if numbers else ""


def _seeds(results: Sequence[ImportedResult]) -> str:
    per_arm = Counter(result.arm for result in results)
    most = max(per_arm.values())
    unknown = sum(result.seed is None for result in results)
    if unknown:
        return f"The seed of {_counted(unknown, 'result')} was not recorded, so nothing is paired with them."
    return "One seed for each arm." if most == 1 else f"Up to {most} seeds for each arm."


def _half_width(arm: ImportedArm) -> float:
    assert arm.share is not None
    low, high = arm.share.interval
    return (high - low) / 2


def _setting(arm: ImportedArm, key: str) -> Cell:
    value = arm.results[0].settings.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(setting_text(value), float(value))
    return Cell(setting_text(value))


def _cost(arm: ImportedArm, key: str) -> Cell:
    values = [result.costs[key] for result in arm.results if key in result.costs]
    if not values:
        return Cell(ABSENT)
    middle = statistics.median(values)
    return Cell(size(middle) if key.endswith("_bytes") else count(middle), middle)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
