"""What rank bought: the gain from the smallest to the largest rank, and where most of it was reached.

If ranks were run at several learning rates, each stands at its best one: the best rate depends on rank, and at one rate for all
(4e-5) the effect of rank looked eight times too small over 13 models.

This describes what was observed, with an interval over seeds for the rank at which returns diminish. That a smaller rank is
*sufficient* is a separate claim, which needs a margin set before the run (`Analysis.smallest_sufficient`).
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorastudy.stats.comparison import Comparison
from lorastudy.stats.rate_choice import best_of, rates_of
from lorastudy.stats.study import Study, StudyArm, differing_settings
from lorastudy.stats.summary import Metric, scores_by_seed
from lorastudy.stats.verdicts import ALPHA, Floats

#: Returns count as diminished from the rank on that reaches this share of the observed gain.
SHARE_KEPT = 0.95
_NUM_RESAMPLES = 2000
_SEED = 1979


@dataclass(frozen=True, kw_only=True)
class RankReturns:
    """The returns along a ladder of arms that differ only in rank (and alpha), each at its best learning rate."""

    ladder: tuple[StudyArm, ...]
    """From the smallest rank to the reference."""
    num_rates: tuple[int, ...]
    """Learning rates at which each rank of the ladder was run."""
    metric: Metric
    means: tuple[float, ...]
    """Mean of the metric along the ladder, over the seeds that every rank completed."""
    whole_gain: Comparison
    """The smallest rank against the largest."""
    knee: StudyArm
    """The smallest rank that kept `SHARE_KEPT` of the gain from the smallest to the largest rank."""
    knee_interval: tuple[StudyArm, StudyArm] | None
    """The ranks between which the knee lies in 95 % of resamples of the seeds; None with a single seed.

    In a resample without a gain, the knee is the smallest rank.
    """
    kept_share: float | None
    """The share of the gain that the knee kept; None if the largest rank was not better than the smallest."""
    knee_comparison: Comparison | None
    """The knee against the largest rank; None if it is the largest rank."""


def rank_ladder(study: Study, reference: StudyArm, *, metric: Metric) -> tuple[StudyArm, ...]:
    """Completed arms that differ from the reference only in rank and alpha, one for each rank, up to the reference's.

    Each rank stands at its best learning rate. A rank that was run at a single rate belongs to the ladder only if the reference
    was run at just that rate; otherwise a difference could come from the rate, or from tuning.
    """
    num_rates = len(rates_of(study, reference))
    by_rank: dict[int, StudyArm] = {reference.settings["lora_rank"]: reference}
    for arm in study.arms:
        if arm.settings["lora_rank"] in by_rank:
            continue
        apart, grid = set(differing_settings([reference, arm])), rates_of(study, arm)
        same_tuning = len(grid) > 1 if num_rates > 1 else len(grid) == 1 and "learning_rate" not in apart
        best = best_of(study, grid, metric=metric)
        if best and same_tuning and apart <= {"lora_rank", "lora_alpha", "learning_rate"}:
            by_rank[arm.settings["lora_rank"]] = best
    return tuple(by_rank[rank] for rank in sorted(by_rank) if rank <= reference.settings["lora_rank"])


def rank_returns(
    study: Study,
    reference: StudyArm,
    *,
    ladder: Sequence[StudyArm],
    metric: Metric,
    comparisons: Sequence[Comparison],
) -> RankReturns | None:
    """Where the returns of rank diminished; None with fewer than two ranks, or without a seed that all of them share."""
    by_arm = {comparison.arm: comparison for comparison in comparisons}
    scores = _shared_scores(study, ladder, metric=metric)
    if len(ladder) < 2 or not scores.shape[1]:
        return None
    means = [statistics.fmean(row) for row in scores.tolist()]
    sign = metric.cost_sign
    position, kept = _knee(sign * np.array(means))
    knee = ladder[position]
    return RankReturns(
        ladder=tuple(ladder),
        num_rates=tuple(len(rates_of(study, arm)) for arm in ladder),
        metric=metric,
        means=tuple(means),
        whole_gain=by_arm[ladder[0].name],
        knee=knee,
        knee_interval=_knee_interval(ladder, sign * scores),
        kept_share=kept,
        knee_comparison=None if knee.name == reference.name else by_arm.get(knee.name),
    )


def _shared_scores(study: Study, ladder: Sequence[StudyArm], *, metric: Metric) -> Floats:
    """Scores by (rank, seed), over the seeds that every arm completed."""
    scores: list[Mapping[int, float]] = [scores_by_seed(arm, study, metric=metric) for arm in ladder]
    common = sorted(set.intersection(*(set(by_seed) for by_seed in scores)))
    return np.array([[by_seed[seed] for seed in common] for by_seed in scores], dtype=np.float64)


def _knee(costs: Floats) -> tuple[int, float | None]:
    """The position of the knee and the share it kept; the smallest rank and None if there was no gain."""
    gain = costs[0] - costs[-1]
    if gain <= 0:
        return 0, None
    kept = (costs[0] - costs) / gain
    position = int(np.argmax(kept >= SHARE_KEPT))
    return position, float(kept[position])


def _knee_interval(ladder: Sequence[StudyArm], costs: Floats) -> tuple[StudyArm, StudyArm] | None:
    """Percentiles over resamples of the seeds, which are the same for every rank."""
    num_seeds = costs.shape[1]
    if num_seeds < 2:
        return None
    draws = np.random.default_rng(_SEED).integers(num_seeds, size=(_NUM_RESAMPLES, num_seeds))
    means = costs[:, draws].mean(axis=-1).T
    positions = [_knee(row)[0] for row in means]
    low, high = np.quantile(positions, [ALPHA / 2, 1 - ALPHA / 2], method="inverted_cdf")
    return ladder[int(low)], ladder[int(high)]
