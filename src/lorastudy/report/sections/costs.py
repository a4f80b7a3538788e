"""What arms and packs cost: which arms are worth it and may be the best, and what each pack took.

The frontier says which arms are worth their cost, and how sure that is. A pack is a set of experiments that one process trained
on one base model. It has costs as a whole, and predictions that are scored here.
"""

import statistics
from collections.abc import Sequence

from lorastudy.analysis.overview import Analysis
from lorastudy.protocol.records import PackProfile
from lorastudy.report.document import (
    Block,
    Bullets,
    Cell,
    Heading,
    Paragraph,
    Strong,
    Table,
    TableColumn,
)
from lorastudy.report.numbers import (
    ABSENT,
    EQUAL_TIMES,
    MEMORY_KINDS,
    count,
    decimals_of_size,
    decimals_that_differ,
    duration_unit,
    names,
    number,
    percent,
    signed,
    size_unit,
)
from lorastudy.report.predictions import Scored, scored_predictions
from lorastudy.stats.best import ConfidenceSet
from lorastudy.stats.frontier import Standing
from lorastudy.stats.rate_choice import tried_rates
from lorastudy.stats.study import Study, give_the_same_bits
from lorastudy.suite.question import MIN_SEEDS

#: The arms of this engine take turns; in any other engine one step is a step of all arms.
ONE_BY_ONE = "reference"


def frontier_blocks(analysis: Analysis, *, figures: tuple[Block, ...], level: int) -> list[Block]:
    """The standings with their probabilities, the plot, and the arms that may be the best; nothing for fewer than two arms."""
    if len(analysis.standings) < 2:
        return list(figures)
    return [
        Heading(level=level, text="Efficiency frontier"),
        Paragraph((f"{_explained(analysis.standings)}{_two_engines(analysis)}{_untuned(analysis)}",)),
        _frontier_table(analysis),
        *figures,
        Heading(level=level, text="Which arms may be the best"),
        _may_be_best(analysis),
    ]


def _explained(standings: tuple[Standing, ...]) -> str:
    """What the frontier is, which counts it uses, and what its probability means."""
    first = standings[0]
    counts = [
        "score",
        *(["peak memory"] if _all(standings, "memory_bytes") else []),
        *(["step time"] if _all(standings, "step_seconds") else []),
        *(["forgetting"] if _all(standings, "forgetting") else []),
    ]
    timed = "step time" in counts
    chance = (
        "With one seed there is no probability."
        if first.probability is None
        else "The probability is the share of resamples of the seeds in which the arm is on the frontier"
        + ("; times are drawn anew with the error of their median." if timed else ".")
    )
    floor = f" ({EQUAL_TIMES})" if timed else ""
    return (
        f"An arm is on the frontier when no other arm is at least as good on every count and better on one{floor}. Counted: "
        f"{', '.join(counts)}. {chance}"
    )


def _two_engines(analysis: Analysis) -> str:
    """Why memory and time are not counted, if two engines trained the arms."""
    if analysis.costs_are_comparable:
        return ""
    return (
        " Peak memory and step time are left out: different engines trained the arms, so a difference in them is also one between "
        "the engines."
    )


def _untuned(analysis: Analysis) -> str:
    """That the frontier holds only at the rates that were tried; empty if every arm was tuned."""
    arms = [standing.arm for standing in analysis.standings if standing.arm in analysis.untuned]
    if not arms:
        return ""
    whose = "of all arms" if len(arms) == len(analysis.standings) else f"of {names(arms)}"
    return (
        f" The learning rate {whose} was not tuned: this is the frontier {tried_rates(analysis.study)}, and at its own best "
        "rate an arm may stand elsewhere."
    )


def _all(standings: tuple[Standing, ...], name: str) -> bool:
    return all(getattr(standing, name) is not None for standing in standings)


def _frontier_table(analysis: Analysis) -> Table:
    standings = analysis.standings
    memory_unit, memory_scale = size_unit(s.memory_bytes for s in standings if s.memory_bytes)
    step_unit, step_scale = duration_unit(s.step_seconds for s in standings if s.step_seconds)
    sign = analysis.primary.cost_sign
    titles = (
        "Arm", f"{analysis.primary.title}, mean", f"Peak memory, mean ({memory_unit})", f"Step, median ({step_unit})",
        "Base-domain loss after, mean", "On the frontier", "Probability",
    )  # fmt: skip
    measured = (
        _cells([sign * s.quality_cost for s in standings], least=4),
        _cells([s.memory_bytes for s in standings], scale=memory_scale),
        _cells([s.step_seconds for s in standings], scale=step_scale, differ=False),
        _cells([s.forgetting for s in standings], least=3),
    )
    rows = tuple(
        (
            Cell(f"{standing.arm} (untuned)" if standing.arm in analysis.untuned else standing.arm),
            *cells,
            Cell("yes" if standing.on_frontier else "no"),
            Cell(ABSENT)
            if standing.probability is None
            else Cell(percent(standing.probability, decimals=0), standing.probability),
        )
        for standing, *cells in zip(standings, *measured, strict=True)
    )
    columns = tuple(TableColumn(title, numeric=title not in {"Arm", "On the frontier"}) for title in titles)
    return Table(columns=columns, rows=rows)


def _cells(
    values: Sequence[float | None], *, scale: float = 1, least: int | None = None, differ: bool = True
) -> list[Cell]:
    """A column with enough decimals to show which values differ, up to three beyond `least`.

    Without `least`, start from three significant digits of the smallest value.
    """
    known = [value / scale for value in values if value is not None]
    if least is None:
        least = decimals_of_size(min(known, default=1.0))
    decimals = decimals_that_differ(known, least=least, most=least + 3) if differ else least
    return [Cell(number(None if value is None else value / scale, decimals), value) for value in values]


def _may_be_best(analysis: Analysis) -> Block:
    """The set with 95 % confidence, or why there is none."""
    found = analysis.may_be_best
    if found is None:
        text = (
            f"No set: it takes at least {MIN_SEEDS} seeds that all arms share, and differences that vary "
            "from seed to seed."
        )
        return Paragraph((text,))
    left_out = f" Left out: {names(found.left_out)}." if found.left_out else " None could be left out."
    about = (
        f" (Model confidence set over {found.num_seeds} seeds on these items; verdicts do not rest on it but overrule "
        "it: an arm that is shown to be behind one of the set is left out, one that cannot be distinguished from one of the set stays.)"
    )
    best = "the best arm is"
    if not analysis.untuned.isdisjoint({*found.arms, *found.left_out}):
        best = f"{tried_rates(analysis.study)} the arm of the best score is"
    sentence = f".{left_out}{_left_out_within_the_margin(analysis, found)}{about}"
    return Paragraph((f"With 95 % confidence {best} among ", Strong(names(found.arms, every=True)), sentence))


def _left_out_within_the_margin(analysis: Analysis, found: ConfidenceSet) -> str:
    """That an arm outside the set is as good as the reference within the margin."""
    within = {comparison.arm for comparison in analysis.primary_comparisons if comparison.is_as_good}
    arms = [arm for arm in found.left_out if arm in within]
    if not arms:
        return ""
    has, lacks = ("has", "it lacks") if len(arms) == 1 else ("have", "they lack")
    return f" Of these {names(arms)} {has} not the best score, but {lacks} less than the margin."


def pack_blocks(study: Study, *, level: int) -> list[Block]:
    """One row for each pack; empty if no pack was measured."""
    packs = {
        (result.pack_id, result.attempt): result.pack_profile
        for result in study.completed
        if result.pack_profile is not None
    }
    if not packs:
        return []
    profiles = list(packs.values())
    kinds = sorted({MEMORY_KINDS[profile.memory_kind] for profile in profiles})
    text = (
        f"{_how_trained({profile.engine for profile in profiles})} Tokens are real tokens, summed over the arms; "
        f"memory is {' or '.join(kinds)}."
    )
    return [Heading(level=level, text="Packs"), Paragraph((text, _checkpoints(study))), _pack_table(profiles)]


def _checkpoints(study: Study) -> str:
    """The time that checkpoints took; empty if there were none."""
    saved = {
        (result.pack_id, result.attempt): (profile, result.pack_profile.train_seconds)
        for result in study.completed
        if (profile := result.checkpoint_profile) is not None
        and profile.num_checkpoints
        and result.pack_profile is not None
    }
    if not saved:
        return ""
    seconds = sum(profile.seconds for profile, _ in saved.values())
    share = seconds / (seconds + sum(train_seconds for _, train_seconds in saved.values()))
    num_checkpoints = sum(profile.num_checkpoints for profile, _ in saved.values())
    return (
        f" Saving took {number(seconds, 1)} s more ({number(100 * share, 1)} % of both): "
        f"{num_checkpoints} checkpoint{'' if num_checkpoints == 1 else 's'}."
    )


def incident_blocks(study: Study, *, level: int) -> list[Block]:
    """What happened to packs without costing a result; empty if nothing did."""
    befallen = dict.fromkeys(
        incident.message
        for result in study.completed
        for incident in result.incidents
        if incident.kind != "fell_back"  # not an incident: the first page names the engine and the reason
    )
    if not befallen:
        return []
    text = (
        "None of this changed a number: training that resumes from a checkpoint reaches the same bits, and a part of a pack "
        "the same result up to the order of sums."
        if give_the_same_bits(study.completed)
        else "None of this changed more than the order of sums: training resumes from a checkpoint of the same state, but these "
        "runs were not deterministic (deterministic: false on a GPU)."
    )
    items = tuple((f"{message[:1].upper()}{message[1:]}.",) for message in befallen)
    return [Heading(level=level, text="Incidents"), Paragraph((text,)), Bullets(items)]


def _how_trained(engines: set[str]) -> str:
    """What one step of a pack is: one of all its arms, or of a single arm."""
    together = "The arms of a pack trained together on one base model; a step is one step of all of them."
    in_turn = "one after another on one base model; a step is one arm's."
    if engines == {ONE_BY_ONE}:
        return f"The arms of a pack trained {in_turn}"
    return (
        f"{together} With the engine {ONE_BY_ONE} they trained {in_turn}"
        if ONE_BY_ONE in engines
        else together
    )


def _pack_table(profiles: list[PackProfile]) -> Table:
    memory_unit, memory_scale = size_unit(p.peak_memory_bytes for p in profiles if p.peak_memory_bytes)
    step_unit, step_scale = duration_unit(p.median_step_seconds for p in profiles if p.median_step_seconds)
    titles = (
        "Pack", "Experiments", "Engine", f"Peak memory ({memory_unit})", f"Step, median ({step_unit})",
        "Tokens/s", "Load and profile (s)", "Training (s)", "Evaluation (s)",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(str(position), position),
            Cell(str(profile.num_arms), profile.num_arms),
            Cell(profile.engine),
            _scaled(profile.peak_memory_bytes, memory_scale),
            _scaled(profile.median_step_seconds, step_scale),
            Cell(count(profile.tokens_per_second), profile.tokens_per_second),
            *(_scaled(s, 1.0) for s in (profile.load_seconds, profile.train_seconds, profile.eval_seconds)),
        )
        for position, profile in enumerate(profiles, start=1)
    )
    columns = tuple(TableColumn(title, numeric=title != "Engine") for title in titles)
    return Table(columns=columns, rows=rows)


def _scaled(value: float | None, scale: float) -> Cell:
    return Cell(number(None if value is None else value / scale, 1), value)


def prediction_blocks(study: Study, *, level: int) -> list[Block]:
    """A row for each arm alone, and for each pack on a GPU; empty without predictions."""
    scored = scored_predictions(study)
    if not scored:
        return []
    kinds = {r.prediction.memory_kind for r in study.completed if r.prediction is not None}
    errors = [abs(one.error) for one in scored]
    text = (
        f"Peak memory was predicted before the run from the model's shape and from one step of the engine, counted "
        f"on tensors without content; measured is {' or '.join(MEMORY_KINDS[kind] for kind in sorted(kinds))}. "
        f"Positive errors mean that too much was predicted. Of {len(scored)} predictions the median absolute error is "
        f"{percent(statistics.median(errors))}, the largest {percent(max(errors))}."
    )
    if "cpu_tensors" in kinds:
        text += " On a CPU the tensors of a whole pack are not measured, only those of each arm alone."
    return [
        Heading(level=level, text="Predicted against measured memory"),
        Paragraph((text,)),
        _score_table(scored),
    ]


def _score_table(scored: Sequence[Scored]) -> Table:
    unit, scale = size_unit(one.measured for one in scored)
    columns = (
        TableColumn("What trained", numeric=False), TableColumn(f"Predicted ({unit})"), TableColumn(f"Measured ({unit})"),
        TableColumn("Error (%)"),
    )  # fmt: skip
    rows = tuple(
        (
            Cell(one.name),
            Cell(number(one.predicted / scale, 2), one.predicted),
            Cell(number(one.measured / scale, 2), one.measured),
            Cell(signed(100 * one.error, 1), one.error),
        )
        for one in scored
    )
    return Table(columns=columns, rows=rows)
