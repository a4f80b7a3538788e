"""Which arms are worth their cost, how sure that is, and which may be the best."""

from collections.abc import Sequence

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Block, Cell, Heading, Paragraph, Strong, Table, TableColumn
from lorastudy.report.figures.figure import Figure
from lorastudy.report.numbers import (
    ABSENT,
    EQUAL_TIMES,
    decimals_of_size,
    decimals_that_differ,
    duration_unit,
    names,
    number,
    percent,
    size_unit,
)
from lorastudy.stats.best import ConfidenceSet
from lorastudy.stats.frontier import Standing
from lorastudy.stats.rate_choice import tried_rates
from lorastudy.suite.question import MIN_SEEDS


def frontier_blocks(analysis: Analysis, *, figures: tuple[Figure, ...], level: int) -> list[Block]:
    """The standings with their probabilities, the plot, and the arms that may be the best; nothing for fewer than two arms."""
    if len(analysis.standings) < 2:
        return list(figures)
    return [
        Heading(level=level, text="Efficiency frontier"),
        Paragraph((f"{_explained(analysis.standings)}{_untuned(analysis)}",)),
        _table(analysis),
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


def _table(analysis: Analysis) -> Table:
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
