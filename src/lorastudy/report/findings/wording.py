"""How comparisons are put into words, so that no sentence claims more than its interval allows."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Text
from lorastudy.report.numbers import (
    decimals_for,
    duration,
    interval,
    listing,
    mean_sd,
    names,
    p_value,
    plural,
    signed,
)
from lorastudy.stats.comparison import Comparison, MoreSeeds, leans
from lorastudy.stats.rate_choice import tried_rates
from lorastudy.stats.study import stored_split
from lorastudy.stats.summary import ArmSummary, Metric
from lorastudy.stats.verdicts import smallest_sign_flip_p
from lorastudy.suite.question import MIN_SEEDS

#: Follows comparisons with an arm other than the reference: their verdicts would be tests that nobody corrected for.
NO_VERDICT = "(These differences are not among the corrected comparisons with the reference, so they have no verdicts.)"


@dataclass(frozen=True, kw_only=True)
class KeyFinding:
    """A key question of the experiment type, and its answer."""

    question: str
    answer: Text


def verdict(comparison: Comparison) -> str:
    """The verdict with its reason: `r64 is better`, `cannot tell (needs about 4 more seeds: 12.0 min)`."""
    if comparison.verdict == "cannot tell" and comparison.more is not None:
        text = f"cannot tell (needs {more_seeds(comparison.more)})"
    else:
        text = (
            comparison.verdict_words
            if comparison.reason is None
            else f"{comparison.verdict_words} ({comparison.reason})"
        )
    missing = [one.words for one in comparison.diverged if one.words not in text]
    return "; ".join([text, *missing])


def more_seeds(more: MoreSeeds) -> str:
    """`about 4 more seeds: 12.0 min`; the time is that of the two arms."""
    return str(more) if more.seconds is None else f"{more}: {duration(more.seconds)}"


def difference_decimals(comparison: Comparison) -> int:
    """Decimals that show half the interval's width with two digits, and the margin too."""
    if comparison.interval is None:
        return 4
    half_width = (comparison.interval[1] - comparison.interval[0]) / 2
    of_margin = 0 if comparison.margin is None else decimals_for([comparison.margin])
    return max(of_margin, decimals_for([half_width]))


def difference(comparison: Comparison) -> str:
    """`+0.12 nats per token, 95 % interval [0.10, 0.14], n = 6: worse`."""
    if comparison.mean is None:
        return verdict(comparison)
    return f"{measured_difference(comparison)}: {verdict(comparison)}"


def measured_difference(comparison: Comparison) -> str:
    """`+0.12 nats per token, 95 % interval [0.10, 0.14], n = 6`: a difference without its verdict."""
    assert comparison.mean is not None
    decimals = difference_decimals(comparison)
    unit = f" {comparison.metric.unit}" if comparison.metric.unit else ""
    bounds = f", 95 % interval {interval(comparison.interval, decimals)}" if comparison.interval else ""
    return f"{signed(comparison.mean, decimals)}{unit}{bounds}, n = {comparison.n}"


def difference_in_words(comparison: Comparison) -> str:
    """`r=16 minus r=4 is +0.12 nats per token, 95 % interval [0.10, 0.14], over 6 seeds`."""
    assert comparison.mean is not None
    measured, _, _ = measured_difference(comparison).rpartition(", n = ")
    seeds = plural(comparison.n, "seed")
    return f"{comparison.arm} minus {comparison.reference} is {measured}, over {seeds}"


def least_needed(comparisons: Sequence[Comparison]) -> Comparison | None:
    """The open comparison that needs the fewest more seeds."""
    lacking = [one for one in comparisons if one.verdict == "cannot tell" and one.more is not None]
    return min(lacking, key=lambda one: one.more.num_seeds if one.more else 0, default=None)


def without_verdict(comparison: Comparison) -> str:
    """The difference as measured, or why there is none."""
    return verdict(comparison) if comparison.mean is None else measured_difference(comparison)


def on_how_many_seeds(comparison: Comparison) -> str:
    """`on every seed` or `on 5 of 6 seeds`: where the difference has the sign of its mean."""
    assert comparison.mean is not None
    same = sum(value * comparison.mean > 0 for value in comparison.differences.values())
    return "on every seed" if same == comparison.n else f"on {same} of {comparison.n} seeds"


def score(summary: ArmSummary, metric: Metric, *, alongside: Iterable[ArmSummary]) -> str:
    """The metric's mean and sd, with decimals that suit all arms beside it."""
    spreads = [one.score(metric) for one in (summary, *alongside)]
    return mean_sd(summary.score(metric), decimals_for(spread.sd for spread in spreads if spread))


def change(first: ArmSummary, last: ArmSummary, *, metric: Metric) -> str | None:
    """`from 1.20 ± 0.02 to 0.80 ± 0.01`; None if either was not measured."""
    if first.score(metric) is None or last.score(metric) is None:
        return None
    return f"from {score(first, metric, alongside=[last])} to {score(last, metric, alongside=[first])}"


def other_accuracies(analysis: Analysis, *, first: ArmSummary, last: ArmSummary) -> str:
    """A sentence about the metrics beside the primary one; empty if none was measured."""
    others = [metric for metric in analysis.criterion.compared_metrics if metric != analysis.primary]
    changes = [(metric, change(first, last, metric=metric)) for metric in others]
    parts = [f"{metric.title.lower()} went {text}" for metric, text in changes if text]
    return f" At the same time {listing(parts)}." if parts else ""


def as_good_within_the_margin(analysis: Analysis, arm: str) -> str:
    """`as good as r64 within the margin of 0.1 nats per token`, and what else is shown of the arm."""
    assert analysis.reference is not None
    comparison = analysis.comparison(arm)
    more = ""
    if comparison is not None and comparison.arm_is_ahead:
        is_untuned = comparison.verdict == "untuned"
        more = f", and to be {'ahead of' if is_untuned else 'better than'} it"
    return f"as good as {analysis.reference.name} within the margin of {margin_words(analysis)}{more}"


def when_stated(stated_at: str, num_completed: int) -> str:
    """`2026-01-02 12:00 UTC, before any result`, or `..., when 6 results already existed`."""
    at = f"{datetime.fromisoformat(stated_at):%Y-%m-%d %H:%M} UTC"
    if not num_completed:
        return f"{at}, before any result"
    return f"{at}, when {'1 result' if num_completed == 1 else f'{num_completed} results'} already existed"


def margin_was_set(analysis: Analysis) -> str:
    """`set before the run`, or that it was not: `as changed on 2026-01-02 12:00 UTC, when 6 results already existed`."""
    late = analysis.criterion.late_by_key.get("margin")
    if late is None:
        return "set before the run"
    how = "set" if late.first is None else "as changed"
    return f"{how} on {when_stated(late.stated_at, late.num_completed)}"


def margin_words(analysis: Analysis) -> str:
    """`0.1 nats per token`, or `2 % of the reference's gain over the base model, 0.04 nats [...]`; `none` without one."""
    return analysis.criterion.margin_words(analysis.primary.unit)


def rows_that_belong_together(comparisons: Sequence[Comparison]) -> str:
    """`, of which 120 rows count as 24, since rows of one prompt are not independent evidence`; empty if all are."""
    counted = {
        (one.estimate.num_items, one.estimate.num_groups) for one in comparisons if one.estimate is not None
    }
    if len(counted) != 1:
        return ""
    ((num_items, num_groups),) = counted
    if num_items is None or num_groups is None or num_groups == num_items:
        return ""
    return f", of which {num_items:,} rows count as {num_groups:,}, since rows of one prompt are not independent evidence"


def why_these_items_alone(analysis: Analysis) -> str:
    """Why the intervals do not include the noise between items."""
    compared = {comparison.arm for comparison in analysis.primary_comparisons}
    scored = {
        score.num_items
        for arm in analysis.study.reported_arms
        if arm is analysis.reference or arm.name in compared
        for run in arm.completed
        if (score := run.scores.get((stored_split("eval", analysis.study), analysis.primary.name)))
    }
    if scored == {1}:
        return "only one row is scored"
    return "scores by item are not stored for all arms"


def verdicts_by_word(analysis: Analysis) -> str:
    """Which arms got which verdict; for untuned arms also that none is called better."""
    text = verdict_summary(analysis)
    if text and any(comparison.verdict == "untuned" for comparison in analysis.primary_comparisons):
        return f"{text} No arm is called better: none had its learning rate tuned."
    return text


def verdict_summary(analysis: Analysis) -> str:
    """Which arms got which verdict: `Held-out loss: r64 is better than r4 and r8; cannot tell r32 from r64`.

    For untuned arms: `Held-out loss, at the one learning rate that was tried (0.0002): r64 was ahead of r4 and r8.`
    """
    comparisons, reference = analysis.primary_comparisons, analysis.reference
    assert reference is not None
    text = verdict_clauses(comparisons, reference=reference.name, margin=margin_words(analysis))
    is_untuned = any(comparison.verdict == "untuned" for comparison in comparisons)
    rates = f", {tried_rates(analysis.study)}" if is_untuned else ""
    return f"{comparisons[0].metric.title}{rates}: {text}." if text else ""


def verdict_clauses(comparisons: Sequence[Comparison], *, reference: str, margin: str) -> str:
    """Which arms got which verdict, as one sentence without its full stop."""
    ahead = [comparison.arm for comparison in comparisons if comparison.arm_is_ahead]
    behind = [comparison.arm for comparison in comparisons if comparison.reference_is_ahead]
    as_good = [comparison.arm for comparison in comparisons if comparison.is_as_good]
    is_open = [comparison.arm for comparison in comparisons if comparison.verdict == "cannot tell"]
    invalid = [f"{c.arm} ({c.reason})" for c in comparisons if c.verdict == "invalid"]
    rates = {one.arm: one.rate for comparison in comparisons for one in comparison.diverged}

    def named(arms: Sequence[str]) -> str:
        if rates.keys().isdisjoint(arms):
            return names(arms)
        return listing(f"{names([arm])} ({rates[arm]})" if arm in rates else names([arm]) for arm in arms)

    own = named([reference])
    is_untuned = any(comparison.verdict == "untuned" for comparison in comparisons)
    one, many, than = ("was", "were each", "ahead of") if is_untuned else ("is", "are each", "better than")
    parts = [
        f"{named(ahead)} {one if len(ahead) == 1 else many} {than} {own}" if ahead else "",
        f"{own} {one} {than} {named(behind)}" if behind else "",
        f"{named(as_good)} {one if len(as_good) == 1 else many} as good as {own} within the margin of {margin}"
        if as_good
        else "",
        f"cannot tell {named(is_open)} from {own}" if is_open else "",
        f"invalid for {listing(invalid)}" if invalid else "",
    ]
    return "; ".join(part for part in parts if part)


def seen_but_not_shown(comparisons: Sequence[Comparison]) -> str:
    """The differences whose interval excludes 0 although the verdict is open, with the reason; empty without one.

    ` Seen but not shown (3 seeds are too few, six can show it): mlp -0.30 [-0.33, -0.27] nats per token.`
    """
    by_reason: dict[str | None, list[str]] = {}
    for comparison in filter(leans, comparisons):
        assert comparison.mean is not None
        decimals = difference_decimals(comparison)
        unit = f" {comparison.metric.unit}" if comparison.metric.unit else ""
        text = f"{signed(comparison.mean, decimals)} {interval(comparison.interval, decimals)}{unit}"
        by_reason.setdefault(comparison.reason, []).append(f"{comparison.arm} {text}")
    return "".join(f" Seen but not shown ({reason}): {listing(seen)}." for reason, seen in by_reason.items())


def cost_bounds(comparison: Comparison) -> tuple[float, float]:
    """The interval as a cost: above 0 is worse. Infinite on both sides if there is none."""
    low, high = comparison.interval or (-math.inf, math.inf)
    return (low, high) if comparison.metric.lower_is_better else (-high, -low)


def what_seeds_can_show(analysis: Analysis) -> str:
    """What few seeds can show at best; empty for many seeds, and if no two arms share one."""
    comparisons = analysis.primary_comparisons
    n = max((comparison.n for comparison in comparisons), default=0)
    if n == 0:
        return ""
    if n == 1:
        return (
            "With one seed no difference can be separated from the noise between seeds, so every verdict is open. "
            "Two seeds give an interval; it takes six to show a difference."
        )
    return _limit_of(n)


def _limit_of(num_seeds: int) -> str:
    """What two or more seeds can show at best."""
    least = p_value(smallest_sign_flip_p(num_seeds))
    if num_seeds < MIN_SEEDS:
        return (
            f"With {num_seeds} seeds the exact sign-flip p cannot fall below {least}, so no difference can be "
            "shown, however large; six seeds can show one. The intervals, which assume roughly normal noise "
            "between seeds, show how large it may be."
        )
    return (
        f"With {num_seeds} seeds a difference can be shown only if every seed points the same way (exact sign-flip p {least})."
        if num_seeds == MIN_SEEDS
        else ""
    )
