"""Which arm to take, and why; or none, and what would decide.

Only what a verdict shows is a reason: the best mean is not, and "cannot tell" is no proof of equality. Where verdicts
leave several arms, the one that needs the least memory is named, and so is that it is one of several.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.analysis.overview import Analysis
from lorastudy.analysis.paired import Comparison
from lorastudy.report.findings.generic import cheapest_not_worse
from lorastudy.report.findings.wording import difference_decimals, more_seeds
from lorastudy.report.numbers import names, number, size

#: Findings by which no arm had its learning rate tuned, so that none can be called best at any rate.
_UNTUNED = {"LS101", "LS102"}
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """`arm` is None where the results do not recommend one."""

    arm: str | None
    why: str


def recommendation(analysis: Analysis) -> Recommendation:
    """The arm to take, or what would decide; one sentence of it is the reason."""
    comparisons, reference = analysis.primary_comparisons, analysis.reference
    if reference is None:
        return _none("no experiment completed.")
    if not comparisons:
        return _none("only one arm completed, so there is nothing to choose between.")
    valid = [comparison for comparison in comparisons if comparison.is_valid]
    if not valid:
        return _none(
            "no comparison is valid. The linter's findings below say what to change; then run again."
        )
    shown = _shown(analysis, valid)
    return shown or _none(f"{_what_is_left(analysis, valid)}{_what_would_decide(valid)}")


def _shown(analysis: Analysis, valid: Sequence[Comparison]) -> Recommendation | None:
    """The arm that the verdicts leave; None where they leave the choice open."""
    assert analysis.reference is not None
    reference = analysis.reference.name
    if sufficient := analysis.smallest_sufficient:
        return _take(analysis, sufficient.name, why=f"it is the smallest rank {_no_worse(analysis)}")
    if ahead := [comparison.arm for comparison in valid if comparison.arm_is_better]:
        return _best_of(analysis, ahead)
    if as_good := [comparison.arm for comparison in valid if comparison.no_worse]:
        chosen = _cheapest(analysis, [*as_good, reference])
        others = [name for name in [*as_good, reference] if name != chosen]
        why = f"{names([chosen, *others])} are as good within the margin, and of these it needs the least memory"
        return _take(analysis, chosen, why=why)
    if all(comparison.reference_is_better for comparison in valid):
        return _take(analysis, reference, why=_why_the_reference(analysis, valid))
    return None


def _none(why: str) -> Recommendation:
    return Recommendation(arm=None, why=f"None: {why}")


def _take(analysis: Analysis, arm: str, *, why: str) -> Recommendation:
    memory = analysis.summary(arm).costs.peak_memory_bytes
    cost = f" It needs {size(memory.median)} at its peak, alone." if memory else ""
    return Recommendation(arm=arm, why=f"Take {arm}{_at_which_rates(analysis)}: {why}.{cost}")


def _at_which_rates(analysis: Analysis) -> str:
    """That it holds for what was tried only; empty where every arm had its rate tuned."""
    if not any(finding.code in _UNTUNED for finding in analysis.lint):
        return ""
    rates = {float(arm.settings["learning_rate"]) for arm in analysis.study.arms}
    return (
        f", at the one learning rate that was tried ({min(rates):g})"
        if len(rates) == 1
        else ", at the learning rates that were tried"
    )


def _no_worse(analysis: Analysis) -> str:
    assert analysis.reference is not None
    assert analysis.question.margin is not None
    unit = f" {analysis.primary.unit}" if analysis.primary.unit else ""
    return f"shown to be as good as {analysis.reference.name} within the margin of {analysis.question.margin:g}{unit}"


def _why_the_reference(analysis: Analysis, valid: Sequence[Comparison]) -> str:
    """That it beat all others, and by how much it beat the nearest: what the next one down would give up."""
    assert analysis.reference is not None
    nearest = min(valid, key=lambda comparison: abs(comparison.mean or 0.0))
    assert nearest.mean is not None
    unit = f" {nearest.metric.unit}" if nearest.metric.unit else ""
    gap = f"{number(abs(nearest.mean), difference_decimals(nearest))}{unit}"
    every = "every other arm" if len(valid) > 1 else nearest.arm
    worse = f"; {nearest.arm} comes nearest, worse by {gap}" if len(valid) > 1 else f" by {gap}"
    ladder = analysis.returns.ladder if analysis.returns else ()
    larger = ". A larger rank was not tried" if ladder and ladder[-1] is analysis.reference else ""
    return f"it is shown to be better than {every}{worse}{larger}"


def _best_of(analysis: Analysis, ahead: Sequence[str]) -> Recommendation:
    assert analysis.reference is not None
    tied = analysis.tied.arms if analysis.tied else ()
    among = [arm for arm in ahead if arm in tied] or list(ahead)
    chosen = _cheapest(analysis, among)
    why = f"it is shown to be better than {analysis.reference.name}"
    if len(among) > 1:
        others = names(arm for arm in among if arm != chosen)
        why += f", as {others} {'are' if len(among) > 2 else 'is'}; of these it needs the least memory"
    elif len(ahead) > 1:
        why += ", and no other arm is tied with the best"
    return _take(analysis, chosen, why=why)


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
    if any(comparison.reference_is_better for comparison in valid):
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
