"""Which learning rate stands for an arm, and what that choice does to its score.

Where an experiment type of the package was run at several learning rates, each configuration is compared at its best
one, picked by the primary metric on the validation split. If there is a test split, the report is about that, and the rows
that picked the rate take no part. If there is none, the same rows pick and report: a choice in sample, which makes
the chosen score look better than it is (winner's curse), and the report says so.

A test split does not take the curse away altogether: the choice also picks lucky seeds, and those train the arm that
is tested. `optimism` measures what is left: the chosen rate's mean score against that of a choice made, for each
seed, without it. Equal grids put about the same optimism on both sides of a difference.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorastudy.stats.splits import CHOOSING_SPLIT, reporting_split
from lorastudy.stats.study import STUDIED_KEYS, Arm, Study
from lorastudy.stats.summary import Metric, scores_by_seed
from lorastudy.stats.tuning import best_of, rates_of


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A configuration that was run at several rates: the one that stands for it, and the grid it is from."""

    arm: Arm
    grid: tuple[Arm, ...]
    in_sample: bool
    """Whether the split that picked the rate is also the one that is reported."""
    optimism: float | None
    """How much better the chosen score looks than one that its seed had no part in picking, in the metric's unit.

    None with fewer than three seeds that the whole grid completed.
    """


def compared_arms(study: Study, *, metric: Metric) -> tuple[Arm, ...]:
    """The arms that comparisons are about: one for each configuration. In a type of one's own, every arm.

    A type of one's own may study the rate itself.
    """
    if study.experiment_type not in STUDIED_KEYS:
        return study.reported_arms
    chosen = {(best_of(study, rates_of(study, arm), metric=metric) or arm).name for arm in study.arms}
    return tuple(arm for arm in study.reported_arms if arm.name in chosen)


def choices(study: Study, *, metric: Metric) -> tuple[Choice, ...]:
    """The choices of learning rate that were made for the comparisons; empty where each had one rate."""
    if study.experiment_type not in STUDIED_KEYS:
        return ()
    made = []
    for arm in compared_arms(study, metric=metric):
        grid = rates_of(study, arm)
        if len(grid) > 1 and arm.completed:
            made.append(
                Choice(
                    arm=arm,
                    grid=grid,
                    in_sample=reporting_split(study) == CHOOSING_SPLIT,
                    optimism=_optimism(study, arm, grid=grid, metric=metric),
                )
            )
    return tuple(made)


def _optimism(study: Study, arm: Arm, *, grid: Sequence[Arm], metric: Metric) -> float | None:
    """The chosen arm's mean against the mean over seeds of the arm that the other seeds would have chosen."""
    picked_by = {one.name: scores_by_seed(one, study, metric=metric, choosing=True) for one in grid}
    told = {one.name: scores_by_seed(one, study, metric=metric) for one in grid}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in (*picked_by.values(), *told.values()))))
    if len(seeds) < 3:
        return None
    sign = 1 if metric.lower_is_better else -1
    left_out = [told[_best_without(seed, picked_by, seeds=seeds, sign=sign)][seed] for seed in seeds]
    chosen = [told[arm.name][seed] for seed in seeds]
    return sign * (statistics.fmean(left_out) - statistics.fmean(chosen))


def _best_without(
    seed: int, scores: Mapping[str, Mapping[int, float]], *, seeds: Sequence[int], sign: int
) -> str:
    others = [one for one in seeds if one != seed]
    return min(scores, key=lambda name: sign * statistics.fmean(scores[name][one] for one in others))
