"""Which arm to take, and why; or none, and what would decide.

Only what a verdict shows is a reason: the best mean is not, and "cannot tell" is no proof of equality. Where verdicts
leave several arms, the one that needs the least memory is named, and so is that it is one of several. Where no arm had its
learning rate tuned, none is recommended; which one it would be at the rates that were tried is told, and what it takes
to know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.analysis.comparison import Comparison
from lorastudy.analysis.overview import Analysis
from lorastudy.analysis.summary import run_seconds
from lorastudy.analysis.tuning import tried_rates
from lorastudy.report.findings.generic import cheapest_not_worse
from lorastudy.report.findings.wording import as_good_within_the_margin, difference_decimals, more_seeds
from lorastudy.report.numbers import duration, names, number, size
from lorastudy.report.row_lengths import on_which_rows

_MOST_NAMED = 3

#: The fewest rates of which the best can have a worse one to each side.
_FEWEST_RATES = 3


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """`arm` is None where the results do not recommend one."""

    arm: str | None
    answer: str
    """Which arm and the reason, or what is in question; whole without the other two."""
    cost: str = ""
    """What the arm needs."""
    to_know_more: str = ""
    """What it takes to have an arm recommended, where rates are missing."""

    @property
    def why(self) -> str:
        """All of it, in sentences."""
        return " ".join(part for part in (self.answer, self.cost, self.to_know_more) if part)


def recommendation(analysis: Analysis) -> Recommendation:
    """The arm to take, or what would decide; one sentence of it is the reason."""
    comparisons, reference = analysis.primary_comparisons, analysis.reference
    if reference is None:
        return _none("no experiment completed.")
    if not comparisons:
        return _alone(analysis, reference.name)
    valid = [comparison for comparison in comparisons if comparison.is_valid]
    if not valid:
        return _none(
            "no comparison is valid. The linter's findings below say what to change; then run again."
        )
    choice = _shown(analysis, valid)
    left = "" if choice else f"{_what_is_left(analysis, valid)}{_what_would_decide(valid)}"
    if not analysis.untuned.isdisjoint({reference.name, *(comparison.arm for comparison in valid)}):
        return _none_is_best(analysis, choice, left=left)
    if choice is None:
        return _none(left)
    arm, why = choice
    return Recommendation(arm=arm, answer=f"Take {arm}: {why}.", cost=_cost(analysis, arm))


def _alone(analysis: Analysis, arm: str) -> Recommendation:
    """Of one arm that completed: it is taken where racing stopped all others, for that is why there are none."""
    if not analysis.study.outraced:
        return _none("only one arm completed, so there is nothing to choose between.")
    why = "every other arm was stopped by racing, clearly behind on the held-out rows before the end"
    if arm in analysis.untuned:
        return _none_is_best(analysis, (arm, why), left="")
    return Recommendation(arm=arm, answer=f"Take {arm}: {why}.", cost=_cost(analysis, arm))


def _shown(analysis: Analysis, valid: Sequence[Comparison]) -> tuple[str, str] | None:
    """The arm that the verdicts leave, and why; None where they leave the choice open."""
    assert analysis.reference is not None
    reference = analysis.reference.name
    if smallest := analysis.smallest_no_worse:
        why = as_good_within_the_margin(analysis, smallest.name)
        return smallest.name, f"it is the smallest rank shown to be {why}"
    if ahead := [comparison.arm for comparison in valid if comparison.arm_is_ahead]:
        return _best_of(analysis, ahead)
    if as_good := [comparison.arm for comparison in valid if comparison.no_worse]:
        chosen = _cheapest(analysis, [*as_good, reference])
        are = "is" if len(as_good) == 1 else "are each"
        why = (
            f"{names(as_good)} {are} {as_good_within_the_margin(analysis, as_good[0])}, and of these and {reference} it needs "
            "the least memory"
        )
        return chosen, why
    if all(comparison.reference_is_ahead for comparison in valid):
        return reference, _why_the_reference(analysis, valid)
    return None


def _none(why: str) -> Recommendation:
    return Recommendation(arm=None, answer=f"None: {why}")


def _none_is_best(analysis: Analysis, choice: tuple[str, str] | None, *, left: str) -> Recommendation:
    """What the verdicts leave at the rates that were tried, and what it takes to have an arm recommended."""
    seen = left if choice is None else f"it would be {choice[0]}: {choice[1]}."
    rates = tried_rates(analysis.study)
    return Recommendation(
        arm=None,
        answer=f"None: no arm had its learning rate tuned. {rates[0].upper()}{rates[1:]} {seen}",
        cost="" if choice is None else _cost(analysis, choice[0]),
        to_know_more=_what_would_tune(analysis),
    )


def _what_would_tune(analysis: Analysis) -> str:
    """How to give each arm a rate of its own, and what that takes by the time of the runs so far."""
    runs = [(run_seconds(summary.arm), len(summary.arm.completed)) for summary in analysis.completed]
    spent = sum(seconds * number for seconds, number in runs if seconds is not None)
    is_known = all(seconds is not None for seconds, _ in runs)
    more = f"about {duration((_FEWEST_RATES - 1) * spent)} more"
    takes = f"; {_FEWEST_RATES} rates each take {more}" if is_known else ""
    return f"To have one recommended, write learning_rate: auto, or give all arms alike at least {_FEWEST_RATES} rates{takes}."


def _cost(analysis: Analysis, arm: str) -> str:
    summary = analysis.summary(arm)
    memory = summary.costs.peak_memory_bytes
    return (
        f"It needs {size(memory.median)} at its peak, alone, {on_which_rows(summary.arm)}." if memory else ""
    )


def _than(analysis: Analysis) -> str:
    """At rates that nobody tuned an arm is ahead of another and never better."""
    is_untuned = any(comparison.verdict == "untuned" for comparison in analysis.primary_comparisons)
    return "ahead of" if is_untuned else "better than"


def _why_the_reference(analysis: Analysis, valid: Sequence[Comparison]) -> str:
    """That it beat all others, and by how much it beat the nearest: what the next one down would give up."""
    assert analysis.reference is not None
    nearest = min(valid, key=lambda comparison: abs(comparison.mean or 0.0))
    assert nearest.mean is not None
    unit = f" {nearest.metric.unit}" if nearest.metric.unit else ""
    gap = f"{number(abs(nearest.mean), difference_decimals(nearest))}{unit}"
    told_of = "every other arm" if _all_are_valid(analysis) else "every arm that it is validly compared with"
    every = told_of if len(valid) > 1 else nearest.arm
    worse = f"; {nearest.arm} comes nearest, {gap} behind" if len(valid) > 1 else f" by {gap}"
    ladder = analysis.returns.ladder if analysis.returns else ()
    larger = ". A larger rank was not tried" if ladder and ladder[-1] is analysis.reference else ""
    return f"it is shown to be {_than(analysis)} {every}{worse}{larger}"


def _all_are_valid(analysis: Analysis) -> bool:
    return all(comparison.is_valid for comparison in analysis.primary_comparisons)


def _best_of(analysis: Analysis, ahead: Sequence[str]) -> tuple[str, str]:
    assert analysis.reference is not None
    tied = analysis.tied.arms if analysis.tied else ()
    among = [arm for arm in ahead if arm in tied] or list(ahead)
    chosen = _cheapest(analysis, among)
    why = f"it is shown to be {_than(analysis)} {analysis.reference.name}"
    if len(among) > 1:
        others = names(arm for arm in among if arm != chosen)
        why += f", as {others} {'are' if len(among) > 2 else 'is'}; of these it needs the least memory"
    elif len(ahead) > 1:
        beside = [arm for arm in ahead if arm != chosen]
        why += f", as {names(beside)} {'are' if len(beside) > 1 else 'is'}; of these it alone may be the best"
    return chosen, why


def _cheapest(analysis: Analysis, arms: Sequence[str]) -> str:
    """Of least peak memory; the first where that was not measured for all of them."""
    memory = {arm: analysis.summary(arm).costs.peak_memory_bytes for arm in arms}
    measured = {arm: spread.median for arm, spread in memory.items() if spread}
    return min(measured, key=measured.__getitem__) if len(measured) == len(arms) else arms[0]


def _what_is_left(analysis: Analysis, valid: Sequence[Comparison]) -> str:
    """Which arms are still in question, and the cheapest of them, where intervals say which are behind."""
    assert analysis.reference is not None
    reference = analysis.reference.name
    open_arms = [comparison.arm for comparison in valid if comparison.verdict == "cannot tell"]
    if any(comparison.reference_is_ahead for comparison in valid):
        left = f"it is still between {names([*open_arms, reference])}."
    else:
        left = f"no arm was told from {reference}."
    has_intervals = all(comparison.interval for comparison in valid)
    cheaper = cheapest_not_worse(analysis) if has_intervals else ""
    return f"{left} {cheaper} " if cheaper else f"{left} "


def _what_would_decide(valid: Sequence[Comparison]) -> str:
    """The open pairs with the fewest seeds to go, and the time that they take."""
    open_pairs = [comparison for comparison in valid if comparison.verdict == "cannot tell"]
    lacking = [(one.more, one.arm) for one in open_pairs if one.more is not None]
    if not lacking:
        return f"More seeds would not decide it ({open_pairs[0].reason})."
    lacking.sort(key=lambda pair: pair[0].num_seeds)
    arms_by_need: dict[str, list[str]] = {}
    for more, arm in lacking:
        arms_by_need.setdefault(more_seeds(more), []).append(arm)
    told = [f"for {names(arms)} {need}" for need, arms in arms_by_need.items()]
    rest = "; the others need more, as the table of pairs says" if len(told) > _MOST_NAMED else ""
    timed = " (time: that of the two arms)" if any(more.seconds for more, _ in lacking) else ""
    return f"What would decide{timed}: {'; '.join(told[:_MOST_NAMED])}{rest}."
