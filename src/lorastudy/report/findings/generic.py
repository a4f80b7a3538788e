"""Findings that hold for any experiment type: the order of the arms, their differences, what they cost."""

from collections.abc import Sequence

from lorastudy.analysis.overview import Analysis
from lorastudy.report.costs import NOT_TOLD_APART
from lorastudy.report.document import Strong, Text
from lorastudy.report.findings.wording import (
    KeyFinding,
    cost_bounds,
    difference,
    score,
    seen_but_not_shown,
    verdicts_by_word,
)
from lorastudy.report.numbers import MOST_LISTED, NUM_LISTED_OF_MANY, duration, percent_more, size
from lorastudy.stats.comparison import Comparison
from lorastudy.stats.summary import ArmSummary, Spread

QUESTION = "How do the arms differ in accuracy, memory and time?"


def generic_findings(analysis: Analysis) -> tuple[KeyFinding, ...]:
    """How the arms compare, and what they cost."""
    return (
        KeyFinding(question="How do the arms compare in accuracy?", answer=_accuracy(analysis)),
        KeyFinding(question="What do they cost?", answer=(_costs(analysis),)),
    )


def generic_headline(analysis: Analysis) -> str:
    """The verdicts against the reference, or that there are none."""
    comparisons = analysis.primary_comparisons
    if analysis.reference is None or not comparisons:
        return "Fewer than two arms completed, so there is nothing to compare."
    return f"{verdicts_by_word(analysis)}{seen_but_not_shown(comparisons)}"


def best_first(analysis: Analysis) -> list[ArmSummary]:
    """Arms with the primary metric, ordered by its mean."""
    metric = analysis.primary
    scored = [(spread.mean, summary) for summary in analysis.completed if (spread := summary.score(metric))]
    ordered = sorted(scored, key=lambda pair: pair[0], reverse=not metric.lower_is_better)
    return [summary for _, summary in ordered]


def in_order(analysis: Analysis, summaries: Sequence[ArmSummary]) -> str:
    """`In order of mean held-out loss, lowest first: mlp 1.20 ± 0.01; qv 1.31 ± 0.02 nats per token. `."""
    metric = analysis.primary
    first = "lowest" if metric.lower_is_better else "highest"
    shown = summaries if len(summaries) <= MOST_LISTED else summaries[:NUM_LISTED_OF_MANY]
    listed = "; ".join(f"{one.arm.name} {score(one, metric, alongside=summaries)}" for one in shown)
    if len(shown) < len(summaries):
        listed += f"; then {len(summaries) - len(shown)} more, in the table of results;"
    unit = f" {metric.unit}" if metric.unit else ""
    return f"In order of mean {metric.title.lower()}, {first} first: {listed}{unit}. "


def cheapest_not_worse(analysis: Analysis) -> str:
    """The arm of least peak memory of those that no interval puts behind the reference; empty without one.

    An arm whose whole interval lies on the worse side is left out even where the verdict is open: with few seeds
    every verdict is, and to name the cheapest of all arms would recommend what was seen to do worse.
    """
    reference = analysis.reference
    if reference is None:
        return ""
    compared = {c.arm for c in analysis.primary_comparisons} | {reference.name}
    behind = {c.arm for c in analysis.primary_comparisons if _is_behind(c) or not c.is_valid}
    measured = [
        (memory.median, summary)
        for summary in analysis.completed
        if summary.arm.name in compared and (memory := summary.costs.peak_memory_bytes)
    ]
    candidates = [pair for pair in measured if pair[1].arm.name not in behind]
    if len(measured) < 2 or not candidates:
        return ""
    least, cheapest = min(candidates, key=lambda pair: pair[0])
    if cheapest.arm.name == reference.name:
        if least <= min(memory for memory, _ in measured):
            return f"No arm needs less memory than {reference.name}."
        return f"Every arm that needs less memory than {reference.name} is behind by its interval, or not validly compared."
    comparison = analysis.comparison(cheapest.arm.name)
    assert comparison is not None
    return (
        f"Of the arms that no interval puts behind {reference.name}, {cheapest.arm.name} needs the least memory "
        f"({size(least)}); its difference in {comparison.metric.title.lower()} is {difference(comparison)}."
    )


def _is_behind(comparison: Comparison) -> bool:
    """Whether the whole interval lies on the worse side."""
    return cost_bounds(comparison)[0] > 0


def _accuracy(analysis: Analysis) -> Text:
    ordered = best_first(analysis)
    if len(ordered) < 2 or analysis.reference is None:
        return ("Fewer than two arms completed; these runs cannot answer this.",)
    return (
        in_order(analysis, ordered),
        Strong(verdicts_by_word(analysis)),
        seen_but_not_shown(analysis.primary_comparisons),
    )


def _costs(analysis: Analysis) -> str:
    memory = _extremes(analysis, {s.arm.name: s.costs.peak_memory_bytes for s in analysis.completed})
    steps = _extremes(analysis, {s.arm.name: s.costs.step_seconds for s in analysis.completed})
    sentences = []
    if memory:
        (low_name, low), (high_name, high) = memory
        sentences.append(
            f"Peak memory of an arm alone runs from {size(low)} ({low_name}) to {size(high)} ({high_name}), "
            f"{percent_more(high, low)}."
        )
    if steps:
        (low_name, low), (high_name, high) = steps
        sentences.append(
            f"A step alone takes from {duration(low)} ({low_name}) to {duration(high)} ({high_name}); "
            f"{NOT_TOLD_APART}."
        )
    return " ".join(sentences) or "Neither memory nor time was measured."


def _extremes(
    analysis: Analysis, spreads: dict[str, Spread | None]
) -> tuple[tuple[str, float], tuple[str, float]] | None:
    medians = [(s.arm.name, spread.median) for s in analysis.completed if (spread := spreads[s.arm.name])]
    if not medians:
        return None
    return min(medians, key=lambda pair: pair[1]), max(medians, key=lambda pair: pair[1])
