"""Keeping a pack on its way: when it is saved, what is remembered beside the engine's state, and what that costs."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lorastudy.engine.arms import Engine
from lorastudy.engine.checkpoint import Checkpoint, write_checkpoint
from lorastudy.protocol.checkpoints import checkpoint_folder
from lorastudy.protocol.records import Environment, Incident
from lorastudy.train.outcomes import PackRun
from lorastudy.train.pace import CheckpointTimes, Pace, Stopwatch
from lorastudy.train.stopping import Stopped


@dataclass(kw_only=True)
class Keeper:
    """Writes the checkpoints of one attempt at a pack. One that cannot be written does not end the training."""

    run: PackRun
    engine: Engine
    environment: Environment
    pace: Pace
    times: CheckpointTimes
    _num_steps_saved: int = 0

    def __post_init__(self) -> None:
        self._num_steps_saved = len(self.pace.seconds)  # what was carried over is safe where it came from
        self.times.begin(self.pace)

    def after_step(self) -> None:
        """Save if it is time. What this takes is no part of the next step."""
        if self.times.is_due(self.pace):
            self.save()
            self.pace.watch.lap()

    def save(self) -> None:
        """Write a checkpoint, unless nothing was trained since the last one."""
        num_steps = len(self.pace.seconds)
        if num_steps == self._num_steps_saved:
            return
        watch = Stopwatch(clock=self.pace.watch.clock)
        try:
            checkpoint = Checkpoint(state=self.engine.state(), notes=self._notes())
            num_bytes = write_checkpoint(checkpoint_folder(self.run.folder, num_steps), checkpoint)
        except OSError as error:
            message = (
                f"a checkpoint could not be written: {error}; training goes on, and the one before it stays"
            )
            self.run.emit(Incident(kind="checkpoint_failed", message=message, step=num_steps))
            self.times.took(watch.lap(), num_bytes=None, pace=self.pace)
        else:
            self._num_steps_saved = num_steps
            self.times.took(watch.lap(), num_bytes=num_bytes, pace=self.pace)

    @contextmanager
    def saving_when_stopped(self) -> Iterator[None]:
        """Within, a request to leave is met with a checkpoint of where training has got to."""
        try:
            yield
        except Stopped:
            self.save()
            raise

    def _notes(self) -> dict[str, Any]:
        """Up to where the records belong to it, and what going on is bound to."""
        return {
            "records_bytes": self.run.sync(),
            "environment": dataclasses.asdict(self.environment),
            "checkpoints": dataclasses.asdict(self.times.profile()),
            "load_seconds": self.pace.load_seconds,
            "rung_seconds": self.pace.rung_seconds,
        }
