"""Paired differences between an arm and its reference, and what they allow one to say.

All arms of a suite see the same batches and are scored on the same items, and runs with one seed start from
the same initialisation; so differences are taken per seed before anything is averaged. What is left over is
the noise between seeds. The noise between held-out items is *not* in these intervals: a verdict is about
these items.

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
from scipy import stats

from lorastudy.analysis.environments import comparable
from lorastudy.analysis.study import Arm, Study
from lorastudy.analysis.summary import Metric, scores_by_seed

Verdict = Literal["better", "worse", "cannot tell"]

ALPHA = 0.05
#: More seeds than this make 2**n sign patterns too many to list; the t interval serves alone.
MAX_SIGN_FLIP_SEEDS = 22
MAX_SEEDS_NEEDED = 1000


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm against the reference on one metric. `differences` is arm minus reference, by seed.

    Whatever a single seed cannot give is None. `reason` says why the verdict is "cannot tell".
    """

    arm: str
    reference: str
    metric: Metric
    differences: Mapping[int, float]
    seeds_apart: tuple[int, ...]
    """Seeds left out because the two runs had environments that are not comparable."""
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
    half = float(stats.t.ppf(1 - ALPHA / 2, len(differences) - 1)) * sd / math.sqrt(len(differences))
    return (mean - half, mean + half)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given; equal to R's `p.adjust(p, "holm")`."""
    adjusted, running = [0.0] * len(ps), 0.0
    for position, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        running = max(running, min(1.0, (len(ps) - position) * ps[index]))
        adjusted[index] = running
    return adjusted


def seeds_needed(mean: float, sd: float) -> int | None:
    """Seeds with which a paired t test at .05 finds this difference four times in five, if it is as observed.

    Power from the noncentral t distribution, as `statsmodels.stats.power.TTestPower`. None when it would
    take more than a thousand.
    """
    if mean == 0 or sd == 0:
        return None
    effect = abs(mean) / sd
    sizes = np.arange(2, MAX_SEEDS_NEEDED + 1)
    critical = stats.t.ppf(1 - ALPHA / 2, sizes - 1)
    power = stats.nct.sf(critical, sizes - 1, effect * np.sqrt(sizes))
    enough = np.flatnonzero(power >= 0.8)
    return int(sizes[enough[0]]) if enough.size else None


def _compare(study: Study, *, arm: Arm, reference: Arm, metric: Metric) -> Comparison:
    ours, theirs = (scores_by_seed(one, study, metric) for one in (arm, reference))
    environments = [{r.seed: r.environment for r in one.completed} for one in (arm, reference)]
    both = sorted(ours.keys() & theirs.keys())
    paired = [seed for seed in both if comparable(*(by_seed[seed] for by_seed in environments))]
    differences = {seed: ours[seed] - theirs[seed] for seed in paired}
    values = list(differences.values())
    sd = statistics.stdev(values) if len(values) > 1 else None
    testable = sd is not None and not _is_rounding(sd, values)
    return Comparison(
        arm=arm.name,
        reference=reference.name,
        metric=metric,
        differences=differences,
        seeds_apart=tuple(seed for seed in both if seed not in differences),
        mean=statistics.fmean(values) if values else None,
        sd=sd,
        interval=t_interval(values) if testable else None,
        t_p=float(stats.ttest_1samp(values, 0.0).pvalue) if testable else None,
        holm_p=None,
        sign_flip_p=sign_flip_p(values) if testable else None,
        verdict="cannot tell",
        reason=None if testable else _why_untestable(values, num_common=len(both)),
    )


def _is_rounding(sd: float, values: Sequence[float]) -> bool:
    """Whether differences are equal but for rounding: then their spread says nothing about seeds."""
    return sd <= 1e-9 * max(map(abs, values), default=0.0)


def _why_untestable(values: Sequence[float], *, num_common: int) -> str:
    if not values:
        return "environments differ" if num_common else "no seed in common"
    if len(values) == 1:
        return "one seed"
    return "every seed gave the same difference"


def _judge(comparison: Comparison, *, holm_p: float | None, family: int) -> Comparison:
    if comparison.interval is None or comparison.mean is None or holm_p is None:
        return comparison
    low, high = comparison.interval
    if low <= 0 <= high:
        return replace(comparison, holm_p=holm_p, reason="the interval contains 0")
    if holm_p > ALPHA:
        return replace(comparison, holm_p=holm_p, reason=f"not after correction for {family} comparisons")
    if comparison.sign_flip_p is not None and comparison.sign_flip_p > ALPHA:
        return replace(comparison, holm_p=holm_p, reason=_why_not_exact(comparison.n))
    good = (comparison.mean < 0) == comparison.metric.lower_is_better
    return replace(comparison, holm_p=holm_p, verdict="better" if good else "worse", reason=None)


def _why_not_exact(num_seeds: int) -> str:
    if smallest_sign_flip_p(num_seeds) > ALPHA:
        return f"{num_seeds} seeds are too few, six can show it"
    return "the exact sign-flip test does not reach .05"
