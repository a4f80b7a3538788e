"""A pack that was broken off goes on to the very bits, or starts anew and says why. The worker is a fork."""

import itertools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import forked
from lorastudy.protocol.files import write_sealed_folder
from lorastudy.protocol.records import RECORDS_NAME, Incident, Outcome, PackStep, RecordReader
from lorastudy.protocol.run_folder import CHECKPOINTS_NAME, checkpoint_folders
from lorastudy.store import ExperimentTracker
from lorastudy.train import checkpointing
from lorastudy.train.checkpointing import MAX_CHECKPOINT_SHARE, CheckpointSchedule, Stopwatch, TrainingTimes
from planned import options_in, run_experiments

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]


#: `make slow` repeats every test on the reference engine; those marked with this run on both in `make test` too.
BOTH = pytest.mark.parametrize("suite", ["packed", "reference"], indirect=True)


@pytest.fixture(scope="module", params=["packed", pytest.param("reference", marks=pytest.mark.slow)])
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> forked.TinySuite:
    return forked.tiny_suite(tmp_path_factory.mktemp("suite"), engine=request.param)


@pytest.fixture(scope="module")
def calm(suite: forked.TinySuite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("calm")
    outcome = forked.run(suite, folder)
    assert len(outcome.completed) == len(suite.experiments)
    assert not list(folder.rglob("checkpoint-*")), "those of a pack that is done are removed"
    return forked.everything(folder)


def leave_after(number: int) -> tuple[Callable[[], bool], Callable[..., None], forked.ForkedExecutor]:
    """The user asks to leave once so many steps were told."""
    told: list[PackStep] = []

    def on_event(_: object, event: object) -> None:
        if isinstance(event, PackStep):
            told.append(event)
            if len(told) == number:
                executor.leave()

    executor = forked.ForkedExecutor(cache=None)
    return lambda: len(told) >= number, on_event, executor


def interrupt(suite: forked.TinySuite, folder: Path, *, after: int) -> Any:
    is_leaving, on_event, executor = leave_after(after)
    executor.cache = suite.cache
    return forked.run(suite, folder, executor=executor, is_leaving=is_leaving, on_event=on_event)


def run_folders(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*/attempt-*"), key=lambda path: path.name)


def incidents(folder: Path) -> set[Incident]:
    with ExperimentTracker(folder / "experiments.db") as tracker:
        return {incident for each in tracker.get_all_experiments() for incident in each.incidents}


@BOTH
@pytest.mark.parametrize("after", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interrupted_suite_goes_on_to_the_very_bits(
    suite: forked.TinySuite, calm: dict[str, Any], tmp_path: Path, after: int
) -> None:
    outcome = interrupt(suite, tmp_path, after=after)
    assert (outcome.completed, outcome.failed) == ((), ())
    assert len(outcome.not_run) == len(suite.experiments)
    (first,) = run_folders(tmp_path)
    assert checkpoint_folders(first / CHECKPOINTS_NAME)
    outcome = forked.run(suite, tmp_path)
    assert len(outcome.completed) == len(suite.experiments)
    assert forked.everything(tmp_path) == calm
    (resumed,) = incidents(tmp_path)
    assert resumed.kind == "resumed"
    assert "an earlier attempt was cut off; it goes on from the checkpoint after step" in resumed.message
    assert not list(tmp_path.rglob("checkpoint-*"))
    told = [each for each in RecordReader(run_folders(tmp_path)[1] / RECORDS_NAME).read_new() if isinstance(each, PackStep)]  # fmt: skip
    assert len({(each.step, each.arms) for each in told}) == len(told), "every step is told once"
    # A finished suite trains nothing.
    executor = forked.ForkedExecutor(cache=suite.cache)
    assert forked.run(suite, tmp_path, executor=executor).completed == ()
    assert executor.pids == []


def test_a_worker_that_is_killed_is_followed_by_one_that_goes_on_in_the_same_company(
    suite: forked.TinySuite, calm: dict[str, Any], tmp_path: Path
) -> None:
    executor = forked.ForkedExecutor(cache=suite.cache)
    told: list[PackStep] = []

    def kill_once(_: object, event: object) -> None:
        told.extend([event] if isinstance(event, PackStep) else [])
        if isinstance(event, PackStep) and len(told) == 6:
            os.kill(executor.pids[0], signal.SIGKILL)

    outcome = forked.run(suite, tmp_path, executor=executor, on_event=kill_once)
    assert len(outcome.completed) == len(suite.experiments)
    assert len(executor.pids) == 2
    assert forked.everything(tmp_path) == calm
    (resumed,) = incidents(tmp_path)
    assert resumed.message.startswith("the worker of a pack of 4 was ended (exit code -9); it goes on from")


def test_a_rotten_checkpoint_is_named_and_the_one_before_it_is_used(
    suite: forked.TinySuite, calm: dict[str, Any], tmp_path: Path
) -> None:
    interrupt(suite, tmp_path, after=5)
    newest, before = checkpoint_folders(run_folders(tmp_path)[0] / CHECKPOINTS_NAME)
    file = newest / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    forked.run(suite, tmp_path)
    assert forked.everything(tmp_path) == calm
    found = {incident.kind: incident for incident in incidents(tmp_path)}
    assert "tensors.safetensors: has" in found["checkpoint_damaged"].message
    assert newest.name in found["checkpoint_damaged"].message
    assert "resumed" in found
    assert before.name < newest.name


def test_a_checkpoint_of_another_version_is_called_that_and_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sealed_folder(tmp_path / "saved", {checkpointing.STATE_NAME: b'{"version": 1}'})
    monkeypatch.setattr(checkpointing, "_checkpoints", lambda _: [tmp_path / "saved"])
    told: list[Incident] = []
    pack: Any = SimpleNamespace(reason=None, begun=(), rungs=())
    run: Any = SimpleNamespace(pack=pack, emit=told.append)
    nothing: Any = None
    assert (
        checkpointing.find_resumption(run, arms=(), environment=nothing, engine="packed", num_steps=1) is None
    )
    (incident,) = told
    assert incident.kind == "not_resumed"
    assert "its checkpoint is of another version of lorastudy: it has format 1" in incident.message


@pytest.mark.parametrize(("key", "value"), [("torch", "1.0"), ("num_threads", 64)])
def test_in_another_environment_it_starts_anew_and_says_so(
    suite: forked.TinySuite, calm: dict[str, Any], tmp_path: Path, key: str, value: object
) -> None:
    interrupt(suite, tmp_path, after=5)

    def as_if_elsewhere(_: Path) -> None:
        from dataclasses import replace

        from lorastudy.train import train_pack as life

        here = life.environment
        life.environment = lambda device: replace(here(device), **{key: value})

    executor = forked.ForkedExecutor(cache=suite.cache, in_worker=as_if_elsewhere)
    forked.run(suite, tmp_path, executor=executor)
    assert forked.everything(tmp_path) == calm
    (anew,) = incidents(tmp_path)
    assert anew.kind == "not_resumed"
    assert f"it starts anew, since the environment of its checkpoint differs: {key} was" in anew.message


def test_a_checkpoint_that_cannot_be_written_ends_no_training(
    suite: forked.TinySuite, calm: dict[str, Any], tmp_path: Path
) -> None:
    def full_disk(_: Path) -> None:
        from lorastudy.train import checkpointing as keeping

        def write(*_: object) -> int:
            raise OSError(28, "No space left on device")

        keeping.write_checkpoint = write

    executor = forked.ForkedExecutor(cache=suite.cache, in_worker=full_disk)
    outcome = forked.run(suite, tmp_path, executor=executor)
    assert len(outcome.completed) == len(suite.experiments)
    assert forked.everything(tmp_path) == calm
    said = incidents(tmp_path)
    assert {each.kind for each in said} == {"checkpoint_failed"}
    assert "No space left on device; training goes on" in next(iter(said)).message


def test_a_request_to_leave_during_evaluation_keeps_all_of_training(
    suite: forked.TinySuite, calm: dict[str, Any], tmp_path: Path
) -> None:
    def slow_evaluation(_: Path) -> None:
        from lorastudy.train import train_pack as life

        evaluate = life.evaluate

        def after_a_while(*given: object, **named: object) -> None:
            time.sleep(60)
            evaluate(*given, **named)

        life.evaluate = after_a_while

    told: list[PackStep] = []
    executor = forked.ForkedExecutor(cache=suite.cache, in_worker=slow_evaluation)
    num_told = forked.NUM_STEPS * (1 if suite.experiments[0].settings.engine == "packed" else 4)

    def on_event(_: object, event: object) -> None:
        told.extend([event] if isinstance(event, PackStep) else [])
        if len(told) == num_told and isinstance(event, PackStep):
            time.sleep(0.3)
            executor.leave()

    started = time.monotonic()
    forked.run(
        suite, tmp_path, executor=executor, is_leaving=lambda: len(told) == num_told, on_event=on_event
    )
    assert time.monotonic() - started < 50
    (state,) = [
        json.loads((folder / "state.json").read_text())
        for folder in checkpoint_folders(run_folders(tmp_path)[0] / CHECKPOINTS_NAME)[:1]
    ]
    assert {arm["num_steps_done"] for arm in state["arms"]} == {forked.NUM_STEPS}
    forked.run(suite, tmp_path)
    assert forked.everything(tmp_path) == calm


@pytest.mark.parametrize("library", [None, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"])
def test_a_pack_that_runs_out_of_memory_goes_on_in_halves_from_its_checkpoint(
    suite: forked.TinySuite, calm: dict[str, Any], tmp_path: Path, library: str | None
) -> None:
    """Also where it is no `OutOfMemoryError`: on CUDA the worker then ends, and a new one serves the halves."""
    import torch

    def little_memory(_: Path) -> None:
        """Room for two arms; and for four until the fifth step, as when rows are longer there."""
        from lorastudy.train.checkpointing import TrainingTimes

        step, num_arms = TrainingTimes.step, len(suite.experiments)

        def failing(times: TrainingTimes, num_tokens: int) -> float:
            if len(times.seconds) == 5 and len(run_folders(tmp_path)) == 1:
                if library is None:
                    raise torch.OutOfMemoryError(f"no room for {num_arms} arms")
                torch.cuda.is_available = lambda: True
                raise RuntimeError(f"{library}: no room for {num_arms} arms")
            return step(times, num_tokens)

        TrainingTimes.step = failing

    executor = forked.ForkedExecutor(cache=suite.cache, in_worker=little_memory)
    outcome = forked.run(suite, tmp_path, executor=executor)
    assert len(outcome.completed) == len(suite.experiments)
    found = forked.everything(tmp_path)
    engine = suite.experiments[0].settings.engine
    for name, wanted in calm.items():
        if engine == "reference":
            assert found[name] == wanted, "arms that are trained one by one keep every bit"
        losses, expected = ([step.loss for step in each["steps"]] for each in (found[name], wanted))
        assert losses == pytest.approx(expected, rel=1e-6)
        assert found[name]["values"] == pytest.approx(wanted["values"], rel=1e-5)
    for incident in incidents(tmp_path):
        assert incident.message.startswith(
            "a pack of 4 ran out of memory and was cut in two; it goes on from the checkpoint after step"
        )
    first = list(RecordReader(run_folders(tmp_path)[0] / RECORDS_NAME).read_new())
    (out_of_memory,) = [record for record in first if isinstance(record, Incident)]
    assert out_of_memory.kind == "out_of_memory"
    assert "a pack of 4 ran out of memory: " in out_of_memory.message
    assert "no room for 4 arms" in out_of_memory.message
    assert {each.failure_kind for each in first if isinstance(each, Outcome)} == {"out_of_memory"}


def test_a_worker_that_must_have_a_gpu_never_trains_on_the_cpu(
    suite: forked.TinySuite, tmp_path: Path
) -> None:
    executor = forked.ForkedExecutor(
        cache=suite.cache, in_worker=lambda _: os.environ.update(LORASTUDY_NEEDS_GPU="1")
    )
    outcome = forked.run(suite, tmp_path, executor=executor)
    assert len(outcome.failed) == len(suite.experiments)
    with ExperimentTracker(tmp_path / "experiments.db") as tracker:
        for result in tracker.get_all_experiments():
            assert "started for a GPU, and torch" in (result.failure_message or "")
            assert "CUDA_VISIBLE_DEVICES= lorastudy" in (result.failure_message or "")
            assert not tracker.get_steps(result.experiment_id)


def test_the_time_of_every_leg_is_in_what_the_pack_cost(suite: forked.TinySuite, tmp_path: Path) -> None:
    """By a clock on which everything between two looks takes 1,000 s."""

    def with_that_clock(_: Path) -> None:
        from lorastudy.train import train_pack as life
        from lorastudy.train.checkpointing import Stopwatch

        life.Stopwatch = lambda: Stopwatch(clock=itertools.count(step=1000).__next__)

    executor = forked.ForkedExecutor(cache=suite.cache, in_worker=with_that_clock)
    with ExperimentTracker(tmp_path / "experiments.db", writable=True) as tracker:
        run_experiments(
            suite.experiments, suite_name="race", tracker=tracker, executor=executor, options=options_in(tmp_path), rungs=(0.5,),
        )  # fmt: skip
        profiles = {result.pack_profile for result in tracker.get_all_experiments()}
    (profile,) = profiles
    assert len(executor.pids) == 2
    assert profile is not None
    assert profile.load_seconds == 2000  # one for each leg
    assert profile.eval_seconds == 2000  # at the rung, and at the end


def run(schedule: CheckpointSchedule, *, num_steps: int, step_seconds: float, cost: float) -> list[int]:
    """After which steps a checkpoint was written."""
    now = 0.0
    times = TrainingTimes(watch=Stopwatch(clock=lambda: now))
    written = []
    for step in range(1, num_steps + 1):
        now += step_seconds
        times.step(10)
        if schedule.is_due(times):
            written.append(step)
            now += cost
            schedule.took(cost, num_bytes=5, times=times)
            times.watch.lap()
    assert times.train_seconds == pytest.approx(num_steps * step_seconds)
    return written


def test_steps_or_minutes_whichever_comes_first() -> None:
    assert run(
        CheckpointSchedule(every_steps=10, every_seconds=None), num_steps=35, step_seconds=1, cost=0
    ) == [10, 20, 30]  # fmt: skip
    assert run(
        CheckpointSchedule(every_steps=None, every_seconds=12), num_steps=35, step_seconds=5, cost=0
    ) == list(range(3, 36, 3))  # fmt: skip
    assert run(
        CheckpointSchedule(every_steps=20, every_seconds=15), num_steps=45, step_seconds=1, cost=0
    ) == [15, 30, 45]  # fmt: skip
    assert (
        run(CheckpointSchedule(every_steps=None, every_seconds=None), num_steps=99, step_seconds=99, cost=0)
        == []
    )


@pytest.mark.parametrize("cost", [0.01, 0.3, 2.0, 30.0])
def test_a_slow_disk_makes_the_interval_longer_so_that_the_share_holds(cost: float) -> None:
    schedule = CheckpointSchedule(every_steps=1, every_seconds=None)
    written = run(schedule, num_steps=5000, step_seconds=1, cost=cost)
    assert schedule.num_checkpoints == len(written) > 1
    assert schedule.profile().seconds == pytest.approx(len(written) * cost)
    # Only the very first, of whose cost nothing is known yet, may be more than its share; later ones make up for it.
    assert schedule.seconds <= MAX_CHECKPOINT_SHARE * 5000
    # And it is not rarer than that: another one would soon be due.
    assert schedule.seconds >= MAX_CHECKPOINT_SHARE * 5000 - 2 * cost or len(written) == 5000


def test_steps_of_an_earlier_attempt_count_as_training() -> None:
    times = TrainingTimes()
    for step in (1, 2):
        times.carry(
            PackStep(step=step, num_steps=3, num_tokens=40, num_completion_tokens=9, seconds=2.0, arms=())
        )
    assert (times.train_seconds, times.median_step_seconds, times.tokens_per_second) == (4.0, 2.0, 20.0)


def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(time, "time", lambda: -1e9)
    assert 0 <= Stopwatch().lap() < 60
