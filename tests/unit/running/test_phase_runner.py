"""A suite from its experiments to its outcome, with an executor that lives in memory."""

import itertools
import json
import os
import shutil
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

from lorastudy.errors import StudyError
from lorastudy.executors import WorkerExit
from lorastudy.executors.executor import Event
from lorastudy.protocol import files as disk
from lorastudy.protocol.jobs import AdapterOrigin
from lorastudy.protocol.records import ArmStep, Environment, FailureKind, Outcome, Pack, PackStep, Record
from lorastudy.protocol.run_folder import checkpoint_folder
from lorastudy.running.adapters import published
from lorastudy.running.phase_runner import MAX_KILLED, Callbacks
from lorastudy.running.study import StudyOutcome, run_plan
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment
from planned import experiments, options_in, plan_of, run_experiments

pytestmark = pytest.mark.long

SUITE = "the suite"


class MemoryExecutor:
    """Serves packs as told: by experiment name, how it fails; all others complete.

    `crash` takes its whole pack down, `out_of_memory` and `error` too, with a word; the other kinds concern
    one experiment.
    """

    num_packs_at_once = 1
    hands_over = False

    def __init__(self, **fails: str) -> None:
        self.fails = fails
        self.torch = version("torch")
        self.served: list[tuple[str, ...]] = []
        self.folders: list[Path] = []
        self.is_closed = False

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        try:
            for folder in folders:
                pack = Pack.read(folder)
                self.folders.append(folder)
                self.served.append(tuple(each.name for each in pack.experiments))
                for event in self._serve(pack, folder):
                    yield folder, event
        finally:
            self.is_closed = True

    def _serve(self, pack: Pack, folder: Path) -> Iterator[Record | WorkerExit]:
        yield environment(self.torch)
        yield first_step(pack)
        together = {self.fails.get(each.name) for each in pack.experiments} & {
            "crash",
            "out_of_memory",
            "error",
        }
        if "crash" in together:
            yield WorkerExit(returncode=-9, message="killed")
            return
        for each in pack.experiments:
            kind = next(iter(together), self.fails.get(each.name))
            yield failed(each, kind) if kind else completed(each, folder)
        yield WorkerExit(returncode=None)


def environment(torch: str) -> Environment:
    return Environment(
        python="3", torch=torch, transformers=version("transformers"), peft=version("peft"),
        bitsandbytes=version("bitsandbytes"), lorastudy="0", device="cpu", device_name="cpu", num_threads=1,
    )  # fmt: skip


def first_step(pack: Pack) -> PackStep:
    arms = tuple(
        ArmStep(experiment_id=each.id, loss=1.0, learning_rate=0.1, grad_norm=1.0)
        for each in pack.experiments
    )
    return PackStep(step=1, num_steps=2, num_tokens=8, num_completion_tokens=4, seconds=0.1, arms=arms)


def failed(experiment: Experiment, kind: str) -> Outcome:
    kinds: dict[str, FailureKind] = {
        "out_of_memory": "out_of_memory", "error": "error", "user": "user", "diverged": "diverged",
    }  # fmt: skip
    return Outcome(
        experiment_id=experiment.id, status="failed", failure_kind=kinds[kind], message=f"it is {kind}"
    )


def completed(experiment: Experiment, folder: Path) -> Outcome:
    adapter = folder / "adapters" / experiment.id
    adapter.mkdir(parents=True)
    (adapter / "weights").write_text(f"{experiment.name} of {folder.name}")
    AdapterOrigin.of(experiment).write(adapter)
    path = adapter.relative_to(folder).as_posix()
    return Outcome(experiment_id=experiment.id, status="completed", step=2, adapter_path=path)


def silent(*_: object) -> None:
    """Listens to nothing."""


@pytest.fixture
def run(tmp_path: Path, tracker: ExperimentTracker) -> Callable[..., StudyOutcome]:
    def run(
        wanted: Sequence[Experiment],
        executor: MemoryExecutor,
        *,
        continue_on_error: bool = False,
        on_event: Callable[..., None] = silent,
        suite_name: str = SUITE,
    ) -> StudyOutcome:
        return run_experiments(
            wanted,
            suite_name=suite_name,
            tracker=tracker,
            executor=executor,
            options=options_in(tmp_path, continue_on_error=continue_on_error),
            on_event=on_event,
        )

    return run


def names(ids: Sequence[str], wanted: Sequence[Experiment]) -> list[str]:
    return [each.name for each in wanted if each.id in ids]


def statuses(tracker: ExperimentTracker) -> dict[str, str]:
    return {result.name: result.status for result in tracker.get_all_experiments()}


def test_what_may_train_together_does(run: Callable[..., StudyOutcome], tracker: ExperimentTracker) -> None:
    wanted = [*experiments("a", "b", "c"), *experiments("d", "e", max_seq_length=64)]
    executor = MemoryExecutor()
    outcome = run(wanted, executor)
    assert executor.served == [("a", "b", "c"), ("d", "e")]
    assert names(outcome.completed, wanted) == ["a", "b", "c", "d", "e"]
    assert set(statuses(tracker).values()) == {"completed"}
    assert [len(tracker.get_steps(each.id)) for each in wanted] == [1] * 5


def test_adapters_are_published_under_their_names(run: Callable[..., StudyOutcome], tmp_path: Path) -> None:
    run(experiments("a", "b"), MemoryExecutor())
    for name in "ab":
        assert [path.name for path in (tmp_path / "output" / name).iterdir()] == ["final_model"]
        assert (tmp_path / "output" / name / "final_model" / "weights").read_text().startswith(f"{name} of")


def test_an_adapter_replaces_whole_and_with_a_word_one_that_no_suite_has_any_more(
    run: Callable[..., StudyOutcome], tracker: ExperimentTracker, tmp_path: Path
) -> None:
    target = tmp_path / "output" / "a" / "final_model"
    earlier, edited = experiments("a"), experiments("a", max_steps=3)
    run(earlier, MemoryExecutor())
    (target / "left_over").write_text("of another model")
    (target.parent / "final_model.new").mkdir()  # the copy of a runner that was killed over it
    (target.parent / "final_model.new" / "half").write_text("")
    tracker.register(SUITE, edited)
    tracker.keep_only(SUITE, edited)
    once_more = experiments("a", max_steps=4)
    outcome = run(edited, MemoryExecutor())
    assert sorted(path.name for path in target.iterdir()) == ["lorastudy.json", "weights"]
    assert [path.name for path in target.parent.iterdir()] == ["final_model"]
    assert outcome.replaced == ((target, earlier[0].id),)
    assert published(edited[0], suite_name=SUITE, output=tmp_path / "output") == target
    shutil.rmtree(tmp_path / "runs")  # now the published one is the only one
    tracker.register(SUITE, once_more)
    tracker.keep_only(SUITE, once_more)
    assert run(once_more, MemoryExecutor()).replaced == ()
    assert published(edited[0], suite_name=SUITE, output=tmp_path / "output") == target


def test_an_adapter_that_another_suite_has_is_kept_and_the_new_one_lies_under_its_suites_name(
    run: Callable[..., StudyOutcome], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    first, second = experiments("a", "b"), experiments("a", "c", max_seq_length=64)
    run(first, MemoryExecutor(), suite_name="first")
    outcome = run(second, MemoryExecutor(), suite_name="second")
    places = [published(each, suite_name="second", output=output) for each in second]
    assert places == [output / "second" / "a" / "final_model", output / "c" / "final_model"]
    assert outcome.replaced == ()
    weights = [path / "weights" for path in output.rglob("final_model")]
    before = {path: path.stat().st_mtime_ns for path in weights}
    for suite_name, wanted in (("first", first), ("second", second), ("first", first)):
        again = run(wanted, MemoryExecutor(), suite_name=suite_name)
        assert (again.completed, again.unpublished, again.replaced) == ((), (), ())
    assert {path: path.stat().st_mtime_ns for path in weights} == before  # each was there already
    assert (output / "a" / "final_model" / "weights").read_text() == "a of attempt-1"
    assert published(first[0], suite_name="first", output=output) == output / "a" / "final_model"


def test_two_experiments_of_one_name_in_one_suite_both_stay(
    run: Callable[..., StudyOutcome], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    wanted = [*experiments("a"), *experiments("a", max_seq_length=64), *experiments("a", max_seq_length=32)]
    for each in wanted:  # as by `lorastudy run`, whose experiments are all in one suite
        run([each], MemoryExecutor(), suite_name="run")
    run(wanted, MemoryExecutor(), suite_name="run")
    places = [published(each, suite_name="run", output=output) for each in wanted]
    assert places == [
        output / "a" / "final_model",
        output / "run" / "a" / "final_model",
        output / "run" / f"a-{wanted[2].id}" / "final_model",
    ]


def test_a_folder_of_which_nobody_knows_whose_it_is_is_kept(
    run: Callable[..., StudyOutcome], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    for name in "ab":
        (output / name / "final_model").mkdir(parents=True)
    (output / "a" / "final_model" / "weights").write_text("of a program of mine")
    stranger = experiments("b", max_seq_length=64)[0]  # of another store
    AdapterOrigin.of(stranger).write(output / "b" / "final_model")
    wanted = experiments("a", "b")
    run(wanted, MemoryExecutor(), suite_name="mine")
    for each in wanted:
        place = published(each, suite_name="mine", output=output)
        assert place == output / "mine" / each.name / "final_model"
    assert (output / "a" / "final_model" / "weights").read_text() == "of a program of mine"
    assert published(stranger, suite_name="theirs", output=output) == output / "b" / "final_model"
    shutil.rmtree(output / "mine" / "a")
    assert run(wanted, MemoryExecutor(), suite_name="mine").unpublished == ()
    assert (output / "mine" / "a" / "final_model" / "weights").is_file()  # again, from the run folder


def test_what_is_done_is_not_run_again(run: Callable[..., StudyOutcome]) -> None:
    wanted = experiments("a", "b", "c")
    run(wanted[:2], MemoryExecutor())
    executor = MemoryExecutor()
    outcome = run(wanted, executor)
    assert executor.served == [("c",)]
    assert names(outcome.done_before, wanted) == ["a", "b"]
    assert names(outcome.completed, wanted) == ["c"]
    assert run(wanted, executor).completed == ()
    assert executor.served == [("c",)]


def test_what_was_done_under_another_name_is_published_under_this_one(
    run: Callable[..., StudyOutcome], tmp_path: Path
) -> None:
    run(experiments("a"), MemoryExecutor())
    executor = MemoryExecutor()
    run(experiments("also"), executor)  # the same rank, so the same experiment
    assert executor.served == []
    assert (tmp_path / "output" / "also" / "final_model" / "weights").read_text() == "a of attempt-1"


def test_what_was_done_and_has_no_adapter_any_more_is_named(
    run: Callable[..., StudyOutcome], tmp_path: Path
) -> None:
    wanted = experiments("a", "b")
    executor = MemoryExecutor()
    assert run(wanted, executor).unpublished == ()
    for each in wanted:
        AdapterOrigin.of(each).write(tmp_path / "output" / each.name / "final_model")
    shutil.rmtree(executor.folders[0])
    assert run(wanted, executor).unpublished == ()  # they were published
    shutil.rmtree(tmp_path / "output" / "b")
    assert names(run(wanted, executor).unpublished, wanted) == ["b"]
    assert not (tmp_path / "output" / "b").exists()


def test_a_worker_that_could_not_write_stops_the_suite_and_nothing_counts_as_failed(
    run: Callable[..., StudyOutcome], tracker: ExperimentTracker
) -> None:
    wanted = [*experiments("a", "b"), *experiments("c", max_seq_length=64)]
    executor = FullDisk()
    with pytest.raises(StudyError, match=r"a worker could not write into .*attempt-1: the disk is full"):
        run(wanted, executor, continue_on_error=True)
    assert executor.is_closed
    assert statuses(tracker) == {"a": "completed", "b": "stopped", "c": "pending"}
    assert names(run(wanted, MemoryExecutor()).completed, wanted) == ["b", "c"]


def test_a_disk_that_is_full_when_an_adapter_is_published_is_told_from_any_other_error(
    run: Callable[..., StudyOutcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path, **_: object) -> None:
        raise OSError(28, "No space left on device", str(source), None, str(target))

    wanted = experiments("a")
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left") as raised:
        run(wanted, MemoryExecutor())
    assert disk.is_disk_fault(raised.value)
    assert disk.disk_fault_message(raised.value).endswith("goes on with what is missing")
    assert "final_model.new" in disk.disk_fault_message(raised.value)
    monkeypatch.undo()
    assert names(run(wanted, MemoryExecutor()).completed, wanted) == ["a"]


class FullDisk(MemoryExecutor):
    """The disk is full when the first experiment of the first pack is done."""

    def _serve(self, pack: Pack, folder: Path) -> Iterator[Record | WorkerExit]:
        yield environment(self.torch)
        yield completed(pack.experiments[0], folder)
        yield WorkerExit(returncode=disk.DISK_FAULT_EXIT_CODE, message="the disk is full")


def test_times_that_run_backwards_change_no_result(tmp_path: Path) -> None:
    """The clock of the machine is set back a day between any two looks at it."""
    days = itertools.count()

    def clock() -> datetime:
        return datetime(2026, 6, 30, tzinfo=UTC) - timedelta(days=next(days))

    wanted = experiments("a", "b")
    for executor in (MemoryExecutor(), MemoryExecutor()):
        with ExperimentTracker(tmp_path / "back.db", writable=True, clock=clock) as tracker:
            outcome = run_experiments(
                wanted, suite_name=SUITE, tracker=tracker, executor=executor, options=options_in(tmp_path)
            )
            results = tracker.get_all_experiments()
    assert len(outcome.done_before) == 2
    assert [result.status for result in results] == ["completed", "completed"]
    assert all(result.finished_at < result.started_at for result in results)  # they say what the clock said


def test_a_result_of_other_library_versions_does_not_count(
    run: Callable[..., StudyOutcome], tracker: ExperimentTracker
) -> None:
    wanted = experiments("a")
    old = MemoryExecutor()
    old.torch = "1.0"
    run(wanted, old)
    outcome = run(wanted, MemoryExecutor())
    assert outcome.done_before == ()
    assert names(outcome.completed, wanted) == ["a"]
    assert tracker.get_experiment(wanted[0].id).attempt == 2


@pytest.mark.parametrize("how", ["crash", "out_of_memory", "error"])
def test_a_pack_that_fails_is_halved_until_the_culprit_stands_alone(
    run: Callable[..., StudyOutcome], tracker: ExperimentTracker, how: str
) -> None:
    wanted = experiments("a", "b", "c", "d", "e")
    executor = MemoryExecutor(d=how)
    outcome = run(wanted, executor, continue_on_error=True)
    # A worker that was killed (exit code -9) may have been so from outside: its pack is tried once more as it is.
    again = [("a", "b", "c", "d", "e")] if how == "crash" else []
    assert executor.served == [*again, ("a", "b", "c", "d", "e"), ("a", "b"), ("c", "d", "e"), ("c",), ("d", "e"), ("d",), ("e",)]  # fmt: skip
    assert names(outcome.completed, wanted) == ["a", "b", "c", "e"]
    (end,) = outcome.failed
    assert names([end.experiment_id], wanted) == ["d"]
    assert end.failure_kind == ("crashed" if how == "crash" else how)
    assert statuses(tracker) == dict.fromkeys("abce", "completed") | {"d": "failed"}


def test_a_crash_says_what_the_worker_said(run: Callable[..., StudyOutcome]) -> None:
    (end,) = run(experiments("a"), MemoryExecutor(a="crash")).failed
    assert end.message == "the worker died (exit code -9): killed"


@pytest.mark.parametrize("how", ["user", "diverged"])
def test_what_is_nobody_elses_doing_is_not_tried_again(run: Callable[..., StudyOutcome], how: str) -> None:
    wanted = experiments("a", "b", "c")
    executor = MemoryExecutor(b=how)
    outcome = run(wanted, executor)
    assert executor.served == [("a", "b", "c")]
    assert names(outcome.completed, wanted) == ["a", "c"]
    assert [end.failure_kind for end in outcome.failed] == [how]


def test_a_failure_stops_the_suite(run: Callable[..., StudyOutcome], tracker: ExperimentTracker) -> None:
    wanted = [*experiments("a", "b"), *experiments("c", max_seq_length=64)]
    executor = MemoryExecutor(a="user")
    outcome = run(wanted, executor)
    assert executor.served == [("a", "b")]
    assert executor.is_closed
    assert names(outcome.completed, wanted) == ["b"]
    assert names(outcome.not_run, wanted) == ["c"]
    assert statuses(tracker) == {"a": "failed", "b": "completed", "c": "pending"}


def test_continue_on_error_goes_on(run: Callable[..., StudyOutcome]) -> None:
    wanted = [*experiments("a", "b"), *experiments("c", max_seq_length=64)]
    outcome = run(wanted, MemoryExecutor(a="user"), continue_on_error=True)
    assert names(outcome.completed, wanted) == ["b", "c"]
    assert outcome.not_run == ()


def test_a_failure_of_the_pack_does_not_stop_the_suite_before_it_stands_alone(
    run: Callable[..., StudyOutcome],
) -> None:
    wanted = [*experiments("a", "b"), *experiments("c", max_seq_length=64)]
    executor = MemoryExecutor(b="crash")
    outcome = run(wanted, executor)
    assert executor.served == [("a", "b"), ("c",), ("a", "b"), ("a",), ("b",)]
    assert names(outcome.completed, wanted) == ["a", "c"]


def test_packs_side_by_side_keep_what_they_finished_when_one_stops_the_suite(
    run: Callable[..., StudyOutcome],
) -> None:
    wanted = [*experiments("a"), *experiments("b", "c", max_seq_length=64)]
    executor = SideBySide(c="user")
    outcome = run(wanted, executor)
    assert names(outcome.completed, wanted) == ["b"]  # of the same pack as the failure
    assert names(outcome.not_run, wanted) == ["a"]  # under way; its pack came first and lags behind


class SideBySide(MemoryExecutor):
    """All packs are in flight; the first one is the slowest."""

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        for folder in folders:
            yield folder, environment(self.torch)
        yield from super().run(list(reversed(folders)))


def test_an_interruption_is_on_record_and_the_next_call_runs_what_is_missing(
    run: Callable[..., StudyOutcome], tracker: ExperimentTracker
) -> None:
    wanted = experiments("a", "b", "c")

    def interrupt(_: object, event: object) -> None:
        if isinstance(event, Outcome):
            raise KeyboardInterrupt

    executor = MemoryExecutor()
    with pytest.raises(KeyboardInterrupt):
        run(wanted, executor, on_event=interrupt)
    assert executor.is_closed
    assert statuses(tracker) == {"a": "completed", "b": "stopped", "c": "stopped"}
    again = MemoryExecutor()
    outcome = run(wanted, again)
    assert again.served == [("b", "c")]
    assert names(outcome.done_before, wanted) == ["a"]
    assert names(outcome.completed, wanted) == ["b", "c"]


def test_a_runner_that_was_killed_leaves_nothing_that_counts_as_done(
    run: Callable[..., StudyOutcome], tracker: ExperimentTracker
) -> None:
    (wanted,) = experiments("a")
    tracker.register(SUITE, [wanted])
    tracker.start_run(wanted.id, attempt=1, pack_id="pack-0", engine="auto", run_folder="gone")
    assert names(run([wanted], MemoryExecutor()).completed, [wanted]) == ["a"]
    assert tracker.get_experiment(wanted.id).attempt == 2


def test_a_run_folder_is_never_used_twice(run: Callable[..., StudyOutcome], tmp_path: Path) -> None:
    """Not even one that the store knows nothing of, such as that of a store that was thrown away."""
    wanted = experiments("a")
    first, second = MemoryExecutor(), MemoryExecutor()
    run(wanted, first)
    (folder,) = first.folders
    with ExperimentTracker(tmp_path / "new.db", writable=True) as fresh:
        run_experiments(
            wanted, suite_name=SUITE, tracker=fresh, executor=second, options=options_in(tmp_path)
        )
    assert second.folders == [folder.with_name("attempt-2")]
    assert (folder / "adapters").is_dir()


class StoppedOften(MemoryExecutor):
    """Its workers are ended from outside before they have saved anything."""

    def _serve(self, pack: Pack, folder: Path) -> Iterator[Record | WorkerExit]:
        yield environment(self.torch)
        for each in pack.experiments:
            yield Outcome(experiment_id=each.id, status="stopped", message="ended by a signal")
        yield WorkerExit(returncode=-15, message="terminated")


def test_a_lone_run_that_is_ended_from_outside_again_and_again_is_left_for_the_next_call(
    run: Callable[..., StudyOutcome], tracker: ExperimentTracker
) -> None:
    wanted = experiments("a")
    executor = StoppedOften()
    outcome = run(wanted, executor)
    assert len(executor.served) <= MAX_KILLED
    assert outcome.not_run == (wanted[0].id,)
    assert outcome.failed == ()
    assert statuses(tracker) == {"a": "stopped"}
    assert len(run(wanted, MemoryExecutor()).completed) == 1


def test_checkpoints_of_a_run_stay_while_only_another_version_of_the_libraries_has_completed_it(
    run: Callable[..., StudyOutcome], tracker: ExperimentTracker
) -> None:
    """Completed under old libraries, then begun again under those of now and cut off after a checkpoint."""
    wanted = experiments("a")
    old = MemoryExecutor()
    old.torch = "0.1"
    run(wanted, old)

    class CutOff(MemoryExecutor):
        def _serve(self, pack: Pack, folder: Path) -> Iterator[Record | WorkerExit]:
            yield environment(self.torch)
            checkpoint_folder(folder, 1).mkdir(parents=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(wanted, CutOff())
    resumed: list[tuple[str, ...]] = []

    class Looking(MemoryExecutor):
        def _serve(self, pack: Pack, folder: Path) -> Iterator[Record | WorkerExit]:
            resumed.append(pack.resume_from)
            assert (folder / pack.resume_from[0] / "checkpoints").is_dir()
            yield from super()._serve(pack, folder)

    assert len(run(wanted, Looking()).completed) == 1
    assert resumed == [("../attempt-2",)]


def test_a_suite_that_asks_again_for_what_it_once_dropped_reads_its_results(
    run: Callable[..., StudyOutcome], tracker: ExperimentTracker
) -> None:
    """Results are read once the suite has its experiments: what is done is done, though no suite had it a moment ago."""
    a, b = experiments("a", "b")
    run([a, b], MemoryExecutor())
    tracker.keep_only(SUITE, [b])
    again = MemoryExecutor()
    outcome = run([a, b], again)
    assert again.served == []
    assert set(outcome.done_before) == {a.id, b.id}


def test_a_store_that_the_run_opens_is_shown_with_whom_it_was_taken_over_from(tmp_path: Path) -> None:
    file = tmp_path / "new.db"
    ExperimentTracker(file, writable=True).close()
    holder = {"pid": os.getppid(), "host": socket.gethostname(), "since": "2026-01-01"}
    file.with_name(f"{file.name}.lock").write_text(json.dumps(holder))
    left_behind = []
    run_plan(
        plan_of(experiments("a"), suite_name=SUITE, executor=MemoryExecutor()),
        database=str(file),
        executor=MemoryExecutor(),
        options=options_in(tmp_path),
        callbacks=Callbacks(on_open=lambda store: left_behind.append(store.left_behind)),
    )
    (found,) = left_behind
    assert found is not None
    assert found.pid == holder["pid"]
