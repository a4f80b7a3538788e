"""What the validation losses on the way decide for each arm: which adapter is kept, and whether training stops early.

Both rules are those of transformers (`load_best_model_at_end`, `EarlyStoppingCallback`), with the held-out loss as the
metric. An arm decides for itself: if it stops, the other arms keep their bits.

The best adapter so far lies beside the checkpoints, and every checkpoint holds a copy of it. So a resumed training keeps
the same adapter. At the end the best adapter takes the place of the last one, before anything else is scored.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from lorastudy.engine.arms import Engine, TrainingArm
from lorastudy.protocol.records import Score
from lorastudy.protocol.run_folder import CHECKPOINTS_NAME
from lorastudy.suite.eval_points import point_of
from lorastudy.suite.settings import Settings
from lorastudy.train.outcomes import PackRun
from lorastudy.train.validation import Stretch


@dataclass(frozen=True, kw_only=True)
class ArmSelection:
    """What the losses of one arm have decided so far."""

    best_loss: float = math.inf
    best_step: int | None = None
    num_without_gain: int = 0
    """Scores in a row that were not better than the best one by more than the threshold."""
    stopped_at: int | None = None
    """The step after which the arm stopped early."""

    def after(self, loss: float, *, step: int, settings: Settings) -> Self:
        """The selection after one more loss. Of equal losses the first one is the best."""
        gain = self.best_loss - loss
        without = 0 if gain > settings.early_stopping_threshold else self.num_without_gain + 1
        patience = settings.early_stopping_patience
        later = replace(
            self,
            num_without_gain=without,
            stopped_at=step if patience is not None and without >= patience else None,
        )
        return replace(later, best_loss=loss, best_step=step) if gain > 0 else later

    def to_json(self) -> dict[str, Any]:
        """The selection as plain JSON values; before the first loss there is no best one."""
        return asdict(self) | {"best_loss": None if self.best_step is None else self.best_loss}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The selection that `to_json` wrote."""
        best = values["best_loss"]
        return cls(**{**values, "best_loss": math.inf if best is None else best})


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A selection as a checkpoint holds it: the decisions, and the files of the best adapters, by experiment."""

    arms: Mapping[str, ArmSelection]
    adapters: Mapping[str, Mapping[str, bytes]]

    def of(self, experiment_ids: Iterable[str]) -> Self:
        """The part that concerns these experiments."""
        ids = set(experiment_ids)
        return replace(
            self,
            arms={key: arm for key, arm in self.arms.items() if key in ids},
            adapters={key: files for key, files in self.adapters.items() if key in ids},
        )


class Selection:
    """Follows the validation losses of a pack's arms that keep their best adapter or may stop early."""

    def __init__(self, run: PackRun) -> None:
        self._run = run
        self._settings = {each.id: each.settings for each in run.pack.experiments if each.settings.selects}
        self._arms = {experiment_id: ArmSelection() for experiment_id in self._settings}

    def resume(self, selected: Selected, *, engine: Engine) -> None:
        """Go on from what a checkpoint holds, with an engine that was restored from it."""
        self._arms |= selected.arms
        for experiment_id, files in selected.adapters.items():
            folder = self._folder(experiment_id)
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (folder / name).write_bytes(content)
        for experiment_id, arm in self._arms.items():
            if arm.stopped_at is not None:
                engine.stop(experiment_id)

    def without_stopped(self, stretch: Stretch) -> Stretch:
        """The stretch without the evaluation points of arms that stopped. At a rung they are scored like all others."""
        stopped = {key for key, arm in self._arms.items() if arm.stopped_at is not None}
        kept = {
            key: tuple(split for split in splits if key not in stopped or point_of(split) is None)
            for key, splits in stretch.splits.items()
        }
        return replace(stretch, splits={key: splits for key, splits in kept.items() if splits})

    def take(self, scores: Iterable[Score], *, engine: Engine) -> None:
        """Decide after these scores. Arms that have ended, such as diverged ones, decide nothing any more."""
        arms = {arm.experiment_id: arm for arm in engine.arms}
        for score in scores:
            key, step = score.experiment_id, point_of(score.split)
            if step is None or key not in self._arms or key in self._run.ended:
                continue
            before = self._arms[key]
            after = self._arms[key] = before.after(score.value, step=step, settings=self._settings[key])
            if after.best_step != before.best_step and self._keeps_best(key):
                engine.save_adapter(arms[key], self._folder(key))
            if after.stopped_at is not None:
                engine.stop(key)

    def put_best_in_place(self, engine: Engine) -> None:
        """Give every arm that keeps its best adapter the weights of it."""
        for arm in engine.arms:
            key = arm.experiment_id
            if self.selected_step(key) is not None and key not in self._run.ended:
                engine.load_adapter(arm, self._folder(key))

    def now(self) -> Selected:
        """The present selection, for a checkpoint."""
        folders = {key: self._folder(key) for key in self._arms if self.selected_step(key) is not None}
        return Selected(
            arms=dict(self._arms),
            adapters={
                key: {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
                for key, folder in folders.items()
            },
        )

    def selected_step(self, experiment_id: str) -> int | None:
        """The step of the adapter that is kept; None if it is the last one because nothing selects."""
        arm = self._arms.get(experiment_id)
        return arm.best_step if arm is not None and self._keeps_best(experiment_id) else None

    def num_steps(self, arm: TrainingArm) -> int:
        """The steps that an arm took to its end."""
        selection = self._arms.get(arm.experiment_id)
        return arm.num_steps if selection is None else selection.stopped_at or arm.num_steps

    def _keeps_best(self, experiment_id: str) -> bool:
        return self._settings[experiment_id].select_checkpoint == "best"

    def _folder(self, experiment_id: str) -> Path:
        return self._run.folder / CHECKPOINTS_NAME / "best" / experiment_id
