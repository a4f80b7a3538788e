"""Runs the packs of a phase: sends them to workers and stores the records that come back.

    packs --pack.json--> workers --records.jsonl--> store

This is the only writer of the store. A pack that fails as a whole is cut in two and retried, until the failing
experiment is alone: it never takes others with it. A pack whose worker was killed is retried uncut. Both kinds of retry
resume from the last checkpoint.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorastudy.errors import StudyError
from lorastudy.executors import HUNG, Executor, WorkerExit
from lorastudy.places import OUTPUT_DIR, RUNS_DIR
from lorastudy.planning.packing import PlannedPack, halves
from lorastudy.planning.predictions import Predictions
from lorastudy.protocol import files
from lorastudy.protocol.records import PREDICTIONS_NAME, MemoryPrediction, Outcome, Pack, Record, RecordWriter
from lorastudy.protocol.run_folder import inside
from lorastudy.protocol.scoring import AddedScore
from lorastudy.running.adapters import AdapterPublisher
from lorastudy.running.phases import Phase
from lorastudy.running.results import with_checkpoints
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment

#: Failures that may come from the other experiments of the pack.
SHARED_FAILURES = frozenset({"out_of_memory", "crashed", "error"})
#: The kill of a worker is usually not the fault of its pack. After this many kills without a checkpoint the pack may be
#: the cause, for example because the system ran out of memory.
MAX_KILLED = 2

OnEvent = Callable[[PlannedPack, Record | WorkerExit], None]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a study's files go, and whether it continues after a failure."""

    runs: Path = RUNS_DIR
    output: Path = OUTPUT_DIR
    continue_on_error: bool = False


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """A caller's hooks into a run: they report its progress and can ask it to stop."""

    on_open: Callable[[ExperimentTracker], None] = lambda _: None
    """Called with the store if the run opens it for writing, before `on_start`."""
    on_start: Callable[[Executor], None] = lambda _: None
    """Called once with the executor, when the plan can run and the store is open for writing."""
    on_phase: Callable[[Phase], None] = lambda _: None
    """Called with each phase before its packs run."""
    on_event: OnEvent = lambda *_: None
    """Called with every stored record and with every worker's exit."""
    is_leaving: Callable[[], bool] = lambda: False
    """Whether the user has asked to stop. The caller also calls `Executor.leave`, so running packs end in order."""
    clock: Callable[[], float] = time.monotonic
    """Seconds since some moment. A time budget counts by it."""


@dataclass(kw_only=True)
class Attempt:
    """One attempt at a pack, in a run folder of its own."""

    pack: PlannedPack
    number: int
    folder: Path
    predictions: tuple[MemoryPrediction, ...] = ()
    has_begun: bool = False
    ended: dict[str, Outcome] = field(default_factory=dict)
    exit: WorkerExit | None = None

    @property
    def is_scoring(self) -> bool:
        """Whether it scores stored adapters. Its outcomes are no outcomes of the experiments, and are not stored."""
        return self.pack.scoring is not None

    def open_experiments(self) -> list[Experiment]:
        """The experiments that have not ended yet."""
        return [experiment for experiment in self.pack.experiments if experiment.id not in self.ended]

    def packs_to_retry(self) -> list[PlannedPack]:
        """The packs to run again: one uncut pack after a killed worker, two halves after a shared failure."""
        again = [
            e for e in self.pack.experiments if e.id in self.ended and self._may_try_again(self.ended[e.id])
        ]
        goes_on = bool(again) and self._goes_on_together()
        parts = [tuple(again)] if goes_on else [pack.experiments for pack in halves(again)]
        return [
            replace(
                self.pack,
                experiments=part,
                resume_from=with_checkpoints([self.folder]) + self.pack.resume_from,
                reason=self._reason(),
                num_killed=self._num_killed() if self.exit is not None and self.exit.was_killed else 0,
            )
            for part in parts
        ]

    def final_ends(self) -> dict[str, Outcome]:
        """Outcome by experiment id, for the experiments that are not retried."""
        return {key: end for key, end in self.ended.items() if not self._may_try_again(end)}

    def _may_try_again(self, end: Outcome) -> bool:
        is_shared = end.status == "stopped" or end.failure_kind in SHARED_FAILURES
        return is_shared and (self._goes_on_together() or len(self.pack.experiments) > 1)

    def _goes_on_together(self) -> bool:
        return self.exit is not None and self.exit.was_killed and self._num_killed() < MAX_KILLED

    def _num_killed(self) -> int:
        return 0 if with_checkpoints([self.folder]) else self.pack.num_killed + 1

    def _reason(self) -> str:
        num_arms = len(self.pack.experiments)
        if self.exit is not None and self.exit.was_killed:
            message = self.exit.message.partition("\n")[0]
            why = message if message.startswith(HUNG) else f"exit code {self.exit.returncode}"
            return f"the worker of a pack of {num_arms} was ended ({why})"
        kinds = {end.failure_kind for end in self.ended.values()}
        what = "ran out of memory" if "out_of_memory" in kinds else "failed as a whole"
        return f"a pack of {num_arms} {what} and was cut in two"


@dataclass(frozen=True, kw_only=True)
class PhaseRunner:
    """Runs the packs of one phase after another and stores what their workers report."""

    tracker: ExperimentTracker
    executor: Executor
    options: RunOptions
    predicted: Predictions
    publisher: AdapterPublisher
    callbacks: Callbacks

    def run(self, phase: Phase) -> dict[str, Outcome]:
        """Run a phase and return how its experiments ended, by id.

        Without `continue_on_error` a final failure ends the phase: running packs are ended, and go on from their last
        checkpoint in a later call. After the user asks to stop, running packs are followed until their workers exit.

        Raises:
            StudyError: a worker could not write its files.
        """
        ends: dict[str, Outcome] = {}
        waiting: Sequence[PlannedPack] = phase.packs
        while waiting and not self.callbacks.is_leaving():
            attempts = {attempt.folder: attempt for attempt in map(self._begin, waiting)}
            waiting = self._follow(attempts, searching=phase.searching)
            # Of all attempts, also those whose worker has not exited: packs may train side by side.
            ends |= {key: end for each in attempts.values() for key, end in each.final_ends().items()}
        return ends

    def _begin(self, pack: PlannedPack) -> Attempt:
        """A new attempt. Its run folder holds `pack.json` and the memory predictions. A folder is never used twice."""
        number = 1  # of a scoring pack, which is no attempt at its experiments
        if pack.scoring is None:
            number = self.tracker.next_attempt([experiment.id for experiment in pack.experiments])
        while (folder := self.options.runs / pack.id / f"attempt-{number}").exists():
            number += 1
        inside(self.options.runs, folder).mkdir(parents=True)
        Pack(
            id=pack.id,
            attempt=number,
            engine=pack.experiments[0].settings.engine,
            experiments=pack.experiments,
            resume_from=tuple(os.path.relpath(earlier, folder) for earlier in pack.resume_from),
            reason=pack.reason,
            rungs=pack.rungs,
            pause_at=pack.pause_at,
            begun=pack.begun,
            scoring=None if pack.scoring is None else pack.scoring.seen_from(folder),
        ).write(folder)
        predictions = () if pack.scoring is not None else tuple(self.predicted.predictions(pack))
        if predictions:
            with closing(RecordWriter(folder / PREDICTIONS_NAME)) as writer:
                for prediction in predictions:
                    writer.write(prediction)
        return Attempt(pack=pack, number=number, folder=folder, predictions=predictions)

    def _follow(self, attempts: dict[Path, Attempt], *, searching: Collection[str]) -> list[PlannedPack]:
        """Store the records of these attempts until all have ended; return the packs to retry."""
        retries: list[PlannedPack] = []
        with closing(self.executor.run(list(attempts))) as events:
            try:
                for folder, event in events:
                    attempt = attempts[folder]
                    self._take(event, attempt)
                    self.callbacks.on_event(attempt.pack, event)
                    if isinstance(event, WorkerExit) and not self.callbacks.is_leaving():
                        retries += attempt.packs_to_retry()
                        if not self.options.continue_on_error and failures(
                            attempt.final_ends(), searching=searching
                        ):
                            return []
            finally:
                self._stop_open(attempts.values())
        return retries

    def _take(self, event: Record | WorkerExit, attempt: Attempt) -> None:
        """Store an event. If the worker died, end its open experiments."""
        if not attempt.has_begun and not attempt.is_scoring:
            with self.tracker.together():
                self._register(attempt)
        attempt.has_begun = True
        if isinstance(event, WorkerExit):
            attempt.exit = event
            if event.returncode == files.DISK_FAULT_EXIT_CODE:
                raise StudyError(f"a worker could not write into {attempt.folder}: {event.message}")
        for record in self._deaths(event, attempt) if isinstance(event, WorkerExit) else [event]:
            if isinstance(record, Outcome):
                # Publish before storing: a completed experiment is not run again, so its adapter must already be there.
                if record.adapter_path is not None:
                    adapter = inside(attempt.folder, attempt.folder / record.adapter_path)
                    self.publisher.publish(adapter, record.experiment_id)
                attempt.ended.setdefault(record.experiment_id, record)
            if not attempt.is_scoring or isinstance(record, AddedScore):
                self.tracker.take(record, pack_id=attempt.pack.id, attempt=attempt.number)

    def _register(self, attempt: Attempt) -> None:
        for experiment in attempt.pack.experiments:
            self.tracker.start_run(
                experiment.id,
                attempt=attempt.number,
                pack_id=attempt.pack.id,
                engine=experiment.settings.engine,
                run_folder=attempt.folder,
            )
        for prediction in attempt.predictions:
            self.tracker.take(prediction, pack_id=attempt.pack.id, attempt=attempt.number)

    def _deaths(self, exit_: WorkerExit, attempt: Attempt) -> list[Outcome]:
        if self.callbacks.is_leaving():
            return [_stopped(experiment) for experiment in attempt.open_experiments()]
        if exit_.returncode is None:
            message = "the worker ended without reporting this experiment"
        else:
            message = f"the worker died (exit code {exit_.returncode}): {exit_.message}"
        return [
            Outcome(experiment_id=experiment.id, status="failed", failure_kind="crashed", message=message)
            for experiment in attempt.open_experiments()
        ]

    def _stop_open(self, attempts: Iterable[Attempt]) -> None:
        """Store that the open runs were interrupted together with the suite."""
        for attempt in attempts:
            for experiment in (
                attempt.open_experiments() if attempt.has_begun and not attempt.is_scoring else ()
            ):
                self.tracker.take(_stopped(experiment), pack_id=attempt.pack.id, attempt=attempt.number)


def failures(ends: Mapping[str, Outcome], *, searching: Collection[str]) -> list[Outcome]:
    """The outcomes that are failures. Divergence in a learning-rate search is a finding, not a failure."""
    return [
        end for end in ends.values() if end.status == "failed" and not is_too_high(end, searching=searching)
    ]


def is_too_high(end: Outcome, *, searching: Collection[str]) -> bool:
    """Whether this outcome is a divergence in a learning-rate search: the rate is too high."""
    return end.failure_kind == "diverged" and end.experiment_id in searching


def _stopped(experiment: Experiment) -> Outcome:
    return Outcome(experiment_id=experiment.id, status="stopped", message="the suite was interrupted")
