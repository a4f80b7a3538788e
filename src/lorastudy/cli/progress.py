"""What a running suite shows: a bar with the time left on a terminal, a line now and then elsewhere."""

import statistics
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from lorastudy.cli.console import PlainConsole
from lorastudy.cli.terminal import failure_shown
from lorastudy.executors import WorkerExit
from lorastudy.planner.packing import PlannedPack
from lorastudy.records import (
    ArmProfile,
    DataSummary,
    Environment,
    Outcome,
    PackProfile,
    PackStep,
    Record,
    Score,
)
from lorastudy.spec.racing import rung_of

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Follows the packs of a suite, one after another or several side by side."""

    def __init__(self, *, num_packs: int) -> None:
        self._console = PlainConsole(stderr=True)
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps, left:"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._num_packs = num_packs
        self._packs: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._seconds: dict[str, list[float]] = {}
        self._last_line = time.monotonic()
        self._last_phase = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_event(self, pack: PlannedPack, event: Record | WorkerExit) -> None:
        """Take note of what a worker said."""
        number = self._packs.setdefault(pack.id, len(self._packs) + 1)
        title = f"pack {number}/{max(number, self._num_packs)} ({len(pack.experiments)} experiments)"
        if isinstance(event, PackStep):
            self._step(pack.id, event, title=title)
        elif isinstance(event, WorkerExit):
            self._end(pack.id)
        elif isinstance(event, Outcome) and event.status == "failed":
            names = {experiment.id: experiment.name for experiment in pack.experiments}
            message = failure_shown(event.message or "")
            self._say(f"{title}: {names[event.experiment_id]} failed ({event.failure_kind}): {message}")
        else:
            self._phase(title, event)

    def _step(self, pack_id: str, step: PackStep, *, title: str) -> None:
        if pack_id not in self._tasks:
            self._tasks[pack_id] = self._bar.add_task(title, total=step.num_steps)
        self._bar.update(self._tasks[pack_id], completed=step.step)
        self._seconds.setdefault(pack_id, []).append(step.seconds)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES:
            left = (step.num_steps - step.step) * statistics.fmean(self._seconds[pack_id])
            self._say(f"{title}: step {step.step} of {step.num_steps}, about {left:.0f} s of training left")

    def _end(self, pack_id: str) -> None:
        if pack_id in self._tasks:
            self._bar.remove_task(self._tasks.pop(pack_id))

    def _phase(self, title: str, event: Record) -> None:
        phase = _phase_of(event)
        if phase is not None and f"{title}: {phase}" != self._last_phase:
            self._last_phase = f"{title}: {phase}"
            self._say(self._last_phase)

    def _say(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(line)


def _phase_of(event: Record) -> str | None:
    """What a record tells of the worker's progress."""
    if isinstance(event, Environment):
        return f"worker started on {event.device_name}; loading the base model and the data"
    if isinstance(event, DataSummary):
        return None
    if isinstance(event, ArmProfile):
        return "measured what each arm costs alone; training"
    if isinstance(event, Score) and rung_of(event.split) is None and not event.split.endswith("_before"):
        return "trained; evaluating"
    if isinstance(event, PackProfile):
        return f"done: {event.train_seconds:.0f} s of training, {event.eval_seconds:.0f} s of evaluation"
    is_paused = isinstance(event, Outcome) and event.status == "paused"
    return "paused at a rung of the race" if is_paused else None
