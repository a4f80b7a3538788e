"""A rank ablation's questions: what rank does to accuracy, what it costs, where its returns diminish."""

import itertools

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Strong
from lorastudy.report.findings.wording import (
    KeyFinding,
    as_good_within_the_margin,
    change,
    cost_bounds,
    difference,
    difference_decimals,
    margin_words,
    measured_difference,
    on_how_many_seeds,
    other_accuracies,
    seen_but_not_shown,
    verdicts_by_word,
)
from lorastudy.report.numbers import (
    EQUAL_TIMES,
    count,
    decimals_for,
    duration,
    listing,
    number,
    percent,
    percent_more,
    signed,
    size,
)
from lorastudy.stats.comparison import leans
from lorastudy.stats.ranks import SHARE_KEPT, RankReturns
from lorastudy.stats.rate_choice import rates_of, tried_rates
from lorastudy.stats.study import StudyArm

_SHARE = percent(SHARE_KEPT, decimals=0)
QUESTION = "How does LoRA rank affect accuracy and memory, and where are the diminishing returns?"


def rank_findings(analysis: Analysis) -> tuple[KeyFinding, ...]:
    """Answers to the three questions, or that the runs cannot answer them."""
    return (
        KeyFinding(question="How does rank affect model accuracy?", answer=_accuracy(analysis)),
        KeyFinding(question="What is the memory overhead of higher ranks?", answer=(_memory(analysis),)),
        KeyFinding(question="Where are the diminishing returns?", answer=(_returns(analysis),)),
    )


def rank_headline(analysis: Analysis) -> str:
    """The answer in two sentences, or that there is none."""
    returns = analysis.returns
    if returns is None:
        others = " The others were stopped by racing." if analysis.study.pruned else ""
        return f"Fewer than two ranks completed with a seed in common, so ranks cannot be compared.{others}"
    return f"{_answer(analysis, returns)}{_scope(analysis, returns)}"


def _answer(analysis: Analysis, returns: RankReturns) -> str:
    if not _is_gain_shown(returns):
        return f"{_no_gain(returns)}.{_if_as_seen(returns)}"
    knee, largest = returns.knee, returns.ladder[-1]
    if knee.name == largest.name and analysis.smallest_no_worse is not None:
        # The margin is about another gain than the one between ranks, so that gain is not mentioned here.
        return f"{_sufficient(analysis, returns)} {_next_below(analysis, returns)}"
    if knee.name == largest.name:
        return f"{_largest_needed(returns)} {_next_below(analysis, returns)}"
    assert returns.kept_share is not None
    return (
        f"{_capital(_name(knee))} is the smallest rank that kept at least {_SHARE} "
        f"of the observed gain in {_metric(returns)} ({percent(returns.kept_share)} of what {_name(largest)} gained "
        f"over {_name(returns.ladder[0])}){_price(analysis, knee, largest=largest)}. "
        f"{_capital(_name(knee))} against {_name(largest)}: {_comparison(returns)}. "
        f"{_sufficiency(analysis, returns)}".rstrip()
    )


def _scope(analysis: Analysis, returns: RankReturns) -> str:
    """Which arms the answer is about, if not all."""
    text = {arm.name for rung in returns.ladder for arm in rates_of(analysis.study, rung)}
    if all(summary.arm.name in text for summary in analysis.completed):
        return ""
    apart = "rank" if max(returns.num_rates) == 1 else "rank and learning rate"
    return f" (This is about the arms that differ from {returns.ladder[-1].name} only in {apart}.)"


def _accuracy(analysis: Analysis) -> tuple[str | Strong, ...]:
    returns = analysis.returns
    if returns is None or analysis.reference is None:
        return ("Fewer than two ranks completed with a seed in common; these runs cannot answer this.",)
    first, last = (analysis.summary(arm.name) for arm in (returns.ladder[0], returns.ladder[-1]))
    losses = returns.means
    lower_is_better = returns.metric.lower_is_better
    steadily = all((later < earlier) == lower_is_better for earlier, later in itertools.pairwise(losses))
    went_well, go_well = ("fell", "fall") if lower_is_better else ("rose", "rise")
    shape = f"It {went_well} at every step up." if steadily else f"It did not {go_well} at every step up."
    went = (
        f"From {_name(returns.ladder[0])} to {_name(returns.ladder[-1])} the mean {_metric(returns)} went "
        f"{change(first, last, metric=returns.metric)}{_unit(returns)}. {shape}{other_accuracies(analysis, first=first, last=last)}"
        f" "
    )
    return (
        went,
        Strong(verdicts_by_word(analysis)),
        seen_but_not_shown(analysis.primary_comparisons),
    )


def _memory(analysis: Analysis) -> str:
    returns = analysis.returns
    if returns is None:
        return "Fewer than two ranks completed; these runs cannot answer this."
    small, large = (analysis.summary(arm.name).costs for arm in (returns.ladder[0], returns.ladder[-1]))
    sentences = []
    if small.peak_memory_bytes and large.peak_memory_bytes:
        low, high = small.peak_memory_bytes.median, large.peak_memory_bytes.median
        sentences.append(
            f"Training alone, {_name(returns.ladder[-1])} peaks at {size(high)} and {_name(returns.ladder[0])} "
            f"at {size(low)}, a difference of {size(high - low)} ({percent_more(high, low)})."
        )
    else:
        sentences.append("Peak memory was not measured.")
    if small.adapter_bytes and large.adapter_bytes:
        sizes = (size(small.adapter_bytes.median), size(large.adapter_bytes.median))
        sentences.append(f"The saved adapter grows from {sizes[0]} to {sizes[1]}.")
    if small.trainable_parameters and large.trainable_parameters:
        counts = (count(small.trainable_parameters.mean), count(large.trainable_parameters.mean))
        sentences.append(f"Trainable parameters grow from {counts[0]} to {counts[1]}.")
    if small.step_seconds and large.step_seconds:
        times = (duration(large.step_seconds.median), duration(small.step_seconds.median))
        sentences.append(
            f"A step alone takes {times[0]} for {_name(returns.ladder[-1])} and {times[1]} for "
            f"{_name(returns.ladder[0])}; {EQUAL_TIMES}."
        )
    return " ".join(sentences)


def _returns(analysis: Analysis) -> str:
    returns = analysis.returns
    if returns is None:
        return "Fewer than two ranks completed with a seed in common; these runs cannot answer this."
    if not _is_gain_shown(returns):
        none = (
            ""
            if leans(returns.whole_gain)
            else "; so there is no gain of which a smaller rank could keep a share"
        )
        return f"{_no_gain(returns)}{none}.{_if_as_seen(returns)}"
    assert returns.kept_share is not None
    steps = _steps(returns)
    if returns.knee_comparison is None:
        over = analysis.criterion.gain_over
        gains = f" This gain is between ranks; the margin is a share of the gain over {over}."
        two_gains = gains if analysis.criterion.margin_share is not None else ""
        return f"{steps} {_largest_needed(returns)}{two_gains}{_where(returns)}"
    return (
        f"{steps} {_capital(_name(returns.knee))} is the smallest rank that kept at least {_SHARE} of the gain from "
        f"{_name(returns.ladder[0])} to {_name(returns.ladder[-1])}: it kept {percent(returns.kept_share)}. Against "
        f"the largest: {_comparison(returns)}.{_room(returns)}{_where(returns)} {_sufficient(analysis, returns)}"
    )


def _sufficiency(analysis: Analysis, returns: RankReturns) -> str:
    """That no smaller rank is shown to be sufficient, if the suite set a margin. A sufficient one is recommended instead."""
    has_margin = analysis.criterion.margin is not None and analysis.smallest_sufficient is None
    return _sufficient(analysis, returns) if has_margin else ""


def _where(returns: RankReturns) -> str:
    """Between which ranks the returns diminish, over resamples of the seeds."""
    if returns.knee_interval is None:
        return ""
    low, high = returns.knee_interval
    if low.name == high.name:
        return f" The smallest rank to keep {_SHARE} of it is {_name(low)} in at least 95 % of resamples of the seeds."
    return (
        f" The smallest rank to keep {_SHARE} of it lies between {_name(low)} and {_name(high)} in 95 % of resamples of "
        "the seeds."
    )


def _sufficient(analysis: Analysis, returns: RankReturns) -> str:
    """The smallest rank shown to be as good as the largest within the margin, or why there is none."""
    largest = _name(returns.ladder[-1])
    if analysis.criterion.margin_lost is not None:
        return f"That a smaller rank is sufficient cannot be shown: {analysis.criterion.margin_lost}."
    if analysis.criterion.margin is None:
        return (
            "This is observed, not proven: that a smaller rank is sufficient can be shown only against a margin set "
            "before the run."
        )
    smallest = analysis.smallest_no_worse
    if smallest is None:
        return f"No smaller rank was shown to be as good as {largest} within the margin of {margin_words(analysis)}."
    within = as_good_within_the_margin(analysis, smallest.name)
    text = f"{_capital(_name(smallest))} is the smallest rank shown to be {within}, stepping down from the largest"
    if analysis.smallest_sufficient is None:
        return f"{text}; that is {tried_rates(analysis.study)}, and shows of no tuned rank that it is sufficient."
    return f"{text}."


def _steps(returns: RankReturns) -> str:
    """What each step up the ladder changed: the returns themselves."""
    losses = returns.means
    changes = [later - earlier for earlier, later in itertools.pairwise(losses)]
    decimals = decimals_for(map(abs, changes))
    ranks = [arm.settings["lora_rank"] for arm in returns.ladder]
    parts = (
        f"{signed(change, decimals)} ({low} to {high})"
        for change, (low, high) in zip(changes, itertools.pairwise(ranks), strict=True)
    )
    return (
        f"Step by step up the ranks the mean {_metric(returns)} changed by {listing(parts)}{_unit(returns)}."
    )


def _largest_needed(returns: RankReturns) -> str:
    """That no rank below the largest kept enough of the gain, with the share of the next one below."""
    smallest, below, largest = (returns.ladder[i] for i in (0, -2, -1))
    gain = returns.means[0] - returns.means[-1]
    kept = (returns.means[0] - returns.means[-2]) / gain
    shares = f"; {_name(below)} kept {percent(kept)}" if below.name != smallest.name else ""
    return (
        f"No smaller rank kept {_SHARE} of the gain in {_metric(returns)} from {_name(smallest)} to {_name(largest)}"
        f"{shares}."
    )


def _next_below(analysis: Analysis, returns: RankReturns) -> str:
    """The largest rank against the one below it."""
    below, largest = _name(returns.ladder[-2]), _name(returns.ladder[-1])
    comparison = analysis.comparison(returns.ladder[-2].name)
    assert comparison is not None
    return f"{_capital(below)} against {largest}: {difference(comparison)}."


def _is_gain_shown(returns: RankReturns) -> bool:
    """Whether a share of the gain means anything: shown between the ends, and there on the seeds all ranks share."""
    return returns.whole_gain.reference_is_ahead and returns.kept_share is not None


def _no_gain(returns: RankReturns) -> str:
    """That the largest rank was not shown to be better than the smallest, even if it looked better."""
    smallest, largest = _name(returns.ladder[0]), _name(returns.ladder[-1])
    gain = returns.whole_gain
    if gain.arm_is_ahead:
        return f"A larger rank did not help here: {smallest} against {largest} is {difference(gain)}"
    if gain.reference_is_ahead:
        text = f"{smallest} against {largest} is {difference(gain)}"
        return (
            f"Over the seeds that every rank completed a larger rank did not help, though {text} over theirs"
        )
    if leans(gain) and gain.mean is not None:
        assert gain.cost is not None
        ahead = largest if gain.cost > 0 else smallest
        return (
            f"{_capital(ahead)} had the better {_metric(returns)} {on_how_many_seeds(gain)} ({smallest} minus {largest}: "
            f"{measured_difference(gain)}), but that is not shown: {gain.reason}"
        )
    if gain.is_as_good:
        return f"Rank is not shown to matter by more than the margin: {smallest} against {largest} is {difference(gain)}"
    if not gain.is_valid:
        return f"Whether rank mattered here is not judged: {smallest} against {largest} is {difference(gain)}"
    return f"It is open whether rank mattered here: {smallest} against {largest} is {difference(gain)}"


def _if_as_seen(returns: RankReturns) -> str:
    """Where the returns of a gain that was seen but not shown diminished; else empty."""
    gain, knee = returns.whole_gain, returns.knee
    if not leans(gain) or returns.kept_share is None or gain.cost is None or gain.cost < 0:
        return ""
    if returns.knee_comparison is None:
        return f" If the gain is as seen, no smaller rank kept {_SHARE} of it."
    return (
        f" If the gain is as seen, {_name(knee)} is the smallest rank that kept at least {_SHARE} of it "
        f"({percent(returns.kept_share)})."
    )


def _comparison(returns: RankReturns) -> str:
    assert returns.knee_comparison is not None
    return difference(returns.knee_comparison)


def _room(returns: RankReturns) -> str:
    """What the interval leaves open, if knee and largest rank have the verdict "cannot tell"."""
    comparison = returns.knee_comparison
    if comparison is None or comparison.interval is None or comparison.verdict != "cannot tell":
        return ""
    worst = cost_bounds(comparison)[1]
    side = "higher" if returns.metric.lower_is_better else "lower"
    return (
        f" The interval leaves room for a {_metric(returns)} up to {number(worst, difference_decimals(comparison))} {side}."
        if worst > 0
        else ""
    )


def _price(analysis: Analysis, knee: StudyArm, *, largest: StudyArm) -> str:
    """What the smaller rank saves, if that was measured."""
    ours, theirs = (analysis.summary(arm.name).costs.adapter_bytes for arm in (knee, largest))
    if not ours or not theirs or theirs.mean == 0:
        return ""
    return f", with an adapter of {percent(ours.mean / theirs.mean, decimals=0)} of its size"


def _metric(returns: RankReturns) -> str:
    return returns.metric.title.lower()


def _unit(returns: RankReturns) -> str:
    return f" {returns.metric.unit}" if returns.metric.unit else ""


def _name(arm: StudyArm) -> str:
    return f"rank {arm.settings['lora_rank']}" + ("" if _says_rank(arm) else f" ({arm.name})")


def _capital(text: str) -> str:
    """With a capital first letter; the rest may be a user's name and stays as it is."""
    return text[:1].upper() + text[1:]


def _says_rank(arm: StudyArm) -> bool:
    """Whether the arm's name is its rank in so many letters: `r16`, `rank_16`, `rank_ablation_r16`."""
    rank = arm.settings["lora_rank"]
    return arm.name.lower().removeprefix("rank_ablation_") in {
        f"r{rank}",
        f"rank{rank}",
        f"rank_{rank}",
        f"rank-{rank}",
        f"r_{rank}",
        str(rank),
    }
