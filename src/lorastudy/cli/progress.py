"""Progress of a running suite: a bar with the time left on a terminal, a line now and then elsewhere."""

import statistics
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from lorastudy.cli.console import PlainConsole
from lorastudy.cli.terminal import failure_shown
from lorastudy.executors import WorkerExit
from lorastudy.planning.packing import PlannedPack
from lorastudy.protocol.records import (
    ArmProfile,
    Environment,
    Incident,
    Outcome,
    PackProfile,
    PackStep,
    Record,
    Score,
)
from lorastudy.protocol.scoring import AddedScore
from lorastudy.report.numbers import names, plural
from lorastudy.running.phase_runner import SHARED_FAILURES
from lorastudy.running.phases import Phase
from lorastudy.suite.eval_points import eval_points, is_on_the_way
from lorastudy.suite.question import rung_step

SECONDS_BETWEEN_LINES = 10.0
_RESUMPTIONS = frozenset({"resumed", "not_resumed"})


class Progress:
    """Follows the packs of a suite, one after another or several in parallel, phase by phase.

    Packs are numbered by their order in the phase. With `gives_reasons`, failures are printed with their reasons at
    once, for a suite that continues after them. Otherwise the suite's outcome prints the reasons a moment later.
    """

    def __init__(self, *, gives_reasons: bool = False) -> None:
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
        self._gives_reasons = gives_reasons
        self._labels: dict[str, str] = {}
        self._num_packs = 0
        self._packs: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}
        self._seconds: dict[str, list[float]] = {}
        self._stepped: dict[str, float] = {}
        self._pass_seconds: dict[str, list[float]] = {}
        self._failed: dict[str, dict[tuple[str, str], list[str]]] = {}
        self._going_on: set[str] = set()
        self._undecided: set[str] = set()
        self._resumed_at: dict[str, int | None] = {}
        self._printed: set[tuple[str, str]] = set()
        self._devices: set[str] = set()
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_phase(self, phase: Phase) -> None:
        """Number the packs from one again, and announce the phase if it has a name."""
        self._labels.update(phase.labels)
        self._num_packs = len(phase.packs)
        self._packs = {pack.id: number for number, pack in enumerate(phase.packs, start=1)}
        self._going_on = {pack.id for pack in phase.packs if pack.resume_from}
        self._printed.clear()
        if phase.name:
            experiments = plural(sum(len(pack.experiments) for pack in phase.packs), "experiment")
            self._print_line(f"{phase.name}: {experiments} in {plural(len(phase.packs), 'pack')}")

    def on_event(self, pack: PlannedPack, event: Record | WorkerExit) -> None:
        """Update the display after a record of a worker or its end."""
        number = self._packs.setdefault(pack.id, len(self._packs) + 1)
        size = plural(len(pack.experiments), "experiment")
        title = f"pack {number}/{max(number, self._num_packs)} ({size})"
        if isinstance(event, Outcome) and event.status == "failed":
            experiment = next(each for each in pack.experiments if each.id == event.experiment_id)
            label = self._labels.get(experiment.id, experiment.name)
            why = (event.failure_kind or "", failure_shown(event.message or ""))
            self._failed.setdefault(pack.id, {}).setdefault(why, []).append(label)
            return
        self._print_failures(pack, title=title)
        if isinstance(event, PackStep):
            self._step(pack, event, title=title)
        elif isinstance(event, AddedScore):
            self._print_failed_rows(pack.id, event, title=title)
        elif isinstance(event, WorkerExit):
            self._end(pack.id)
        else:
            self._phase(pack, event, title=title)

    def _print_failed_rows(self, pack_id: str, score: AddedScore, *, title: str) -> None:
        """Print, once a pack and metric, that a metric gave no number for some rows, and the first reason."""
        if score.failed_rows and (pack_id, score.metric) not in self._printed:
            self._printed.add((pack_id, score.metric))
            first, name = score.failed_rows[0], score.metric.partition("@")[0]
            self._print_line(
                f"{title}: {name} gave no number for {len(score.failed_rows)} of {plural(len(score.items), 'row')} of an arm, "
                f"such as {first.where}: {failure_shown(first.message)}"
            )

    def _print_failures(self, pack: PlannedPack, *, title: str) -> None:
        """Print failures of a pack with the same reason in one line, once all of them are known."""
        for (kind, message), failed in self._failed.pop(pack.id, {}).items():
            who = "all" if len(failed) == len(pack.experiments) > 1 else names(failed)
            # After a worker's death, even a single experiment may be tried again.
            is_tried_again = kind in SHARED_FAILURES and (len(pack.experiments) > 1 or kind == "crashed")
            if kind == "diverged":
                self._print_line(f"{title}: {who} diverged: {message}")
            elif self._gives_reasons or is_tried_again:
                self._print_line(f"{title}: {who} failed ({kind}): {message}")
            else:
                self._print_line(f"{title}: {who} failed ({kind})")

    def _step(self, pack: PlannedPack, step: PackStep, *, title: str) -> None:
        if pack.id not in self._tasks:
            self._tasks[pack.id] = self._bar.add_task(title, total=step.num_steps)
        self._bar.update(self._tasks[pack.id], completed=step.step)
        self._seconds.setdefault(pack.id, []).append(step.seconds)
        now = self._stepped[pack.id] = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES:
            left = (step.num_steps - step.step) * statistics.fmean(self._seconds[pack.id])
            self._print_line(
                f"{title}: step {step.step} of {step.num_steps}, about {left:.0f} s of training"
                f"{self._scoring_left(pack, step)} left"
            )

    def _scoring_left(self, pack: PlannedPack, step: PackStep) -> str:
        """The seconds of the passes over the validation rows that are still to come; empty before the first one."""
        seconds, num_left = self._pass_seconds.get(pack.id), _num_passes_left(pack, step)
        return f" and {num_left * statistics.fmean(seconds):.0f} s of scoring" if seconds and num_left else ""

    def _note_pass(self, pack_id: str, event: Record) -> None:
        """Time a pass over the validation rows: from the last step to the first of the scores."""
        is_scored = isinstance(event, Score) and is_on_the_way(event.split)
        if is_scored and (began := self._stepped.pop(pack_id, None)) is not None:
            self._pass_seconds.setdefault(pack_id, []).append(time.monotonic() - began)

    def _end(self, pack_id: str) -> None:
        if pack_id in self._tasks:
            self._bar.remove_task(self._tasks.pop(pack_id))
        # A pack whose worker died runs again, and prints its phases again.
        self._printed = {(of_pack, phase) for of_pack, phase in self._printed if of_pack != pack_id}

    def _phase(self, pack: PlannedPack, event: Record, *, title: str) -> None:
        self._note_resumption(pack, event)
        self._note_pass(pack.id, event)
        phase = self._phase_of(pack.id, event)
        if phase is not None and (pack.id, phase) not in self._printed:
            self._printed.add((pack.id, phase))
            self._print_line(f"{title}: {phase}")

    def _note_resumption(self, pack: PlannedPack, event: Record) -> None:
        """Keep whether the worker goes on from a checkpoint.

        Its first incident about that decides: later ones are of the earlier attempts that it carries over. A planned
        continuation has no incident of its own.
        """
        if isinstance(event, Environment):
            is_as_planned = pack.reason is None and pack.begun > 0
            self._undecided -= {pack.id}
            self._undecided |= set() if is_as_planned else {pack.id}
        elif pack.id in self._undecided and isinstance(event, Incident) and event.kind in _RESUMPTIONS:
            self._undecided.remove(pack.id)
            self._going_on -= {pack.id}
            if event.kind == "resumed":
                self._going_on.add(pack.id)
                self._resumed_at[pack.id] = event.step

    def _phase_of(self, pack_id: str, event: Record) -> str | None:
        """The worker's progress that a record shows."""
        if isinstance(event, Environment):
            where = "" if event.device_name in self._devices else f" on {event.device_name}"
            self._devices.add(event.device_name)
            return f"loading the base model and the data{where}"
        if isinstance(event, Incident) and event.kind == "fell_back":
            return event.message
        if isinstance(event, ArmProfile):
            return self._start_of(pack_id)
        if (
            isinstance(event, Score)
            and not is_on_the_way(event.split)
            and not event.split.endswith("_before")
        ):
            return "trained; evaluating"
        if isinstance(event, PackProfile):
            return f"done: {event.train_seconds:.0f} s of training, {event.eval_seconds:.0f} s of evaluation"
        is_paused = isinstance(event, Outcome) and event.status == "paused"
        return "paused" if is_paused else None

    def _start_of(self, pack_id: str) -> str:
        """How the training of a pack begins."""
        if pack_id not in self._going_on:
            return "measured what each arm costs alone; training"
        step = self._resumed_at.get(pack_id)
        return "resuming from its checkpoint" + (f" after step {step}" if step else "")

    def _print_line(self, line: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(line)


def _num_passes_left(pack: PlannedPack, step: PackStep) -> int:
    """The passes over the validation rows after this step. An arm whose length is given in epochs counts as the longest."""
    points = {rung_step(rung, num_steps=step.num_steps) for rung in pack.rungs}
    for experiment in pack.experiments:
        num_steps = experiment.settings.max_steps or step.num_steps
        points |= set(eval_points(experiment.settings, num_steps=num_steps))
    return sum(point >= step.step for point in points)
