"""A whole suite: what is missing is packed, sent to workers, and what comes back is stored.

    experiments -> packs --pack.json--> workers --records.jsonl--> store

This is the only writer of the store. A pack that fails as a whole is cut in two and tried again, until what
fails stands alone: one failing experiment never takes others with it.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from lorastudy import disk
from lorastudy.errors import StudyError
from lorastudy.executors import Executor, WorkerExit
from lorastudy.jobs import AdapterOrigin
from lorastudy.planner.packing import PlannedPack, form_packs, halves
from lorastudy.records import Outcome, Pack, Record
from lorastudy.spec.experiment import Experiment
from lorastudy.tracker import ExperimentTracker, suite_notes

#: Failures that another composition of the pack may not meet.
SHARED_FAILURES = frozenset({"out_of_memory", "crashed", "error"})
#: What must be as it was for a result to count as already there.
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")

OnEvent = Callable[[PlannedPack, Record | WorkerExit], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where a suite's files go, and whether it goes on after a failure."""

    runs: Path = Path("results/runs")
    output: Path = Path("output")
    continue_on_error: bool = False


@dataclass(frozen=True, kw_only=True)
class SuiteOutcome:
    """What became of a suite's experiments, by id."""

    done_before: tuple[str, ...]
    completed: tuple[str, ...]
    failed: tuple[Outcome, ...]
    not_run: tuple[str, ...]
    unpublished: tuple[str, ...] = ()
    """Done before, and their adapters are neither at their place nor in a run folder any more."""


@dataclass(kw_only=True)
class _Try:
    """One pack in its run folder, on its way."""

    pack: PlannedPack
    attempt: int
    folder: Path
    has_begun: bool = False
    ended: dict[str, Outcome] = field(default_factory=dict)

    def open_experiments(self) -> list[Experiment]:
        """Those of which no end is known."""
        return [experiment for experiment in self.pack.experiments if experiment.id not in self.ended]

    def to_try_again(self) -> list[PlannedPack]:
        """What failed for a reason that its company may have caused, in smaller packs."""
        return halves([e for e in self.pack.experiments if self._may_try_again(self.ended[e.id])])

    def final_ends(self) -> dict[str, Outcome]:
        """The ends that are not tried again, by experiment."""
        return {key: end for key, end in self.ended.items() if not self._may_try_again(end)}

    def _may_try_again(self, end: Outcome) -> bool:
        return len(self.pack.experiments) > 1 and end.failure_kind in SHARED_FAILURES


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

    Without `plan.continue_on_error` nothing more is started once an experiment has failed for good.
    """
    tracker.register(suite_name, experiments)
    suite_notes.keep(tracker, suite_name, runs=plan.runs)
    missing = not_done(experiments, tracker=tracker)
    unpublished = _publish_done(experiments, missing, tracker=tracker, output=plan.output)
    ends: dict[str, Outcome] = {}
    waiting = form_packs(missing)
    while waiting:
        tries = {
            each.folder: each
            for each in (_prepare(pack, tracker=tracker, root=plan.runs) for pack in waiting)
        }
        waiting = []
        with closing(executor.run(list(tries))) as events:
            try:
                for folder, event in events:
                    current = tries[folder]
                    _take(event, current, tracker=tracker, output=plan.output)
                    on_event(current.pack, event)
                    if isinstance(event, WorkerExit):
                        waiting += current.to_try_again()
                        if _has_failed(current) and not plan.continue_on_error:
                            waiting = []
                            break
            finally:
                _stop_open(tries.values(), tracker=tracker)
        # Of all, not only of those that came to their exit: packs may train side by side.
        ends |= {key: end for each in tries.values() for key, end in each.final_ends().items()}
    return replace(_outcome(experiments, missing, ends=ends), unpublished=unpublished)


def not_done(experiments: Sequence[Experiment], *, tracker: ExperimentTracker) -> list[Experiment]:
    """The experiments without a completed run under these versions of the libraries that make the numbers."""
    done = tracker.completed([experiment.id for experiment in experiments])
    now = tuple(version(name) for name in LIBRARIES)

    def is_done(experiment: Experiment) -> bool:
        then = done.get(experiment.id)
        return then is not None and tuple(getattr(then, name) for name in LIBRARIES) == now

    return [experiment for experiment in experiments if not is_done(experiment)]


def _prepare(pack: PlannedPack, *, tracker: ExperimentTracker, root: Path) -> _Try:
    """A new run folder with its `pack.json`; a folder is never used twice."""
    attempt = tracker.next_attempt([experiment.id for experiment in pack.experiments])
    while (folder := root / pack.id / f"attempt-{attempt}").exists():
        attempt += 1
    folder.mkdir(parents=True)
    engine = pack.experiments[0].settings.engine
    Pack(id=pack.id, attempt=attempt, engine=engine, experiments=pack.experiments).write(folder)
    return _Try(pack=pack, attempt=attempt, folder=folder)


def _take(event: Record | WorkerExit, current: _Try, *, tracker: ExperimentTracker, output: Path) -> None:
    """Store what came; a worker's death ends what it left open."""
    if not current.has_begun:
        current.has_begun = True
        for experiment in current.pack.experiments:
            tracker.start_run(
                experiment.id,
                attempt=current.attempt,
                pack_id=current.pack.id,
                engine=experiment.settings.engine,
                run_folder=current.folder,
            )
    if isinstance(event, WorkerExit) and event.returncode == disk.EXIT_CODE:
        raise StudyError(f"a worker could not write into {current.folder}: {event.message}")
    records = _deaths(event, current) if isinstance(event, WorkerExit) else [event]
    for record in records:
        if isinstance(record, Outcome):
            # Published before it is stored: what the store calls completed is not run again, so it must be there.
            _publish_new(record, current, output=output)
            current.ended[record.experiment_id] = record
        tracker.take(record, pack_id=current.pack.id, attempt=current.attempt)


def _deaths(exit_: WorkerExit, current: _Try) -> list[Outcome]:
    if exit_.returncode is None:
        message = "the worker left without a word about this experiment"
    else:
        message = f"the worker died (exit code {exit_.returncode}): {exit_.message}"
    return [
        Outcome(experiment_id=experiment.id, status="failed", failure_kind="crashed", message=message)
        for experiment in current.open_experiments()
    ]


def _publish_new(record: Outcome, current: _Try, *, output: Path) -> None:
    if record.adapter_path is not None:
        name = next(e.name for e in current.pack.experiments if e.id == record.experiment_id)
        _publish(current.folder / record.adapter_path, output / name / "final_model")


def _publish_done(
    experiments: Sequence[Experiment],
    missing: Sequence[Experiment],
    *,
    tracker: ExperimentTracker,
    output: Path,
) -> tuple[str, ...]:
    """Publish adapters of experiments that were done before, perhaps under another name or for another folder.

    Returns the ids of those whose adapter is nowhere to be found.
    """
    missing_ids = {experiment.id for experiment in missing}
    gone = []
    for experiment in experiments:
        target = output / experiment.name / "final_model"
        origin = AdapterOrigin.read(target)
        if experiment.id in missing_ids or (origin is not None and origin.experiment_id == experiment.id):
            continue
        done = tracker.get_experiment(experiment.id)
        adapter = Path(done.run_folder or "") / (done.adapter_path or "")
        if done.adapter_path is not None and adapter.is_dir():
            _publish(adapter, target)
        else:
            gone.append(experiment.id)
    return tuple(gone)


def _publish(adapter: Path, target: Path) -> None:
    """Copy an adapter to `output/<name>/final_model`, whole or not at all. The run folder keeps its own."""
    fresh, old = target.with_name("final_model.new"), target.with_name("final_model.old")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(adapter, fresh)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _has_failed(current: _Try) -> bool:
    return any(end.status == "failed" for end in current.final_ends().values())


def _stop_open(tries: Iterable[_Try], *, tracker: ExperimentTracker) -> None:
    """Put on record that runs were under way when the suite was interrupted."""
    for current in tries:
        for experiment in current.open_experiments() if current.has_begun else ():
            stopped = Outcome(
                experiment_id=experiment.id, status="stopped", message="the suite was interrupted"
            )
            tracker.take(stopped, pack_id=current.pack.id, attempt=current.attempt)


def _outcome(
    experiments: Sequence[Experiment], missing: Sequence[Experiment], *, ends: dict[str, Outcome]
) -> SuiteOutcome:
    missing_ids = {experiment.id for experiment in missing}
    return SuiteOutcome(
        done_before=tuple(e.id for e in experiments if e.id not in missing_ids),
        completed=tuple(e.id for e in missing if e.id in ends and ends[e.id].status == "completed"),
        failed=tuple(ends[e.id] for e in missing if e.id in ends and ends[e.id].status == "failed"),
        not_run=tuple(e.id for e in missing if e.id not in ends),
    )
