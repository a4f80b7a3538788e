"""The answer of a study in a few sentences: what to use, how sure that is, what it costs, and what would decide.

The report's first page and the terminal show them. They say nothing that the decision (`recommend.decision`) and the verdicts do not
give. Each sentence stands alone and says one thing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lorastudy.analysis.overview import Analysis
from lorastudy.recommend.decision import ArmDecision, Cost, Reason, decide
from lorastudy.report.findings.recommendation import (
    against,
    arms_in_play,
    meanwhile_reason,
    time_to_tune,
    too_few_seeds,
    what_training_did,
    who_is_untuned,
)
from lorastudy.report.findings.wording import difference_in_words, least_needed
from lorastudy.report.numbers import duration, names, percent, size
from lorastudy.stats.comparison import Comparison, MoreSeeds
from lorastudy.stats.rate_choice import tried_rates
from lorastudy.stats.study import have_one_engine
from lorastudy.stats.summary import ArmSummary, Spread
from lorastudy.suite.question import MIN_SEEDS

#: Of more arms than this, a headline gives the number.
_MOST_NAMED = 3
#: Shares of a cost that have a word, and how near a ratio must be to take it.
_SHARES: Mapping[float, str] = {1 / 2: "half", 1 / 3: "a third", 1 / 4: "a quarter", 1 / 8: "an eighth"}
_NEAR = 0.02
_COSTS: Mapping[Cost, str] = {"rank": "parameters", "memory": "memory", "parameters": "parameters"}


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A study's answer. A part without content is empty."""

    arm: str | None
    """The arm to use, or to use until it is decided."""
    answer: str
    how_sure: str
    cost: str
    what_decides: str

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """The parts after the answer that have content, with their titles."""
        titled = (
            ("How sure.", self.how_sure),
            ("What it costs.", self.cost),
            ("What would decide.", self.what_decides),
        )
        return tuple((title, text) for title, text in titled if text)


def headline(analysis: Analysis) -> Headline:
    """The answer of the study's decision."""
    decision = decide(analysis)
    return Headline(
        arm=decision.arm,
        answer=_answer(analysis, decision),
        how_sure=_how_sure(analysis, decision),
        cost=_cost(analysis, decision),
        what_decides=_what_decides(analysis, decision),
    )


def _answer(analysis: Analysis, decision: ArmDecision) -> str:
    if decision.arm is None:
        return _without_arm(analysis, decision)
    if decision.status == "decided" and not decision.untuned:
        return f"Use {decision.arm}: {_shown(analysis, decision)}."
    if decision.status == "decided":
        untuned = who_is_untuned(analysis)
        rates = tried_rates(analysis.study)
        return f"Cannot tell yet: {untuned}. {rates[0].upper()}{rates[1:]} it would be {decision.arm}: {_shown(analysis, decision)}."
    because, is_open = meanwhile_reason(analysis, decision), _open(analysis, decision)
    arm = "that one" if is_open.endswith(f"from {decision.arm}") else decision.arm
    return f"Cannot tell yet: {is_open}. Meanwhile use {arm}, {because}."


def _shown(analysis: Analysis, decision: ArmDecision) -> str:
    """What the verdicts show of the arm, without a full stop."""
    if decision.reason == "racing stopped every other":
        return "racing stopped every other arm as clearly behind"
    return _SHOWN[decision.reason](analysis, decision)


def _better_than_reference(analysis: Analysis, decision: ArmDecision) -> str:
    text = f"{_than(decision)} {_reference(analysis)}"
    if decision.left_out:
        return f"{text}, and not behind any other arm that is"
    if decision.peers:
        return f"{text}, and {_chosen(decision)} of the {1 + len(decision.peers)} arms that are"
    return text


def _as_good_as_reference(analysis: Analysis, decision: ArmDecision) -> str:
    reference = _reference(analysis)
    if decision.arm == reference and decision.cheapest_by == "order":
        return f"the first in the suite of the arms that are as good within {_margin(analysis)}"
    if decision.arm == reference:
        return f"no arm that is as good within {_margin(analysis)} is cheaper"
    return f"as good as {reference} within {_margin(analysis)}{_saving(analysis, decision)}"


def _better_than_all(analysis: Analysis, decision: ArmDecision) -> str:
    pairs = against(analysis, str(decision.arm))
    if len(pairs) == 1:
        (only,) = pairs
        other = only.reference if only.arm == decision.arm else only.arm
        return f"{_than(decision)} {other}"
    if all(one.is_valid for one in analysis.primary_comparisons):
        return f"{_than(decision)} every other arm"
    return f"{_than(decision)} every arm that it is validly compared with"


def _within_the_best(analysis: Analysis, decision: ArmDecision) -> str:
    text = f"within {_margin(analysis)} of the best arm"
    return f"{text}, and {_chosen(decision)} that is" if decision.peers else text


def _chosen(decision: ArmDecision) -> str:
    """Which of several arms was taken. Without a known cost it is the first one, and not the cheapest."""
    return "the first in the suite" if decision.cheapest_by == "order" else "the cheapest"


_SHOWN: Mapping[Reason, Callable[[Analysis, ArmDecision], str]] = {
    "better than the reference": _better_than_reference,
    "as good as the reference": _as_good_as_reference,
    "reference better than every other": _better_than_all,
    "best": _better_than_all,
    "as good as the best": _within_the_best,
}


def _without_arm(analysis: Analysis, decision: ArmDecision) -> str:
    """Why no arm is named."""
    if decision.reason == "harm":
        who = "every arm" if len(decision.harmed) > 1 else decision.harmed[0]
        return f"Use the base model as it is: training made {who} worse."
    if decision.reason == "not shown to help":
        return f"Cannot tell yet whether training helped: {what_training_did(analysis, decision)}."
    if decision.reason != "no better than guessing":
        return _NO_ARM[decision.reason]
    arms = decision.no_better_than_guessing
    if set(arms) == {one.arm for one in analysis.trivial}:
        return "Use none of these arms: none is shown to beat guessing without a model."
    who = f"{_some(arms)} {'are' if len(arms) > 1 else 'is'} not shown to beat guessing without a model"
    return f"Cannot tell yet: {who}, and no other arm is shown to be better."


_NO_ARM: Mapping[Reason, str] = {
    "nothing completed": "Cannot tell: no experiment completed.",
    "one arm": "Cannot tell: only one arm completed.",
    "no valid comparison": "Cannot tell yet: no comparison is valid.",
}


def _open(analysis: Analysis, decision: ArmDecision) -> str:
    """Which arms are still open."""
    if decision.reason == "best so far":
        return too_few_seeds(analysis)
    if in_play := arms_in_play(analysis, decision):
        return f"it is between {_some(in_play)}"
    return f"no arm is told apart from {_reference(analysis)}"


def _how_sure(analysis: Analysis, decision: ArmDecision) -> str:
    """The one difference that matters most, with its interval, and what its seeds can show."""
    pair = deciding_pair(analysis, decision)
    if pair is None or pair.mean is None:
        return _why_invalid(analysis) if decision.reason == "no valid comparison" else ""
    few = pair.n < MIN_SEEDS and decision.status != "decided"
    return f"{difference_in_words(pair)}{f'; with fewer than {MIN_SEEDS} no difference can be shown' if few else ''}."


def _why_invalid(analysis: Analysis) -> str:
    reasons = dict.fromkeys(one.title for one in analysis.lint if one.severity == "invalidates")
    return f"{names(reasons)}: this invalidates the verdicts." if reasons else ""


def deciding_pair(analysis: Analysis, decision: ArmDecision) -> Comparison | None:
    """The comparison behind the answer: of the arm with the reference, or with the arm that comes nearest."""
    pairs = [one for one in analysis.primary_comparisons if one.mean is not None and one.is_valid]
    if not pairs:
        return None
    if decision.status != "decided":
        lacking = least_needed(pairs)
        return lacking or pairs[0]
    if decision.reason == "as good as the best":
        return _against_the_best(analysis, str(decision.arm))
    if decision.reason == "best":
        pairs = [one for one in against(analysis, str(decision.arm)) if one.mean is not None]
    elif any(one.arm == decision.arm for one in pairs):
        return next(one for one in pairs if one.arm == decision.arm)
    elif decision.reason == "as good as the reference":
        pairs = [one for one in pairs if one.arm in decision.peers] or pairs
    return min(pairs, key=lambda one: abs(one.mean or 0.0))


def _against_the_best(analysis: Analysis, arm: str) -> Comparison | None:
    """The arm minus the arm with the best mean among the others."""
    others = [one for one in against(analysis, arm) if one.mean is not None]
    if not others:
        return None
    best = min(others, key=lambda one: one.cost or 0.0)
    pairs = analysis.pairs([analysis.study.arm(arm)], reference=analysis.study.arm(best.arm))
    return next(iter(pairs), None)


def _cost(analysis: Analysis, decision: ArmDecision) -> str:
    """What the named arm needs, and beside it the reference."""
    if decision.arm is None:
        return ""
    own = _needs(analysis.summary(decision.arm))
    reference = _reference(analysis)
    if not own or reference == decision.arm:
        return f"{decision.arm} needs {own}." if own else ""
    if not _is_beside_reference(analysis, decision):
        return f"{decision.arm} needs {own}. Another engine trained {reference}, so its memory and time are not comparable."
    other = _needs(analysis.summary(reference))
    return f"{decision.arm} needs {own}." + (f" {reference} needs {other}." if other else "")


def _needs(summary: ArmSummary) -> str:
    """`52.2 MiB at its peak alone, 0.12 s a step and an adapter of 966 KiB`, as far as measured."""
    costs = summary.costs
    parts = [
        f"{size(costs.peak_memory_bytes.median)} at its peak" if costs.peak_memory_bytes else "",
        f"{duration(costs.step_seconds.median)} a step" if costs.step_seconds else "",
        f"{'a model' if summary.arm.is_full else 'an adapter'} of {size(costs.adapter_bytes.median)}"
        if costs.adapter_bytes
        else "",
    ]
    known = [part for part in parts if part]
    *head, last = known or [""]
    return f"{', '.join(head)} and {last}" if head else last


def _what_decides(analysis: Analysis, decision: ArmDecision) -> str:
    """What to run next for a decision, and its time; empty if there is one."""
    text = []
    if decision.reason == "no valid comparison":
        changes = dict.fromkeys(one.change for one in analysis.lint if one.severity == "invalidates")
        first = next(iter(changes), None)
        text += [] if first is None else [f"{first[0].upper()}{first[1:].replace('`', '')}."]
    if decision.status == "not decided" or decision.reason == "no better than guessing":
        pair = least_needed(analysis.primary_comparisons)
        if pair is not None and pair.more is not None:
            text.append(f"{_more(pair.more)} of these two arms{_taking(pair.more)}.")
    if decision.untuned:
        text.append(_what_tunes(analysis))
    return " ".join(text)


def _more(more: MoreSeeds) -> str:
    """`About 7 more seeds`."""
    words = str(more)
    return f"{words[0].upper()}{words[1:]}"


def _taking(more: MoreSeeds) -> str:
    return "" if more.seconds is None else f" ({duration(more.seconds)})"


def _what_tunes(analysis: Analysis) -> str:
    seconds = time_to_tune(analysis)
    takes = "" if seconds is None else f" (about {duration(seconds)} more)"
    return f"A recommendation needs learning_rate: auto, or three rates for each arm{takes}."


def _saving(analysis: Analysis, decision: ArmDecision) -> str:
    """`, with a quarter of its parameters`: the cost by which the arm was chosen, beside the reference's."""
    what = _COSTS.get(decision.cheapest_by) if decision.cheapest_by is not None else None
    if what is None:
        return ""
    what = what if _is_beside_reference(analysis, decision) else "parameters"
    own, other = (_spread(analysis, arm, what=what) for arm in (str(decision.arm), _reference(analysis)))
    if own is None or other is None or own.median >= other.median:
        return ""
    share = own.median / other.median
    word = next((word for known, word in _SHARES.items() if abs(share - known) < _NEAR * known), None)
    return f", with {word or percent(share, decimals=0)} of its {what}"


def _is_beside_reference(analysis: Analysis, decision: ArmDecision) -> bool:
    """Whether one engine trained the arm and the reference, so that their memory and times are comparable."""
    return have_one_engine(map(analysis.study.arm, (str(decision.arm), _reference(analysis))))


def _spread(analysis: Analysis, arm: str, *, what: str) -> Spread | None:
    costs = analysis.summary(arm).costs
    return costs.peak_memory_bytes if what == "memory" else costs.trainable_parameters


def _than(decision: ArmDecision) -> str:
    """An arm at an untuned rate is ahead of another one, never better."""
    return "ahead of" if decision.untuned else "better than"


def _margin(analysis: Analysis) -> str:
    """`the margin of 0.1 nats per token`, or the share of the gain."""
    criterion, unit = analysis.criterion, analysis.primary.unit
    if criterion.margin_share is not None:
        return f"{percent(criterion.margin_share, decimals=0)} of the gain"
    return f"the margin of {criterion.margin:g} {unit}".rstrip()


def _some(arms: Sequence[str]) -> str:
    return names(arms) if len(arms) <= _MOST_NAMED else f"{len(arms)} arms"


def _reference(analysis: Analysis) -> str:
    assert analysis.reference is not None
    return analysis.reference.name
