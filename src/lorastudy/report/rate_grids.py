"""The learning rates that were tried for each configuration, with the scores that chose one: for a table and for a figure."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.analysis.overview import Analysis
from lorastudy.stats.rate_choice import adjusted_means, best_of, is_still_sought, rates_of
from lorastudy.stats.study import Study, StudyArm
from lorastudy.stats.summary import Metric, scores_by_seed


@dataclass(frozen=True, kw_only=True)
class RateGrid:
    """One configuration that was run at several rates."""

    arms: tuple[StudyArm, ...]
    """One for each rate."""
    means: dict[str, float]
    """By arm: the mean score that chose the rate. An arm without one is missing."""
    best: StudyArm | None
    """The arm at the best rate so far; None if no rate has a score."""
    is_sought: bool
    """Whether the search is still running, so that no rate is taken yet."""

    @property
    def name(self) -> str:
        """The configuration's label, without the rate."""
        return self.arms[0].configuration_name

    @property
    def taken(self) -> StudyArm | None:
        """The arm that stands for the configuration."""
        return None if self.is_sought else self.best


def rate_of(arm: StudyArm) -> float:
    """The arm's learning rate."""
    return float(arm.settings["learning_rate"])


def rate_grids(analysis: Analysis) -> tuple[RateGrid, ...]:
    """One for each configuration that was run at several rates, in the order of the study."""
    study, metric = analysis.study, analysis.primary
    by_names = {
        tuple(arm.name for arm in grid): grid for grid in (rates_of(study, arm) for arm in study.arms)
    }
    return tuple(
        RateGrid(
            arms=tuple(grid),
            means=_means(study, grid, metric=metric),
            best=best_of(study, grid, metric=metric),
            is_sought=is_still_sought(study, grid, metric=metric),
        )
        for grid in by_names.values()
        if len({rate_of(arm) for arm in grid}) > 1
    )


def _means(study: Study, grid: Sequence[StudyArm], *, metric: Metric) -> dict[str, float]:
    """The scores that chose the rate: means over common seeds, on the rows that choose.

    If separate runs chose, a rate that only reporting seeds ran has no mean here, since their losses are not comparable.
    """
    chose = [
        arm
        for arm in grid
        if not study.tuning_seeds or any(run.seed in study.tuning_seeds for run in arm.results)
    ]
    return adjusted_means(
        {arm.name: scores_by_seed(arm, study, metric=metric, choosing=True) for arm in chose}
    )
