"""Held-out loss during training: each arm's curve over its seeds, where it was lowest, and whether it rose after that.

A curve has the steps at which all its seeds were scored, so no point is a mean over other seeds than its neighbour. The
rows are the validation rows: of a study with test rows they are not those that report.

The lowest of many points is partly the luckiest. So a rise after it is measured with the other seeds' choice: each seed's
loss at the end, minus its loss where the mean of the *other* seeds is lowest. A t test on these differences says whether
there is a rise. They are not quite independent, hence `RISE_LEVEL`: simulated for flat curves with 3 to 10 seeds and 5 to 20
points, with independent noise and with a random walk, a rise is claimed in at most 3.5 % of the studies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import special

from lorastudy.stats.study import CHOOSING_SPLIT, Study, StudyArm
from lorastudy.stats.summary import LOSS, CurvePoint, Spread
from lorastudy.stats.verdicts import Floats
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.eval_points import point_of

#: One-sided level of the t test for a rise after the lowest point.
RISE_LEVEL = 0.01
#: One-sided level of the t test for a fall between the last two points, which nobody chose.
FALL_LEVEL = 0.05

Shape = Literal["rose", "still falling", "level", "one seed"]


@dataclass(frozen=True, kw_only=True)
class HeldOutCurve:
    """One arm's held-out loss during training. `losses_ST` has a row for each seed and a column for each step."""

    steps: tuple[int, ...]
    losses_ST: Floats
    num_planned_steps: int
    base_loss: float | None = None
    """The base model's loss on the same rows."""
    selected: tuple[int, ...] = ()
    """The steps of the saved adapters by seed, if the best ones were selected."""
    stopped: tuple[int, ...] = ()
    """The steps by seed, if some stopped early."""

    @property
    def num_seeds(self) -> int:
        """Seeds in every point."""
        return len(self.losses_ST)

    @cached_property
    def points(self) -> tuple[CurvePoint, ...]:
        """The mean over seeds at each step, with one standard deviation to either side."""
        spreads = [Spread.of(column) for column in self.losses_ST.T.tolist()]
        return tuple(
            CurvePoint(
                step=step,
                mean=spread.mean,
                low=None if spread.sd is None else spread.mean - spread.sd,
                high=None if spread.sd is None else spread.mean + spread.sd,
                n=spread.n,
            )
            for step, spread in zip(self.steps, spreads, strict=True)
            if spread is not None
        )

    @property
    def lowest(self) -> CurvePoint:
        """The point of the lowest mean; the first of equal ones."""
        return min(self.points, key=lambda point: point.mean)

    @property
    def was_ever_better_than_base(self) -> bool:
        """Whether the lowest mean is below the base model's loss; true if that is not known."""
        return self.base_loss is None or self.lowest.mean < self.base_loss

    @property
    def rise(self) -> float:
        """The rise of the mean from its lowest point to the end, as a share of the lowest mean."""
        return self.points[-1].mean / self.lowest.mean - 1

    @cached_property
    def shape(self) -> Shape:
        """What the seeds support; `level` if they support neither a rise nor a fall at the end."""
        if self.num_seeds < 2:
            return "one seed"
        if self.lowest.step < self.steps[-1] and is_above_zero(self._rises(), level=RISE_LEVEL):
            return "rose"
        falls = self.losses_ST[:, -2] - self.losses_ST[:, -1]
        return "still falling" if is_above_zero(falls, level=FALL_LEVEL) else "level"

    def _rises(self) -> Floats:
        """By seed: its loss at the end minus its loss where the other seeds are lowest in the mean."""
        others_ST = self.losses_ST.sum(axis=0) - self.losses_ST
        lowest_S = others_ST.argmin(axis=1)
        rises: Floats = self.losses_ST[:, -1] - self.losses_ST[np.arange(self.num_seeds), lowest_S]
        return rises


def is_above_zero(differences: Floats, *, level: float) -> bool:
    """Whether a one-sided t test shows that the mean is above 0. Differences without any spread show their own sign."""
    number, mean, sd = len(differences), float(differences.mean()), float(differences.std(ddof=1))
    if sd == 0:
        return mean > 0
    return bool(mean > special.stdtrit(number - 1, 1 - level) * sd / number**0.5)


def held_out_curves(study: Study) -> Mapping[str, HeldOutCurve]:
    """By name of the arm: its curve, if its completed seeds were scored at two common steps or more."""
    curves = {arm.name: _curve(study, arm) for arm in study.reported_arms}
    return {name: curve for name, curve in curves.items() if curve is not None}


def _curve(study: Study, arm: StudyArm) -> HeldOutCurve | None:
    runs = [run for run in study.reporting_runs(arm) if run.status == "completed"]
    by_seed = [_losses(run) for run in runs]
    steps = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    if len(steps) < 2 or not any(point_of(split) for run in runs for split, _ in run.scores):
        return None
    planned = [run.num_planned_steps or run.num_steps or 0 for run in runs]
    ended = [run.num_steps or 0 for run in runs]
    return HeldOutCurve(
        steps=tuple(steps),
        losses_ST=np.array([[losses[step] for step in steps] for losses in by_seed]),
        num_planned_steps=max(planned),
        base_loss=_base_loss(runs),
        selected=_known([run.selected_step for run in runs]),
        stopped=tuple(ended) if min(ended) < max(planned) else (),
    )


def _losses(run: ExperimentResult) -> dict[int, float]:
    """The held-out loss by step: at the evaluation points, and at the end unless another adapter was selected."""
    losses = {
        step: score.value
        for (split, metric), score in run.scores.items()
        if metric == LOSS.name and (step := point_of(split)) is not None
    }
    end = run.scores.get((CHOOSING_SPLIT, LOSS.name))
    if end is not None and run.num_steps is not None and run.selected_step is None:
        losses[run.num_steps] = end.value
    return losses


def _base_loss(runs: Sequence[ExperimentResult]) -> float | None:
    before = [run.scores.get((f"{CHOOSING_SPLIT}_before", LOSS.name)) for run in runs]
    spread = Spread.of(None if score is None else score.value for score in before)
    return None if spread is None else spread.mean


def _known(steps: Sequence[int | None]) -> tuple[int, ...]:
    """The steps, if all of them are known."""
    known = tuple(step for step in steps if step is not None)
    return known if len(known) == len(steps) else ()
