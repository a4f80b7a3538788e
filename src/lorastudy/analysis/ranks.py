"""What rank bought: the gain from the smallest to the largest rank, and where most of it was reached.

Where ranks were run at several learning rates, each stands at its best: the best rate depends on rank, and at
one rate for all the effect of rank looked eight times too small over 13 models. The rate is chosen on the rows
that the comparison uses, so each rank's loss is slightly optimistic; the report says so.

This describes what was observed. That a smaller rank is *sufficient* is a claim of its own, which needs a
margin fixed before the run; nothing here makes it.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.analysis.paired import Comparison
from lorastudy.analysis.study import Arm, Study, differing_settings
from lorastudy.analysis.summary import LOSS, scores_by_seed
from lorastudy.analysis.tuning import lowest_loss, rates_of

#: Share of the whole observed gain at which returns are called diminished.
SHARE_KEPT = 0.95


@dataclass(frozen=True, kw_only=True)
class RankReturns:
    """Along a ladder of arms that differ in rank (and the alpha that follows it) only, each at its best rate."""

    ladder: tuple[Arm, ...]
    num_rates: tuple[int, ...]
    """Learning rates at which each rank of the ladder was run."""
    mean_losses: tuple[float, ...]
    whole_gain: Comparison
    """The smallest rank against the largest."""
    knee: Arm
    """The smallest rank that kept `SHARE_KEPT` of the gain in mean loss from the smallest to the largest rank."""
    kept_share: float | None
    """The share that the knee kept; None when the largest rank was not better than the smallest."""
    knee_comparison: Comparison | None
    """The knee against the largest rank; None when it is the largest rank."""


def rank_ladder(study: Study, reference: Arm) -> tuple[Arm, ...]:
    """Completed arms that differ from the reference in rank and alpha, one for each rank, ascending.

    Each rank stands at its best learning rate. One that was run at a single rate belongs only where the
    reference was run at just that one: else a difference would be one of rate, or of having been tuned.
    """
    num_rates = len(rates_of(study, reference))
    by_rank: dict[int, Arm] = {reference.settings["lora_rank"]: reference}
    for arm in study.arms:
        if arm.settings["lora_rank"] in by_rank:
            continue
        apart, grid = set(differing_settings([reference, arm])), rates_of(study, arm)
        same_tuning = len(grid) > 1 if num_rates > 1 else len(grid) == 1 and "learning_rate" not in apart
        best = lowest_loss(study, grid)
        if best and same_tuning and apart <= {"lora_rank", "lora_alpha", "learning_rate"}:
            by_rank[arm.settings["lora_rank"]] = best
    return tuple(by_rank[rank] for rank in sorted(by_rank))


def rank_returns(study: Study, reference: Arm, *, comparisons: Sequence[Comparison]) -> RankReturns | None:
    """Where the returns of rank diminished; None with fewer than two ranks, or no seed that all of them share."""
    by_arm = {comparison.arm: comparison for comparison in comparisons}
    ladder = rank_ladder(study, reference)
    means = _mean_losses(study, ladder)
    if len(ladder) < 2 or not means:
        return None
    first, last = means[ladder[0].name], means[reference.name]
    gain = first - last
    knee = ladder[0] if gain <= 0 else next(a for a in ladder if first - means[a.name] >= SHARE_KEPT * gain)
    return RankReturns(
        ladder=ladder,
        num_rates=tuple(len(rates_of(study, arm)) for arm in ladder),
        mean_losses=tuple(means[arm.name] for arm in ladder),
        whole_gain=by_arm[ladder[0].name],
        knee=knee,
        kept_share=(first - means[knee.name]) / gain if gain > 0 else None,
        knee_comparison=by_arm.get(knee.name),
    )


def _mean_losses(study: Study, ladder: Sequence[Arm]) -> dict[str, float]:
    """Mean held-out loss by arm over the seeds that every arm completed, so that the means are of equals."""
    losses = {arm.name: scores_by_seed(arm, study, metric=LOSS) for arm in ladder}
    common = set.intersection(*(set(by_seed) for by_seed in losses.values()))
    if not common:
        return {}
    return {name: statistics.fmean(by_seed[seed] for seed in common) for name, by_seed in losses.items()}
