"""What rank bought: the gain from the smallest to the largest rank, and where most of it was reached.

Where ranks were run at several learning rates, each stands at its best: the best rate depends on rank, and at
one rate for all (4e-5) the effect of rank looked eight times too small over 13 models.

This describes what was observed, with an interval over seeds for where the returns diminish. That a smaller rank is
*sufficient* is a claim of its own, which needs a margin fixed before the run (`Analysis.smallest_sufficient`).
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

#: Share of the whole observed gain at which returns are called diminished.
SHARE_KEPT = 0.95
_NUM_RESAMPLES = 2000
_SEED = 1979


@dataclass(frozen=True, kw_only=True)
class RankReturns:
    """Along a ladder of arms that differ in rank (and the alpha that follows it) only, each at its best rate."""

    ladder: tuple[StudyArm, ...]
    """From the smallest rank to the reference."""
    num_rates: tuple[int, ...]
    """Learning rates at which each rank of the ladder was run."""
    metric: Metric
    means: tuple[float, ...]
    """Of the metric, along the ladder, over the seeds that every rank completed."""
    whole_gain: Comparison
    """The smallest rank against the largest."""
    knee: StudyArm
    """The smallest rank that kept `SHARE_KEPT` of the gain from the smallest to the largest rank."""
    knee_interval: tuple[StudyArm, StudyArm] | None
    """Between which ranks the knee lies in 95 % of resamples of the seeds; None with a single seed.

    A resample in which the largest rank gains nothing has its knee at the smallest.
    """
    kept_share: float | None
    """The share that the knee kept; None when the largest rank was not better than the smallest."""
    knee_comparison: Comparison | None
    """The knee against the largest rank; None when it is the largest rank."""


def rank_ladder(study: Study, reference: StudyArm, *, metric: Metric) -> tuple[StudyArm, ...]:
    """Completed arms that differ from the reference in rank and alpha, one for each rank, ascending up to its own.

    Each rank stands at its best learning rate. One that was run at a single rate belongs only where the
    reference was run at just that one: else a difference would be one of rate, or of having been tuned.
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
    """Where the returns of rank diminished; None with fewer than two ranks, or no seed that all of them share."""
    by_arm = {comparison.arm: comparison for comparison in comparisons}
    scores = _shared_scores(study, ladder, metric=metric)
    if len(ladder) < 2 or not scores.shape[1]:
        return None
    means = [statistics.fmean(row) for row in scores.tolist()]
    sign = 1 if metric.lower_is_better else -1
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
    """Scores by (rank, seed) over the seeds that every arm completed, so that means are of equals."""
    scores: list[Mapping[int, float]] = [scores_by_seed(arm, study, metric=metric) for arm in ladder]
    common = sorted(set.intersection(*(set(by_seed) for by_seed in scores)))
    return np.array([[by_seed[seed] for seed in common] for by_seed in scores], dtype=np.float64)


def _knee(costs: Floats) -> tuple[int, float | None]:
    """Where the share is first kept, and which; the smallest rank, without a share, if there was no gain."""
    gain = costs[0] - costs[-1]
    if gain <= 0:
        return 0, None
    kept = (costs[0] - costs) / gain
    position = int(np.argmax(kept >= SHARE_KEPT))
    return position, float(kept[position])


def _knee_interval(ladder: Sequence[StudyArm], costs: Floats) -> tuple[StudyArm, StudyArm] | None:
    """Percentiles over resamples of the seeds, the same seeds for every rank."""
    num_seeds = costs.shape[1]
    if num_seeds < 2:
        return None
    draws = np.random.default_rng(_SEED).integers(num_seeds, size=(_NUM_RESAMPLES, num_seeds))
    means = costs[:, draws].mean(axis=-1).T
    positions = [_knee(row)[0] for row in means]
    low, high = np.quantile(positions, [ALPHA / 2, 1 - ALPHA / 2], method="inverted_cdf")
    return ladder[int(low)], ladder[int(high)]
