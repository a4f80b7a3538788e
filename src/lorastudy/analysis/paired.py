"""Paired differences between an arm and its reference, and what they allow one to say.

All arms of a suite see the same batches and are scored on the same items, and runs with one seed start from
the same initialisation; so differences are taken per seed before anything is averaged. Runs of two environments,
on two base models or scored on other rows are not paired. What is left over is the noise between seeds. The noise
between held-out items is *not* in these intervals: a verdict is about these items.

A verdict needs two tests. The paired t test, Holm-corrected over the comparisons with one reference: the
chance that any of them says "better" or "worse" without cause is at most 5 %, if the differences are roughly
normal. And the exact sign-flip test of that comparison, which needs no such assumption: with few seeds
normality cannot be checked, and two lucky seeds make a tiny t interval. The latter cannot go below 2 / 2**n,
so it takes six seeds to say anything; with fewer, intervals are shown and the verdict is "cannot tell".
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special  # not `stats`, which takes half a second to import

from lorastudy.analysis.environments import obstacle
from lorastudy.analysis.study import Arm, Study
from lorastudy.analysis.summary import Metric, scores_by_seed

Verdict = Literal["better", "worse", "cannot tell"]

ALPHA = 0.05
#: More seeds than this make 2**n sign patterns too many to list; the t test serves alone.
MAX_SIGN_FLIP_SEEDS = 22
#: The fewest seeds with which the sign-flip test can reach .05: 2 / 2**6 = .031, 2 / 2**5 = .063.
MIN_SEEDS = 6
MAX_SEEDS_NEEDED = 1000
#: Smallest |mean| / sd that both tests find four times in five with so many seeds, where the sign-flip test still
#: costs power beside the t test. Simulated, 200,000 studies each; with more than ten seeds the two agree within .01.
_EFFECT_FOUND_BY_BOTH = {6: 1.80, 7: 1.36, 8: 1.21, 9: 1.10, 10: 1.02}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against the reference on one metric. `differences` is arm minus reference, by seed.

    Whatever a single seed cannot give is None. `reason` says why the verdict is "cannot tell".
    """

    arm: str
    reference: str
    metric: Metric
    differences: Mapping[int, float]
    seeds_apart: Mapping[int, str]
    """Seeds left out because the two runs cannot be compared, and why: environment, base model or rows differ."""
    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None
    """95 % t interval of the mean difference, over seeds."""
    t_p: float | None
    holm_p: float | None
    sign_flip_p: float | None
    verdict: Verdict
    reason: str | None

    @property
    def n(self) -> int:
        """Number of seeds that both arms completed."""
        return len(self.differences)


def compare_with_reference(
    study: Study, *, arms: Sequence[Arm], reference: Arm, metric: Metric
) -> tuple[Comparison, ...]:
    """Each arm but the reference, with verdicts that hold for all of them together (Holm)."""
    others = [arm for arm in arms if arm.name != reference.name and arm.completed]
    raw = [_compare(study, arm=arm, reference=reference, metric=metric) for arm in others]
    tested = [comparison for comparison in raw if comparison.t_p is not None]
    adjusted = holm([comparison.t_p for comparison in tested if comparison.t_p is not None])
    holm_ps = {comparison.arm: p for comparison, p in zip(tested, adjusted, strict=True)}
    return tuple(
        _judge(comparison, holm_p=holm_ps.get(comparison.arm), family=len(tested)) for comparison in raw
    )


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Exact two-sided p: the share of all 2**n sign patterns whose |sum| is at least the observed one.

    Equal to `scipy.stats.permutation_test(..., permutation_type="samples")` when that enumerates. None beyond
    `MAX_SIGN_FLIP_SEEDS` seeds.
    """
    if not differences or len(differences) > MAX_SIGN_FLIP_SEEDS:
        return None
    # By symmetry the first sign may stay fixed; each further difference doubles the list of sums.
    sums = np.array([differences[0]])
    for difference in differences[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    observed = abs(math.fsum(differences))
    tolerance = 1e-12 * math.fsum(map(abs, differences))
    return float(np.mean(np.abs(sums) >= observed - tolerance))


def smallest_sign_flip_p(num_seeds: int) -> float:
    """What `num_seeds` seeds can show at best: both all-plus and all-minus count, 2 of 2**n patterns."""
    return min(1.0, 2.0 ** (1 - num_seeds))


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean, mean -+ t(.975, n - 1) sd / sqrt(n); needs two differences."""
    mean, sd = statistics.fmean(differences), statistics.stdev(differences)
    half = float(special.stdtrit(len(differences) - 1, 1 - ALPHA / 2)) * sd / math.sqrt(len(differences))
    return (mean - half, mean + half)


def t_test_p(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test; needs two differences that are not equal.

    Equal to `scipy.stats.ttest_1samp(differences, 0).pvalue`, without its millisecond of overhead.
    """
    n = len(differences)
    t = abs(statistics.fmean(differences)) / statistics.stdev(differences) * math.sqrt(n)
    return 2 * float(special.stdtr(n - 1, -t))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given; equal to R's `p.adjust(p, "holm")`."""
    adjusted, running = [0.0] * len(ps), 0.0
    for position, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        running = max(running, min(1.0, (len(ps) - position) * ps[index]))
        adjusted[index] = running
    return adjusted


def leans(comparison: Comparison) -> bool:
    """Whether a difference was seen but not shown: the interval excludes 0, and yet the verdict is open."""
    if comparison.interval is None or comparison.verdict != "cannot tell":
        return False
    low, high = comparison.interval
    return low > 0 or high < 0


def seeds_needed(mean: float, sd: float) -> int | None:
    """Seeds with which both tests find this difference four times in five, if it is as observed; never below six.

    One comparison, without correction. Up to ten seeds from a simulation of both tests, beyond that the power of
    the t test from the noncentral t distribution, as `statsmodels.stats.power.TTestPower`. None when it would
    take more than a thousand.
    """
    if mean == 0 or sd == 0:
        return None
    effect = abs(mean) / sd
    for num_seeds, enough in _EFFECT_FOUND_BY_BOTH.items():
        if effect >= enough:
            return num_seeds
    sizes = np.arange(max(_EFFECT_FOUND_BY_BOTH) + 1, MAX_SEEDS_NEEDED + 1)
    critical = special.stdtrit(sizes - 1, 1 - ALPHA / 2)
    power = 1 - special.nctdtr(sizes - 1, effect * np.sqrt(sizes), critical)
    found = np.flatnonzero(power >= 0.8)
    return int(sizes[found[0]]) if found.size else None


def _compare(study: Study, *, arm: Arm, reference: Arm, metric: Metric) -> Comparison:
    ours, theirs = (scores_by_seed(one, study, metric=metric) for one in (arm, reference))
    runs = [{result.seed: result for result in one.completed} for one in (arm, reference)]
    obstacles = {
        seed: obstacle(*(by_seed[seed] for by_seed in runs)) for seed in sorted(ours.keys() & theirs.keys())
    }
    apart = {seed: why for seed, why in obstacles.items() if why is not None}
    differences = {seed: ours[seed] - theirs[seed] for seed in obstacles if seed not in apart}
    values = list(differences.values())
    sd = statistics.stdev(values) if len(values) > 1 else None
    testable = sd is not None and not _is_rounding(sd, values)
    return Comparison(
        arm=arm.name,
        reference=reference.name,
        metric=metric,
        differences=differences,
        seeds_apart=apart,
        mean=statistics.fmean(values) if values else None,
        sd=sd,
        interval=t_interval(values) if testable else None,
        t_p=t_test_p(values) if testable else None,
        holm_p=None,
        sign_flip_p=sign_flip_p(values) if testable else None,
        verdict="cannot tell",
        reason=None if testable else _why_untestable(values, apart=apart),
    )


def _is_rounding(sd: float, values: Sequence[float]) -> bool:
    """Whether differences are equal but for rounding: then their spread says nothing about seeds."""
    return sd <= 1e-9 * max(map(abs, values), default=0.0)


def _why_untestable(values: Sequence[float], *, apart: Mapping[int, str]) -> str:
    if not values:
        return next(iter(apart.values()), "no seed in common")
    if len(values) == 1:
        return "one seed"
    return "every seed gave the same difference"


def _judge(comparison: Comparison, *, holm_p: float | None, family: int) -> Comparison:
    if comparison.interval is None or comparison.mean is None or holm_p is None:
        return comparison
    low, high = comparison.interval
    good = (comparison.mean < 0) == comparison.metric.lower_is_better
    if low <= 0 <= high:
        reason = "the interval contains 0"
    elif comparison.n < MIN_SEEDS:
        # Before Holm: with so few seeds a study of fewer arms could not show it either.
        reason = f"{comparison.n} seeds are too few, six can show it"
    elif holm_p > ALPHA:
        reason = f"not after correction for {family} comparisons"
    elif comparison.sign_flip_p is not None and comparison.sign_flip_p > ALPHA:
        reason = "the exact sign-flip test does not reach .05"
    else:
        return replace(comparison, holm_p=holm_p, verdict="better" if good else "worse", reason=None)
    return replace(comparison, holm_p=holm_p, reason=reason)
