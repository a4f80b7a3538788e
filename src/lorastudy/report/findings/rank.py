"""A rank ablation's questions: what rank does to accuracy, what it costs, where its returns diminish."""

import itertools

from lorastudy.analysis.overview import Analysis
from lorastudy.analysis.ranks import SHARE_KEPT, RankReturns
from lorastudy.analysis.study import Arm
from lorastudy.analysis.summary import LOSS
from lorastudy.report.document import Strong
from lorastudy.report.findings.wording import (
    Finding,
    change,
    difference,
    difference_decimals,
    more,
    other_accuracies,
    verdicts_by_word,
)
from lorastudy.report.numbers import count, number, percent, percent_more, size

QUESTION = "How does LoRA rank affect accuracy and memory, and where are the diminishing returns?"


def rank_findings(analysis: Analysis) -> tuple[Finding, ...]:
    """Answers to the three questions; each says so where the runs cannot answer it."""
    return (
        Finding(question="How does rank affect model accuracy?", answer=_accuracy(analysis)),
        Finding(question="What is the memory overhead of higher ranks?", answer=(_memory(analysis),)),
        Finding(question="Where are the diminishing returns?", answer=(_returns(analysis),)),
    )


def rank_headline(analysis: Analysis) -> str:
    """The answer in two sentences, or that there is none."""
    returns = analysis.returns
    if returns is None:
        return "Fewer than two ranks completed with a seed in common, so ranks cannot be compared."
    scope = ""
    if len(returns.ladder) < len(analysis.completed):
        scope = f" (This is about the arms that differ from {returns.ladder[-1].name} in nothing but rank.)"
    return f"{_answer(analysis, returns)}{scope}"


def _answer(analysis: Analysis, returns: RankReturns) -> str:
    if returns.whole_gain.verdict != "worse":
        return f"{_no_gain(returns)}."
    knee, largest = returns.knee, returns.ladder[-1]
    if knee.name == largest.name:
        return (
            f"No smaller rank kept {percent(SHARE_KEPT, decimals=0)} of the gain in held-out loss: of the ranks "
            f"tried, {_name(largest)} is the one to use, and a larger one was not tried."
        )
    assert returns.kept_share is not None
    return (
        f"{_capital(_name(knee))} is the smallest rank that kept at least {percent(SHARE_KEPT, decimals=0)} "
        f"of the observed gain in held-out loss ({percent(returns.kept_share)} of what {_name(largest)} gained "
        f"over {_name(returns.ladder[0])}){_price(analysis, knee, largest)}. "
        f"{_capital(_name(knee))} against {_name(largest)}: {_comparison(returns)}. {_advice(returns)}"
    )


def _accuracy(analysis: Analysis) -> tuple[str | Strong, ...]:
    returns = analysis.returns
    if returns is None or analysis.reference is None:
        return ("Fewer than two ranks completed with a seed in common; these runs cannot answer this.",)
    first, last = (analysis.summary(arm.name) for arm in (returns.ladder[0], returns.ladder[-1]))
    losses = returns.mean_losses
    falls = all(later < earlier for earlier, later in itertools.pairwise(losses))
    shape = "It fell at every step up." if falls else "It did not fall at every step up."
    went = (
        f"From {_name(returns.ladder[0])} to {_name(returns.ladder[-1])} the mean held-out loss went "
        f"{change(first, last, LOSS)} nats per token. {shape}{other_accuracies(first, last)} "
    )
    return (
        went,
        Strong(verdicts_by_word(analysis.comparisons[LOSS.key], analysis.reference)),
    )


def _memory(analysis: Analysis) -> str:
    returns = analysis.returns
    if returns is None:
        return "Fewer than two ranks completed; these runs cannot answer this."
    small, large = (analysis.summary(arm.name).costs for arm in (returns.ladder[0], returns.ladder[-1]))
    sentences = []
    if small.peak_memory_bytes and large.peak_memory_bytes:
        low, high = small.peak_memory_bytes.mean, large.peak_memory_bytes.mean
        sentences.append(
            f"Training alone, {_name(returns.ladder[-1])} peaks at {size(high)} and {_name(returns.ladder[0])} "
            f"at {size(low)}, a difference of {size(high - low)} ({percent_more(high, low)})."
        )
    else:
        sentences.append("Peak memory was not measured.")
    if small.adapter_bytes and large.adapter_bytes:
        sizes = (size(small.adapter_bytes.mean), size(large.adapter_bytes.mean))
        sentences.append(f"The saved adapter grows from {sizes[0]} to {sizes[1]}.")
    if small.trainable_parameters and large.trainable_parameters:
        counts = (count(small.trainable_parameters.mean), count(large.trainable_parameters.mean))
        sentences.append(f"Trainable parameters grow from {counts[0]} to {counts[1]}.")
    slower = more(large.step_seconds, small.step_seconds)
    if slower:
        sentences.append(f"A step of the largest rank alone differs by {slower} in time.")
    return " ".join(sentences)


def _returns(analysis: Analysis) -> str:
    returns = analysis.returns
    if returns is None:
        return "Fewer than two ranks completed with a seed in common; these runs cannot answer this."
    if returns.whole_gain.verdict != "worse":
        return f"{_no_gain(returns)}; so there is no gain of which a smaller rank could keep a share."
    assert returns.kept_share is not None
    observed = (
        f"{_capital(_name(returns.knee))} is the smallest rank that kept at least "
        f"{percent(SHARE_KEPT, decimals=0)} of the gain from {_name(returns.ladder[0])} to "
        f"{_name(returns.ladder[-1])}: it kept {percent(returns.kept_share)}."
    )
    if returns.knee_comparison is None:
        return f"{observed} Returns had not diminished at the largest rank tried."
    return (
        f"{observed} Against the largest: {_comparison(returns)}.{_room(returns)} This is observed, not proven: "
        "that a smaller rank is sufficient can be shown only against a margin set before the run."
    )


def _no_gain(returns: RankReturns) -> str:
    """That the largest rank was not shown to be better than the smallest."""
    smallest, largest = _name(returns.ladder[0]), _name(returns.ladder[-1])
    told = f"{smallest} against {largest} is {difference(returns.whole_gain)}"
    if returns.whole_gain.verdict == "better":
        return f"A larger rank did not help here: {told}"
    return f"It cannot be told that rank mattered here: {told}"


def _comparison(returns: RankReturns) -> str:
    assert returns.knee_comparison is not None
    return difference(returns.knee_comparison)


def _advice(returns: RankReturns) -> str:
    """What to do with it. "Cannot tell" is no proof of equality, so the advice says where to start."""
    knee, largest = _name(returns.knee), _name(returns.ladder[-1])
    comparison = returns.knee_comparison
    assert comparison is not None
    if comparison.verdict == "worse" and comparison.mean is not None:
        cost = number(comparison.mean, difference_decimals(comparison))
        return f"So {largest} is the more accurate, and {knee} the cheaper choice where a loss {cost} higher is acceptable."
    return f"So {knee} is the one to start with; these runs give no reason to pay for {largest}."


def _room(returns: RankReturns) -> str:
    """What the interval leaves open, for a knee that could not be told from the largest rank."""
    comparison = returns.knee_comparison
    if comparison is None or comparison.interval is None or comparison.verdict != "cannot tell":
        return ""
    worst = comparison.interval[1]
    return (
        f" The interval leaves room for a loss up to {number(worst, difference_decimals(comparison))} higher."
        if worst > 0
        else ""
    )


def _price(analysis: Analysis, knee: Arm, largest: Arm) -> str:
    """What the smaller rank saves, where that was measured."""
    ours, theirs = (analysis.summary(arm.name).costs.adapter_bytes for arm in (knee, largest))
    if not ours or not theirs or theirs.mean == 0:
        return ""
    return f", with an adapter of {percent(ours.mean / theirs.mean, decimals=0)} of its size"


def _name(arm: Arm) -> str:
    return f"rank {arm.settings['lora_rank']}" + ("" if _says_rank(arm) else f" ({arm.name})")


def _capital(text: str) -> str:
    """With a capital first letter; the rest may be a user's name and stays as it is."""
    return text[:1].upper() + text[1:]


def _says_rank(arm: Arm) -> bool:
    """Whether the arm's name is its rank in so many letters: `r16`, `rank_16`, `rank16`."""
    rank = arm.settings["lora_rank"]
    return arm.name.lower() in {
        f"r{rank}",
        f"rank{rank}",
        f"rank_{rank}",
        f"rank-{rank}",
        f"r_{rank}",
        str(rank),
    }
