"""Paired differences between an arm and its reference, and what they allow one to say.

All arms of a suite see the same batches and are scored on the same items, and runs with one seed start from
the same initialisation; so differences are taken per seed and item before anything is averaged. Runs of two
environments, on two base models or scored on other rows are not paired. What is left over is noise between seeds and
between items, and the interval is about new seeds and new items (`twoway`). Where scores were stored without
items it is about new seeds on these items, and says so (`covers_new_items`).

How a comparison gets its word is told in `verdicts`.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lorastudy.stats.comparison import Comparison, MoreSeeds, direction
from lorastudy.stats.environments import obstacle
from lorastudy.stats.items import ItemScores, ItemTable, paired_items
from lorastudy.stats.noninferiority import Losses, Retention, retention
from lorastudy.stats.power import MAX_SEEDS_NEEDED, Noise, seeds_needed
from lorastudy.stats.significance import (
    ALPHA,
    MIN_SEEDS,
    MIN_SEEDS_ONE_SIDED,
    Floats,
    holm,
    rejects,
    sign_flip_p,
    sign_flip_p_below,
)
from lorastudy.stats.splits import stored_split
from lorastudy.stats.study import Arm, Study
from lorastudy.stats.summary import Metric, arm_versions, run_seconds, scores_by_seed
from lorastudy.stats.trivial import gain_start
from lorastudy.stats.twoway import TwoWay, seeds_only, two_way
from lorastudy.stats.verdicts import Rules, differences_shown, no_worse_shown, word


def compare_with_reference(
    study: Study,
    *,
    arms: Sequence[Arm],
    reference: Arm,
    metric: Metric,
    items: ItemTable | None = None,
    rules: Rules | None = None,
) -> tuple[Comparison, ...]:
    """Each arm but the reference, with verdicts that hold for all of them together.

    `items` are the scores item by item; without them intervals are about the items that were scored.
    """
    rules = rules or Rules()
    others = [arm for arm in arms if arm.name != reference.name and arm.completed]
    raw = [
        _measure(study, pair=(arm, reference), metric=metric, items=items or {}, rules=rules)
        for arm in others
    ]
    tested = _with_what_is_shown([one for one in raw if one.estimate is not None], rules)
    by_arm = {one.arm: one for one in raw} | {one.arm: one for one in tested}
    judged = [_judge(by_arm[arm.name], rules=rules, family=len(tested)) for arm in others]
    num_open = sum(one.verdict == "cannot tell" and one.estimate is not None for one in judged)
    return tuple(
        _with_what_would_decide(one, pair=(arm, reference), num_open=max(1, num_open))
        for arm, one in zip(others, judged, strict=True)
    )


def paired_estimate(
    study: Study, *, pair: tuple[Arm, Arm], metric: Metric, items: ItemTable
) -> TwoWay | None:
    """The first arm minus the second with the parts of its variance; None where nothing can be tested."""
    return _measure(study, pair=pair, metric=metric, items=items, rules=Rules()).estimate


def _measure(
    study: Study, *, pair: tuple[Arm, Arm], metric: Metric, items: ItemTable, rules: Rules
) -> Comparison:
    arm, reference = pair
    ours, theirs = (scores_by_seed(one, study, metric=metric) for one in pair)
    runs = [{result.seed: result for result in one.completed} for one in pair]
    obstacles = {
        seed: obstacle(*(by_seed[seed] for by_seed in runs)) for seed in sorted(ours.keys() & theirs.keys())
    }
    apart = {seed: why for seed, why in obstacles.items() if why is not None}
    differences = {seed: ours[seed] - theirs[seed] for seed in obstacles if seed not in apart}
    values = list(differences.values())
    comparison = Comparison(
        arm=arm.name,
        reference=reference.name,
        metric=metric,
        differences=differences,
        seeds_apart=apart,
        mean=statistics.fmean(values) if values else None,
        sd=statistics.stdev(values) if len(values) > 1 else None,
        margin=rules.margin,
    )
    if comparison.sd is None or _is_rounding(comparison.sd, values):
        return _untestable(comparison, study, arms=pair)

    def items_of(side: int, scored: Metric) -> list[ItemScores | None]:
        split = stored_split(scored.split, study)
        return [items.get((runs[side][seed].experiment_id, split, scored.name)) for seed in differences]

    pairs = paired_items(items_of(0, metric), items_of(1, metric))
    estimate = (
        seeds_only(values)
        if pairs is None
        else two_way(pairs.differences, pairs.weights, groups=pairs.groups)
    )
    tested = _with_tests(comparison, estimate)
    if rules.margin_share is None:
        return tested if rules.margin is None else _with_margin(tested, estimate, margin=rules.margin)
    start = gain_start(study, reference, items=items)
    if start is None:
        return _with_share(tested, None)
    retained = retention(
        arm=Losses(by_seed=ours, items=items_of(0, metric)),
        reference=Losses(by_seed=theirs, items=items_of(1, metric)),
        start=Losses(by_seed=start.by_seed, items=[start.items.get(seed) for seed in differences]),
        seeds=list(differences),
        share=rules.margin_share,
    )
    return _with_share(tested, retained)


def _with_tests(comparison: Comparison, estimate: TwoWay) -> Comparison:
    low, high = estimate.interval()
    values = np.array(list(comparison.differences.values()))
    return replace(
        comparison,
        estimate=estimate,
        interval=(float(low), float(high)),
        t_p=float(estimate.p_value()),
        sign_flip_p=_number(sign_flip_p(values)),
    )


def _with_margin(tested: Comparison, estimate: TwoWay, *, margin: float) -> Comparison:
    """With the tests against a loss of a fixed margin."""
    sign, values = direction(tested.metric), np.array(list(tested.differences.values()))
    cost = replace(estimate, mean=sign * estimate.mean)
    return replace(
        tested,
        no_worse_p=float(cost.p_below(margin)),
        no_worse_sign_flip_p=_number(sign_flip_p_below(sign * values, margin)),
    )


def _with_share(tested: Comparison, retained: Retention | None) -> Comparison:
    """With the tests against a loss of a share of the gain, whose noise is in them; without a gain there are none."""
    if retained is None:
        return replace(tested, margin=None)
    return replace(
        tested,
        margin=retained.amount,
        kept=retained.estimate,
        no_worse_p=float(retained.estimate.p_below(0.0)),
        no_worse_sign_flip_p=_number(sign_flip_p_below(retained.by_seed, 0.0)),
    )


def _with_what_is_shown(tested: Sequence[Comparison], rules: Rules) -> list[Comparison]:
    """The comparisons with what their tests show, all of them taken together."""
    if not tested:
        return []
    t_ps, flips = _column(tested, "t_p"), _column(tested, "sign_flip_p")
    shown, adjusted = differences_shown(t_ps, flips), holm(t_ps)
    no_worse = _no_worse(tested, rules)
    return [
        replace(
            comparison,
            holm_p=float(adjusted[index]),
            difference_shown=bool(shown[index]),
            no_worse=comparison.arm in no_worse,
        )
        for index, comparison in enumerate(tested)
    ]


def _no_worse(tested: Sequence[Comparison], rules: Rules) -> frozenset[str]:
    """Names of the arms that are shown to be worse by less than the margin."""
    if rules.margin is None:
        return frozenset()
    by_arm = {comparison.arm: comparison for comparison in tested if comparison.no_worse_p is not None}
    family = _testable_ladder(by_arm, rules) if rules.ladder else list(by_arm.values())
    if not family:
        return frozenset()
    shown = no_worse_shown(
        _column(family, "no_worse_p"),
        _column(family, "no_worse_sign_flip_p"),
        in_sequence=bool(rules.ladder),
    )
    return frozenset(one.arm for one, passes in zip(family, shown, strict=True) if passes)


def _testable_ladder(by_arm: Mapping[str, Comparison], rules: Rules) -> list[Comparison]:
    """The ladder down to the first arm that cannot be tested or is blocked: there the sequence ends."""
    found = []
    for name in rules.ladder:
        if name not in by_arm or rules.blockers.get(name):
            break
        found.append(by_arm[name])
    return found


def _judge(comparison: Comparison, *, rules: Rules, family: int) -> Comparison:
    """The comparison with its word, and with the reason where nothing was shown."""
    blockers = [*rules.blockers.get(comparison.arm, ()), *rules.blockers.get(comparison.reference, ())]
    if blockers:
        why = "; ".join(dict.fromkeys(blocker.why for blocker in blockers))
        return replace(comparison, verdict="invalid", reason=why)
    if comparison.estimate is None or comparison.mean is None:
        return comparison
    arm_ahead = comparison.mean * direction(comparison.metric) < 0
    verdict = word(arm_ahead=arm_ahead, shown=comparison.difference_shown, no_worse=comparison.no_worse)
    if verdict == "cannot tell":
        return replace(comparison, verdict=verdict, reason=_why_open(comparison, family=family))
    ahead = comparison.arm if arm_ahead else comparison.reference
    is_untuned = not rules.untuned.isdisjoint({comparison.arm, comparison.reference})
    return replace(
        comparison,
        verdict="untuned" if is_untuned else verdict,
        ahead=ahead if verdict == "better" else None,
    )


def _why_open(comparison: Comparison, *, family: int) -> str:
    assert comparison.interval is not None
    low, high = comparison.interval
    if low <= 0 <= high:
        return "the interval contains 0"
    if comparison.n < MIN_SEEDS:
        # Before Holm: with so few seeds a study of fewer arms could not show it either.
        return f"{comparison.n} seeds are too few, six can show it"
    if not rejects(np.array(comparison.holm_p)):
        return f"not after correction for {family} comparisons"
    return "the exact sign-flip test does not reach .05"


def _with_what_would_decide(comparison: Comparison, *, pair: tuple[Arm, Arm], num_open: int) -> Comparison:
    """An open comparison with the seeds it lacks. The level is what Holm holds the open ones to."""
    if comparison.verdict != "cannot tell":
        return comparison
    per_seed = [run_seconds(arm) for arm in pair]
    seconds = None if None in per_seed else sum(value for value in per_seed if value is not None)

    def more(num_seeds: int, *, at_least: bool = False, num_items: int | None = None) -> Comparison:
        took = None if seconds is None else seconds * num_seeds
        lacks = MoreSeeds(num_seeds=num_seeds, at_least=at_least, seconds=took, num_items=num_items)
        return replace(comparison, more=lacks)

    if comparison.estimate is None:
        fewest = MIN_SEEDS if comparison.margin is None else MIN_SEEDS_ONE_SIDED
        return more(fewest - comparison.n, at_least=True) if comparison.n < 2 else comparison
    assert comparison.cost is not None
    needed = seeds_needed(
        comparison.cost,
        Noise.of(comparison.estimate),
        margin=comparison.margin,
        margin_noise=None if comparison.kept is None else Noise.of(comparison.kept),
        alpha=ALPHA / num_open,
    )
    if needed is None:
        why = f"even {MAX_SEEDS_NEEDED:,} seeds would not decide, if the difference is as observed"
        return replace(comparison, reason=why)
    # What was as likely as not to be found and was not takes at least one seed more.
    return more(max(1, needed.num_seeds - comparison.n), num_items=needed.num_items)


def _untestable(comparison: Comparison, study: Study, *, arms: tuple[Arm, Arm]) -> Comparison:
    """Without a spread over seeds: invalid where the runs do not compare, else open."""
    n = comparison.n
    if n == 0 and comparison.seeds_apart:
        return replace(comparison, verdict="invalid", reason=next(iter(comparison.seeds_apart.values())))
    if n == 0:
        versions = [arm_versions(arm, study, metric=comparison.metric) for arm in arms]
        if all(versions) and versions[0] != versions[1]:
            why = "measured by different versions of the metric"
            return replace(comparison, verdict="invalid", reason=why)
        return replace(comparison, reason="no seed in common")
    return replace(comparison, reason="one seed" if n == 1 else "every seed gave the same difference")


def _is_rounding(sd: float, values: Sequence[float]) -> bool:
    """Whether differences are equal but for rounding: then their spread says nothing about seeds."""
    return sd <= 1e-9 * max(map(abs, values), default=0.0)


def _column(comparisons: Sequence[Comparison], name: str) -> Floats:
    """One p value of each comparison; NaN where the test could not be made."""
    values = [getattr(comparison, name) for comparison in comparisons]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _number(value: Floats) -> float | None:
    return None if math.isnan(value) else float(value)
