"""The decision (`recommend.decision`) in words: which arm to take and why, or which to use for now and what would decide.

The report, the terminal and `lorastudy recommend` take their sentences from here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lorastudy.analysis.overview import Analysis
from lorastudy.recommend.decision import ArmDecision, Cost, Reason, decide
from lorastudy.recommend.recommendation import Recommendation
from lorastudy.report.findings.wording import (
    as_good_within_the_margin,
    difference_decimals,
    margin_words,
    more_seeds,
)
from lorastudy.report.numbers import duration, names, number, size
from lorastudy.report.rows import on_which_rows
from lorastudy.stats.comparison import Comparison
from lorastudy.stats.rate_choice import tried_rates
from lorastudy.stats.summary import run_seconds
from lorastudy.stats.trivial import best_not_ahead
from lorastudy.suite.question import MIN_SEEDS

_MOST_NAMED = 3
#: The fewest rates with which the best one can have a worse one on each side.
_FEWEST_RATES = 3
_CHEAPEST: Mapping[Cost, str] = {
    "rank": "it has the smallest rank",
    "memory": "it needs the least memory",
    "parameters": "it has the fewest trainable parameters",
    "order": "it stands first in the suite",
}


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The decision as the first page shows it. `arm` is None if none is recommended."""

    arm: str | None
    answer: str
    """Which arm and why, or what is open; complete without the other two."""
    cost: str = ""
    """The memory that the arm needs."""
    to_know_more: str = ""
    """How to get a recommendation, if learning rates are untuned."""

    @property
    def why(self) -> str:
        """All of it, in sentences."""
        return " ".join(part for part in (self.answer, self.cost, self.to_know_more) if part)


def recommendation(analysis: Analysis) -> Advice:
    """The arm to take, or the one to use for now and what would decide."""
    decision = decide(analysis)
    if decision.arm is None:
        return Advice(arm=None, answer=f"None: {why(analysis, decision)}.")
    cost = _cost(analysis, decision.arm)
    if decision.untuned:
        return _untuned(analysis, decision, cost=cost)
    if decision.status == "decided":
        text = f"Take {decision.arm}: {why(analysis, decision)}.{_its_divergence(analysis, decision)}"
        return Advice(arm=decision.arm, answer=text, cost=cost)
    text = f"Not decided: {what_is_open(analysis, decision)}. {meanwhile(analysis, decision)} {what_would_decide(analysis, decision)}"
    return Advice(arm=None, answer=text)


def why(analysis: Analysis, decision: ArmDecision) -> str:
    """The reason in one clause, without a full stop."""
    if decision.reason == "harm":
        every = "every arm" if len(decision.harmed) > 1 else decision.harmed[0]
        return f"training made {every} worse than the base model, which is harm. Use the base model as it is"
    if decision.reason == "not shown to help":
        return f"training is not shown to have helped: {what_training_did(analysis, decision)}"
    plain = _PLAIN_REASONS.get(decision.reason)
    return plain or _REASONS[decision.reason](analysis, decision)


def what_training_did(analysis: Analysis, decision: ArmDecision) -> str:
    """What is known of the arms whose held-out loss is above the base model's, in one clause."""
    parts = []
    if decision.harmed:
        parts.append(f"training made {_few(decision.harmed)} worse")
    if decision.not_helped:
        parts.append(
            f"the mean held-out loss of {_few(decision.not_helped)} is above the base model's, which may be noise"
        )
    raised = {*decision.harmed, *decision.not_helped}
    is_every = all(summary.arm.name in raised for summary in analysis.completed)
    return "; ".join(parts) + ("" if is_every else "; no other arm is shown to be better")


def _few(arms: Sequence[str]) -> str:
    return names(arms) if len(arms) <= _MOST_NAMED else f"{len(arms)} arms"


def meanwhile(analysis: Analysis, decision: ArmDecision) -> str:
    """Which arm to use until it is decided, in a sentence."""
    return f"Meanwhile use {decision.arm}: {why(analysis, decision)}.{_its_divergence(analysis, decision)}"


def _its_divergence(analysis: Analysis, decision: ArmDecision) -> str:
    """How often the arm diverged, with an interval; every sentence that names an arm to use has it."""
    found = analysis.divergence(str(decision.arm))
    return "" if found is None else f" It {found.rate}."


def _untuned(analysis: Analysis, decision: ArmDecision, *, cost: str) -> Advice:
    """What was shown at the rates that were tried, and how to get a recommendation."""
    rates = tried_rates(analysis.study)
    if decision.status == "decided":
        seen = f"it would be {decision.arm}: {why(analysis, decision)}.{_its_divergence(analysis, decision)}"
    else:
        seen = f"{what_is_open(analysis, decision)}. {meanwhile(analysis, decision)} {what_would_decide(analysis, decision)}"
    return Advice(
        arm=None,
        answer=f"None: {who_is_untuned(analysis)}. {rates[0].upper()}{rates[1:]} {seen}",
        cost=cost if decision.status == "decided" else "",
        to_know_more=_what_would_tune(analysis),
    )


def who_is_untuned(analysis: Analysis) -> str:
    """`no arm had its learning rate tuned`, or which had not."""
    assert analysis.reference is not None
    compared = [analysis.reference.name, *(one.arm for one in analysis.primary_comparisons)]
    untuned = [arm for arm in compared if arm in analysis.untuned]
    if len(untuned) == len(compared):
        return "no arm had its learning rate tuned"
    return f"{names(untuned)} had no learning rate of {'its' if len(untuned) == 1 else 'their'} own"


def _what_would_tune(analysis: Analysis) -> str:
    """How to give each arm a rate of its own, and how long that takes, from the runs so far."""
    seconds = time_to_tune(analysis)
    takes = "" if seconds is None else f"; {_FEWEST_RATES} rates each take about {duration(seconds)} more"
    return f"To get a recommendation, write learning_rate: auto, or give all arms the same {_FEWEST_RATES} rates or more{takes}."


def time_to_tune(analysis: Analysis) -> float | None:
    """Seconds that the other two of three rates take for all arms, from the runs so far; None if a run was not timed."""
    runs = [(run_seconds(summary.arm), len(summary.arm.completed)) for summary in analysis.completed]
    known = [seconds * number for seconds, number in runs if seconds is not None]
    return (_FEWEST_RATES - 1) * sum(known) if len(known) == len(runs) else None


def _cost(analysis: Analysis, arm: str) -> str:
    summary = analysis.summary(arm)
    memory = summary.costs.peak_memory_bytes
    return (
        f"It needs {size(memory.median)} at its peak, alone, {on_which_rows(summary.arm)}." if memory else ""
    )


def _than(analysis: Analysis) -> str:
    """An arm at an untuned rate is ahead of another one, never better."""
    is_untuned = any(comparison.verdict == "untuned" for comparison in analysis.primary_comparisons)
    return "ahead of" if is_untuned else "better than"


def _why_the_reference_meanwhile(analysis: Analysis, decision: ArmDecision) -> str:
    """The reason for using the reference: who named it."""
    return f"it is {meanwhile_reason(analysis, decision)}, and no other arm is shown to be better"


def meanwhile_reason(analysis: Analysis, decision: ArmDecision) -> str:
    """`the suite's first arm`: why an arm is the one to use until it is decided."""
    if decision.reason == "better than the reference meanwhile":
        assert analysis.reference is not None
        return f"which is {_than(analysis)} {analysis.reference.name}"
    if decision.reason == "best so far":
        assert analysis.reference is not None
        return f"the best so far (preliminary): its whole 95 % interval is ahead of {analysis.reference.name}"
    named = analysis.criterion.reference
    if named is not None and analysis.study.arm(str(decision.arm)).is_named(named):
        return "the suite's reference"
    return "the design's reference" if analysis.is_reference_named else "the suite's first arm"


def _why_best_so_far(analysis: Analysis, decision: ArmDecision) -> str:
    return f"it is {meanwhile_reason(analysis, decision)}"


def _why_better(analysis: Analysis, decision: ArmDecision) -> str:
    assert analysis.reference is not None
    text = f"it is shown to be {_than(analysis)} {analysis.reference.name}"
    beside = [*decision.peers, *decision.left_out]
    if not beside:
        return text
    text += f", as {names(beside)} {'are' if len(beside) > 1 else 'is'}"
    if decision.left_out:
        text += f"; {names(decision.left_out)} {'are' if len(decision.left_out) > 1 else 'is'} behind"
    rest = "the others" if decision.left_out else "these"
    return f"{text}; of {rest} {_CHEAPEST[decision.cheapest_by]}" if decision.cheapest_by else text


def _why_as_good(analysis: Analysis, decision: ArmDecision) -> str:
    assert analysis.reference is not None
    assert decision.arm is not None
    reference = analysis.reference.name
    smallest = analysis.smallest_no_worse
    if smallest is not None and smallest.name == decision.arm:
        return f"it is the smallest rank shown to be {as_good_within_the_margin(analysis, decision.arm)}"
    as_good = [arm for arm in (decision.arm, *decision.peers) if arm != reference]
    are = "is" if len(as_good) == 1 else "are each"
    within = as_good_within_the_margin(analysis, as_good[0])
    return f"{names(as_good)} {are} {within}, and of these and {reference} {_CHEAPEST[decision.cheapest_by or 'order']}"


def _why_best(analysis: Analysis, decision: ArmDecision) -> str:
    """That the arm beat all others, and by how much it beat the nearest one."""
    assert analysis.reference is not None
    assert decision.arm is not None
    valid = against(analysis, decision.arm)
    nearest = min(valid, key=lambda comparison: abs(comparison.mean or 0.0))
    assert nearest.mean is not None
    unit = f" {nearest.metric.unit}" if nearest.metric.unit else ""
    gap = f"{number(abs(nearest.mean), difference_decimals(nearest))}{unit}"
    told_of = "every other arm" if _all_are_valid(analysis) else "every arm that it is validly compared with"
    every = told_of if len(valid) > 1 else nearest.arm
    worse = f"; {nearest.arm} comes nearest, {gap} behind" if len(valid) > 1 else f" by {gap}"
    ladder = analysis.returns.ladder if analysis.returns else ()
    is_largest = bool(ladder) and ladder[-1].name == decision.arm
    larger = ". A larger rank was not tried" if is_largest else ""
    return f"it is shown to be {_than(analysis)} {every}{worse}{larger}"


def against(analysis: Analysis, arm: str) -> list[Comparison]:
    """Every other arm that is validly compared, minus this one."""
    assert analysis.reference is not None
    valid = [comparison for comparison in analysis.primary_comparisons if comparison.is_valid]
    if arm == analysis.reference.name:
        return valid
    others = [analysis.reference, *(analysis.study.arm(one.arm) for one in valid if one.arm != arm)]
    return list(analysis.pairs(others, reference=analysis.study.arm(arm)))


def _why_as_good_as_the_best(analysis: Analysis, decision: ArmDecision) -> str:
    within = f"within the margin of {margin_words(analysis)} of the best arm"
    if not decision.peers:
        return f"it is shown to be {within}, whichever that is"
    return f"{names([decision.arm or '', *decision.peers])} are shown to be {within}, and of these {_CHEAPEST[decision.cheapest_by or 'order']}"


def _all_are_valid(analysis: Analysis) -> bool:
    return all(comparison.is_valid for comparison in analysis.primary_comparisons)


def _why_guessing(analysis: Analysis, decision: ArmDecision) -> str:
    """Which arms do not beat guessing, with the hardest predictor that the best of them does not beat."""
    arms, best = decision.no_better_than_guessing, best_not_ahead(analysis.trivial)
    assert best is not None
    unit = f" {analysis.primary.unit}" if analysis.primary.is_in_units else ""
    is_every = set(arms) == {one.arm for one in analysis.trivial}
    who = "no arm is" if is_every else f"{names(arms)} {'are' if len(arms) > 1 else 'is'} not"
    text = (
        f"{who} shown to beat {best.name}, which {'needs' if best.predictor == 'constant' else 'need'} no model "
        f"({best.score:.3g}{unit}; {best.arm} has {best.arm_score:.3g})"
    )
    if is_every:
        return f"{text}, so nothing is shown to be learnt from the prompts"
    harmed = f"; training made {names(decision.harmed)} worse than the base model" if decision.harmed else ""
    return f"{text}{harmed}, and no other arm is shown to be the one to take"


_REASONS: Mapping[Reason, Callable[[Analysis, ArmDecision], str]] = {
    "no better than guessing": _why_guessing,
    "better than the reference": _why_better,
    "better than the reference meanwhile": _why_better,
    "as good as the reference": _why_as_good,
    "reference better than every other": _why_best,
    "best": _why_best,
    "as good as the best": _why_as_good_as_the_best,
    "reference meanwhile": _why_the_reference_meanwhile,
    "best so far": _why_best_so_far,
}
_PLAIN_REASONS: Mapping[Reason, str] = {
    "racing stopped every other": (
        "every other arm was stopped by racing, clearly behind on the held-out rows before the end"
    ),
    "nothing completed": "no experiment completed",
    "one arm": "only one arm completed, so there is nothing to choose between",
    "no valid comparison": (
        "no comparison is valid. The linter's findings below say what to change; then run again"
    ),
}


def what_is_open(analysis: Analysis, decision: ArmDecision) -> str:
    """Which arms are still open."""
    assert analysis.reference is not None
    if decision.reason == "best so far":
        return too_few_seeds(analysis)
    if still_in_play := arms_in_play(analysis, decision):
        return f"it is still between {names(still_in_play)}"
    return f"no arm was distinguished from {analysis.reference.name}"


def too_few_seeds(analysis: Analysis) -> str:
    """`3 seeds are too few for a verdict, which needs 6`."""
    num_seeds = max(comparison.n for comparison in analysis.primary_comparisons)
    return f"{num_seeds} seeds are too few for a verdict, which needs {MIN_SEEDS}"


def arms_in_play(analysis: Analysis, decision: ArmDecision) -> list[str]:
    """The arms between which an open decision still is; empty if no arm was told apart from the reference."""
    assert analysis.reference is not None
    valid = [comparison for comparison in analysis.primary_comparisons if comparison.is_valid]
    open_arms = [comparison.arm for comparison in valid if comparison.verdict == "cannot tell"]
    if decision.reason == "better than the reference meanwhile":
        return [str(decision.arm), *decision.peers, *open_arms]
    if any(comparison.reference_is_ahead for comparison in valid):
        return [*open_arms, analysis.reference.name]
    return []


def what_would_decide(analysis: Analysis, decision: ArmDecision) -> str:
    """The open pairs that need the fewest seeds, and the time that these take."""
    open_pairs = [one for one in analysis.primary_comparisons if one.verdict == "cannot tell"]
    if not open_pairs and decision.arm is not None:
        arm, peers = analysis.study.arm(decision.arm), map(analysis.study.arm, decision.peers)
        open_pairs = [
            one for one in analysis.pairs(list(peers), reference=arm) if one.verdict == "cannot tell"
        ]
    if not open_pairs:
        return "What would decide: state a margin or a reference before you run more seeds."
    lacking = [(one.more, one.arm) for one in open_pairs if one.more is not None]
    if not lacking:
        return f"More seeds would not decide it ({open_pairs[0].reason})."
    lacking.sort(key=lambda pair: pair[0].num_seeds)
    arms_by_need: dict[str, list[str]] = {}
    for more, name in lacking:
        arms_by_need.setdefault(more_seeds(more), []).append(name)
    text = [f"for {names(arms)} {need}" for need, arms in arms_by_need.items()]
    rest = "; the others need more, as the table of pairs shows" if len(text) > _MOST_NAMED else ""
    timed = " (time: that of the two arms)" if any(more.seconds for more, _ in lacking) else ""
    return f"What would decide{timed}: {'; '.join(text[:_MOST_NAMED])}{rest}."


def because(recommended: Recommendation) -> tuple[str, ...]:
    """Why this configuration, for `lorastudy recommend`: the report's reason, and what was not measured."""
    analysis, decision = recommended.analysis, recommended.decision
    if analysis is None or decision is None:
        return (
            "no study in the store answers for this model and this memory, so the answer comes from published rules",
        )
    reason = why(analysis, decision)
    if decision.status != "decided":
        text = [f"not decided: {what_is_open(analysis, decision)}; meanwhile {decision.arm}: {reason}"]
        text.append(what_would_decide(analysis, decision))
    else:
        text = [f"{tried_rates(analysis.study)} {reason}" if decision.untuned else reason]
    if decision.untuned:
        text.append(
            f"not called best: {who_is_untuned(analysis)}, and at tuned rates the arms may rank differently; a suite "
            "with learning_rate: auto would show it"
        )
    divergence = analysis.divergence(str(decision.arm))
    text += [] if divergence is None else [f"it {divergence.rate}"]
    return (*text, *(f"not measured for this question: {departure}" for departure in recommended.departures))
