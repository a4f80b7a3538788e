"""A whole suite: what is missing is packed, sent to workers, and what comes back is stored.

    experiments -> packs --pack.json--> workers --records.jsonl--> store

This is the only writer of the store. A pack that fails as a whole is cut in two and tried again, until what
fails stands alone: one failing experiment never takes others with it. One whose worker was killed is tried again as
it is. Either way it goes on from its last checkpoint.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorastudy.errors import StudyError
from lorastudy.executors import HUNG, Executor, WorkerExit
from lorastudy.planning.done import not_done
from lorastudy.planning.packing import PlannedPack, halves
from lorastudy.protocol import disk_errors as disk
from lorastudy.protocol.checkpoints import CHECKPOINTS_NAME
from lorastudy.protocol.record_lines import RecordWriter
from lorastudy.protocol.records import PREDICTIONS_NAME, MemoryPrediction, Outcome, Pack, Record
from lorastudy.running.attempts import WaitingPack, packs_to_run, take_what_was_left, with_checkpoints
from lorastudy.running.publishing import Shelf, usual_place
from lorastudy.store import ExperimentTracker, suite_notes
from lorastudy.suite.containment import inside
from lorastudy.suite.experiment import Experiment

#: Failures that another composition of the pack may not meet.
SHARED_FAILURES = frozenset({"out_of_memory", "crashed", "error"})
#: A worker that is killed says nothing of its pack; but one that is killed again and again before it has saved anything
#: may be killed for its pack, as by a system that is out of memory.
MOST_VAIN = 2

OnEvent = Callable[[PlannedPack, Record | WorkerExit], None]


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A part of a suite whose packs pause on the way: how far they train, and who has a part in it."""

    rungs: tuple[float, ...] = ()
    """Shares of the training after which the held-out rows are scored, in a race."""
    pause_at: Mapping[str, float] = field(default_factory=dict)
    """The share at which an experiment's pack pauses; without an entry it trains to its end."""
    begun: Mapping[str, float] = field(default_factory=dict)
    """The share that an earlier leg was to bring an experiment to."""
    settled: frozenset[str] = frozenset()
    """Experiments that are not run in this leg: there already, stopped, or failed on the way."""
    alone: frozenset[str] = frozenset()
    """Experiments that leave the company of the leg before, each into a pack of its own."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Packs that are about to run: all of a suite, or those of a round or of a leg. `going_on` were begun before."""

    name: str
    packs: tuple[PlannedPack, ...]
    going_on: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where a suite's files go, when it ends before it is done, and what was predicted of its packs."""

    runs: Path = Path("results/runs")
    output: Path = Path("output")
    continue_on_error: bool = False
    is_leaving: Callable[[], bool] = lambda: False
    """Whether the user has asked to leave; the executor has been told."""
    arms_per_pack: Mapping[str, int] = field(default_factory=dict)
    """By `pack_key`; without an entry, tokens are bounded."""
    predict: Callable[[PlannedPack], Sequence[MemoryPrediction]] = lambda _: ()
    searching: frozenset[str] = frozenset()
    """Experiments that look for a learning rate: that one of them diverges is an answer and no failure."""
    leg: Leg = field(default_factory=Leg)
    stage: str = ""
    """What is run now of a suite that runs in several stages, in words for the user."""
    on_stage: Callable[[Stage], None] = lambda _: None
    """Told before the packs of a stage are run."""

    def leaving_when(self, is_leaving: Callable[[], bool]) -> "Plan":
        """The same, left once this says so."""
        return replace(self, is_leaving=is_leaving)


@dataclass(frozen=True, kw_only=True)
class SuiteOutcome:
    """What became of a suite's experiments, by id."""

    done_before: tuple[str, ...]
    completed: tuple[str, ...]
    failed: tuple[Outcome, ...]
    not_run: tuple[str, ...]
    unpublished: tuple[str, ...] = ()
    """Done before, and their adapters are neither at their place nor in a run folder any more."""
    replaced: tuple[tuple[Path, str], ...] = ()
    """Where an adapter lay that no suite asks for any more, and whose: the suite's own has that place now."""
    diverged_in_search: tuple[Outcome, ...] = ()
    """Runs that were to find out whether a learning rate is too high, and did: an answer, not a failure."""
    paused: tuple[str, ...] = ()
    outraced: tuple[str, ...] = ()
    """Stopped by racing, by now or before: nothing is left to run of them."""


@dataclass(kw_only=True)
class _Try:
    """One pack in its run folder, on its way."""

    waiting: WaitingPack
    attempt: int
    folder: Path
    predictions: tuple[MemoryPrediction, ...] = ()
    has_begun: bool = False
    ended: dict[str, Outcome] = field(default_factory=dict)
    exit: WorkerExit | None = None

    @property
    def pack(self) -> PlannedPack:
        """The experiments in it."""
        return self.waiting.pack

    def open_experiments(self) -> list[Experiment]:
        """Those of which no end is known."""
        return [experiment for experiment in self.pack.experiments if experiment.id not in self.ended]

    def to_try_again(self) -> list[WaitingPack]:
        """Together after their worker was killed; in halves after a failure that their company may have caused."""
        again = [
            e for e in self.pack.experiments if e.id in self.ended and self._may_try_again(self.ended[e.id])
        ]
        is_together = self._goes_on_together()
        packs = [PlannedPack(experiments=tuple(again))] if is_together and again else halves(again)
        earlier = with_checkpoints([self.folder]) + self.waiting.earlier
        num_vain = self._num_vain() if self.exit is not None and self.exit.was_killed else 0
        return [
            WaitingPack(pack=pack, earlier=earlier, reason=self._reason(), num_vain=num_vain)
            for pack in packs
        ]

    def final_ends(self) -> dict[str, Outcome]:
        """The ends that are not tried again, by experiment."""
        return {key: end for key, end in self.ended.items() if not self._may_try_again(end)}

    def _may_try_again(self, end: Outcome) -> bool:
        is_shared = end.status == "stopped" or end.failure_kind in SHARED_FAILURES
        return is_shared and (self._goes_on_together() or len(self.pack.experiments) > 1)

    def _goes_on_together(self) -> bool:
        return self.exit is not None and self.exit.was_killed and self._num_vain() < MOST_VAIN

    def _num_vain(self) -> int:
        return 0 if with_checkpoints([self.folder]) else self.waiting.num_vain + 1

    def _reason(self) -> str:
        num_arms = len(self.pack.experiments)
        if self.exit is not None and self.exit.was_killed:
            said = self.exit.message.partition("\n")[0]
            why = said if said.startswith(HUNG) else f"exit code {self.exit.returncode}"
            return f"the worker of a pack of {num_arms} was ended ({why})"
        kinds = {end.failure_kind for end in self.ended.values()}
        what = "ran out of memory" if "out_of_memory" in kinds else "failed as a whole"
        return f"a pack of {num_arms} {what} and was cut in two"


def run_suite(
    experiments: Sequence[Experiment],
    *,
    suite_name: str,
    tracker: ExperimentTracker,
    executor: Executor,
    plan: Plan,
    on_event: OnEvent,
) -> SuiteOutcome:
    """Run what is missing of a suite; report every record and every worker's end to `on_event`.

    Without `plan.continue_on_error` nothing more is started once an experiment has failed for good. Once
    `plan.is_leaving` says so, what is under way is followed until it has left, and no more is started.
    """
    for experiment in experiments:
        inside(plan.output, usual_place(experiment, output=plan.output))
    tracker.register(suite_name, experiments)
    shelf = Shelf(experiments, suite_name=suite_name, tracker=tracker, output=plan.output)
    suite_notes.keep(tracker, suite_name, runs=plan.runs)
    take_what_was_left(experiments, tracker=tracker)
    concerned = [each for each in experiments if each.id not in plan.leg.settled]
    missing = not_done(concerned, tracker=tracker, searching=plan.searching)
    unpublished = shelf.publish_done(concerned, missing, tracker=tracker)
    ends: dict[str, Outcome] = {}
    waiting = packs_to_run(
        experiments,
        missing,
        tracker=tracker,
        arms_per_pack=plan.arms_per_pack,
        num_at_once=executor.num_packs_at_once,
        alone=plan.leg.alone,
    )
    folders = {folder for each in waiting for folder in each.earlier}
    if waiting:
        plan.on_stage(_stage(plan.stage, waiting))
    while waiting and not plan.is_leaving():
        tries = {
            each.folder: each for each in (_prepare(pack, tracker=tracker, plan=plan) for pack in waiting)
        }
        folders |= tries.keys()
        waiting = []
        with closing(executor.run(list(tries))) as events:
            try:
                for folder, event in events:
                    current = tries[folder]
                    _take(event, current, tracker=tracker, plan=plan, shelf=shelf)
                    on_event(current.pack, event)
                    if isinstance(event, WorkerExit) and not plan.is_leaving():
                        waiting += current.to_try_again()
                        if _has_failed(current, plan.searching) and not plan.continue_on_error:
                            waiting = []
                            break
            finally:
                _stop_open(tries.values(), tracker=tracker)
        # Of all, not only of those that came to their exit: packs may train side by side.
        ends |= {key: end for each in tries.values() for key, end in each.final_ends().items()}
    let_go_of_checkpoints(folders, tracker=tracker)
    outcome = _outcome(concerned, missing, ends=ends, searching=plan.searching)
    return replace(outcome, unpublished=unpublished, replaced=tuple(shelf.replaced.items()))


def _stage(name: str, waiting: Sequence[WaitingPack]) -> Stage:
    return Stage(
        name=name,
        packs=tuple(each.pack for each in waiting),
        going_on=frozenset(each.pack.id for each in waiting if each.earlier),
    )


def _prepare(waiting: WaitingPack, *, tracker: ExperimentTracker, plan: Plan) -> _Try:
    """A new run folder with its `pack.json` and what is predicted of it; a folder is never used twice."""
    pack = waiting.pack
    attempt = tracker.next_attempt([experiment.id for experiment in pack.experiments])
    while (folder := plan.runs / pack.id / f"attempt-{attempt}").exists():
        attempt += 1
    inside(plan.runs, folder).mkdir(parents=True)
    engine = pack.experiments[0].settings.engine
    Pack(
        id=pack.id,
        attempt=attempt,
        engine=engine,
        experiments=pack.experiments,
        resume_from=tuple(os.path.relpath(earlier, folder) for earlier in waiting.earlier),
        reason=waiting.reason,
        rungs=plan.leg.rungs,
        pause_at=plan.leg.pause_at.get(pack.experiments[0].id),
        begun=plan.leg.begun.get(pack.experiments[0].id, 0.0),
    ).write(folder)
    predictions = tuple(plan.predict(pack))
    if predictions:
        with closing(RecordWriter(folder / PREDICTIONS_NAME)) as writer:
            for prediction in predictions:
                writer.write(prediction)
    return _Try(waiting=waiting, attempt=attempt, folder=folder, predictions=predictions)


def _take(
    event: Record | WorkerExit, current: _Try, *, tracker: ExperimentTracker, plan: Plan, shelf: Shelf
) -> None:
    """Store what came; a worker's death ends what it left open."""
    if not current.has_begun:
        current.has_begun = True
        with tracker.together():
            for experiment in current.pack.experiments:
                tracker.start_run(
                    experiment.id,
                    attempt=current.attempt,
                    pack_id=current.pack.id,
                    engine=experiment.settings.engine,
                    run_folder=current.folder,
                )
            for prediction in current.predictions:
                tracker.take(prediction, pack_id=current.pack.id, attempt=current.attempt)
    if isinstance(event, WorkerExit):
        current.exit = event
        if event.returncode == disk.EXIT_CODE:
            raise StudyError(f"a worker could not write into {current.folder}: {event.message}")
    records = _deaths(event, current, plan=plan) if isinstance(event, WorkerExit) else [event]
    for record in records:
        if isinstance(record, Outcome):
            # Published before it is stored: what the store calls completed is not run again, so it must be there.
            if record.adapter_path is not None:
                shelf.publish(
                    inside(current.folder, current.folder / record.adapter_path), record.experiment_id
                )
            current.ended.setdefault(record.experiment_id, record)
        tracker.take(record, pack_id=current.pack.id, attempt=current.attempt)


def _deaths(exit_: WorkerExit, current: _Try, *, plan: Plan) -> list[Outcome]:
    if plan.is_leaving():
        return [_stopped(experiment) for experiment in current.open_experiments()]
    if exit_.returncode is None:
        message = "the worker left without a word about this experiment"
    else:
        message = f"the worker died (exit code {exit_.returncode}): {exit_.message}"
    return [
        Outcome(experiment_id=experiment.id, status="failed", failure_kind="crashed", message=message)
        for experiment in current.open_experiments()
    ]


def _has_failed(current: _Try, searching: Collection[str]) -> bool:
    ends = current.final_ends().values()
    return any(end.status == "failed" and not _is_found_too_high(end, searching) for end in ends)


def _is_found_too_high(end: Outcome, searching: Collection[str]) -> bool:
    return end.failure_kind == "diverged" and end.experiment_id in searching


def _stop_open(tries: Iterable[_Try], *, tracker: ExperimentTracker) -> None:
    """Put on record that runs were under way when the suite was interrupted."""
    for current in tries:
        for experiment in current.open_experiments() if current.has_begun else ():
            tracker.take(_stopped(experiment), pack_id=current.pack.id, attempt=current.attempt)


def _stopped(experiment: Experiment) -> Outcome:
    return Outcome(experiment_id=experiment.id, status="stopped", message="the suite was interrupted")


def let_go_of_checkpoints(
    folders: Iterable[Path], *, tracker: ExperimentTracker, given_up: Collection[str] = ()
) -> None:
    """Remove those of attempts of whose experiments all are completed or given up: nothing goes on from them any more."""
    members = {folder: {experiment.id for experiment in Pack.read(folder).experiments} for folder in folders}
    runs = tracker.get_runs(list(set().union(*members.values())))
    over = {run.experiment_id for run in runs if run.status == "completed"}.union(given_up)
    for folder, ids in members.items():
        if ids <= over:
            shutil.rmtree(folder / CHECKPOINTS_NAME, ignore_errors=True)


def _outcome(
    experiments: Sequence[Experiment],
    missing: Sequence[Experiment],
    *,
    ends: dict[str, Outcome],
    searching: Collection[str],
) -> SuiteOutcome:
    missing_ids = {experiment.id for experiment in missing}
    completed = tuple(e.id for e in missing if e.id in ends and ends[e.id].status == "completed")
    failed = tuple(ends[e.id] for e in missing if e.id in ends and ends[e.id].status == "failed")
    paused = tuple(e.id for e in missing if e.id in ends and ends[e.id].status == "paused")
    ended = {*completed, *paused, *(end.experiment_id for end in failed)}
    return SuiteOutcome(
        done_before=tuple(e.id for e in experiments if e.id not in missing_ids),
        completed=completed,
        failed=tuple(end for end in failed if not _is_found_too_high(end, searching)),
        diverged_in_search=tuple(end for end in failed if _is_found_too_high(end, searching)),
        not_run=tuple(e.id for e in missing if e.id not in ended),
        paused=paused,
    )
