"""What rank bought: the gain from the smallest to the largest rank, and where most of it was reached.

This describes what was observed. That a smaller rank is *sufficient* is a claim of its own, which needs a
margin fixed before the run; nothing here makes it.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.analysis.paired import Comparison
from lorastudy.analysis.study import Arm, Study, differing_settings
from lorastudy.analysis.summary import LOSS, scores_by_seed

#: Share of the whole observed gain at which returns are called diminished.
SHARE_KEPT = 0.95


@dataclass(frozen=True, kw_only=True)
class RankReturns:
    """Along a ladder of arms that differ in rank (and the alpha that follows it) only."""

    ladder: tuple[Arm, ...]
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
    """Completed arms that differ from the reference in rank and alpha only, one for each rank, ascending."""
    by_rank: dict[int, Arm] = {reference.settings["lora_rank"]: reference}
    for arm in study.arms:
        if arm.completed and set(differing_settings([reference, arm])) <= {"lora_rank", "lora_alpha"}:
            by_rank.setdefault(arm.settings["lora_rank"], arm)
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
