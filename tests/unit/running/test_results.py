"""What earlier attempts leave: to be stored, and to go on from. With the executor that lives in memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from lorastudy.planning.packing import PlannedPack
from lorastudy.protocol.records import (
    RECORDS_NAME,
    ArmStep,
    Outcome,
    Pack,
    PackEnd,
    PackStep,
    RecordReader,
    RecordWriter,
)
from lorastudy.protocol.run_folder import checkpoint_folder
from lorastudy.running.phases import CUT_OFF, next_phase
from lorastudy.running.results import read_results, take_what_was_left
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment
from planned import experiments, plan_of


@pytest.fixture
def begin(tmp_path: Path, tracker: ExperimentTracker) -> Callable[..., Path]:
    """A run folder of an attempt that the store knows as running, with checkpoints or without."""

    def begin(wanted: list[Experiment], *, attempt: int = 1, checkpoints: tuple[int, ...] = ()) -> Path:
        pack_id = "pack-" + "".join(each.name for each in wanted)
        folder = tmp_path / "runs" / pack_id / f"attempt-{attempt}"
        folder.mkdir(parents=True)
        Pack(id=pack_id, attempt=attempt, engine="packed", experiments=tuple(wanted)).write(folder)
        for number in checkpoints:
            checkpoint_folder(folder, number).mkdir(parents=True)
        tracker.register("suite", wanted)
        for each in wanted:
            tracker.start_run(
                each.id, attempt=attempt, pack_id=pack_id, engine="packed", run_folder=str(folder)
            )
        return folder

    return begin


class OneAtATime:
    """As far as a plan asks an executor."""

    num_packs_at_once = 1
    hands_over = False


def statuses(tracker: ExperimentTracker) -> dict[str, str]:
    return {result.name: result.status for result in tracker.get_all_experiments()}


def test_what_a_worker_wrote_after_its_runner_was_killed_is_stored_once(
    begin: Callable[..., Path], tracker: ExperimentTracker
) -> None:
    a, b = wanted = experiments("a", "b")
    folder = begin(wanted)
    writer = RecordWriter(folder / RECORDS_NAME)
    arms = tuple(
        ArmStep(experiment_id=each.id, loss=1.0, learning_rate=0.1, grad_norm=1.0) for each in wanted
    )
    writer.write(PackStep(step=1, num_steps=1, num_tokens=8, num_completion_tokens=4, seconds=0.1, arms=arms))
    writer.write(Outcome(experiment_id=a.id, status="completed", step=1))
    writer.close()
    for _ in range(2):
        take_what_was_left(wanted, tracker=tracker)
        assert statuses(tracker) == {"a": "completed", "b": "stopped"}
        assert len(tracker.get_steps(a.id)) == len(tracker.get_steps(b.id)) == 1


def test_what_stands_before_a_damaged_line_is_stored(
    begin: Callable[..., Path], tracker: ExperimentTracker
) -> None:
    a, b = wanted = experiments("a", "b")
    folder = begin(wanted)
    writer = RecordWriter(folder / RECORDS_NAME)
    writer.write(Outcome(experiment_id=a.id, status="completed", step=1))
    writer.write(Outcome(experiment_id=b.id, status="completed", step=1))
    writer.close()
    text = (folder / RECORDS_NAME).read_text()
    (folder / RECORDS_NAME).write_text(text.replace(f'"{b.id}"', '"exp-other"'))
    take_what_was_left(wanted, tracker=tracker)
    assert statuses(tracker) == {"a": "completed", "b": "stopped"}


def test_all_ends_of_a_pack_are_one_line_and_read_as_outcomes(tmp_path: Path) -> None:
    ends = tuple(Outcome(experiment_id=name, status="completed", step=1) for name in "abc")
    writer = RecordWriter(tmp_path / RECORDS_NAME)
    writer.write(PackEnd(outcomes=ends))
    writer.close()
    whole = (tmp_path / RECORDS_NAME).read_bytes()
    assert whole.count(b"\n") == 1
    assert tuple(RecordReader(tmp_path / RECORDS_NAME).read_new()) == ends
    (tmp_path / RECORDS_NAME).write_bytes(whole[:-1])
    assert list(RecordReader(tmp_path / RECORDS_NAME).read_new()) == []


def test_what_goes_on_keeps_the_company_that_it_had(
    begin: Callable[..., Path], tracker: ExperimentTracker
) -> None:
    """Packs are those of the whole suite, though some of it is done: 5 in packs of at most 3 are 2 and 3."""
    wanted = experiments("a", "b", "c", "d", "e", max_arms_per_pack=3)
    tracker.register("suite", wanted)
    plan = plan_of(wanted, suite_name="suite", executor=OneAtATime())
    results = replace(read_results(plan, tracker=tracker), done=frozenset({wanted[0].id}))
    phase = next_phase(plan, results)
    assert phase is not None
    assert names(phase.packs) == [["b"], ["c", "d", "e"]]
    assert all(pack.reason is None and pack.resume_from == () for pack in phase.packs)


def test_experiments_go_on_together_from_the_newest_folder_that_holds_a_checkpoint(
    begin: Callable[..., Path], tracker: ExperimentTracker
) -> None:
    wanted = experiments("a", "b", "c", "d", "e")
    whole = begin(wanted[:4], checkpoints=(2, 4))
    half = begin(wanted[2:4], attempt=2, checkpoints=(6,))
    begin(wanted[:2], attempt=2)  # it got to no checkpoint of its own
    tracker.register("suite", wanted)
    plan = plan_of(wanted, suite_name="suite", executor=OneAtATime())
    phase = next_phase(plan, read_results(plan, tracker=tracker))
    assert phase is not None
    assert names(phase.packs) == [["a", "b"], ["c", "d"], ["e"]]
    assert [pack.resume_from for pack in phase.packs] == [(whole,), (half, whole), ()]
    assert [pack.reason for pack in phase.packs] == [CUT_OFF, CUT_OFF, None]


def names(packs: Sequence[PlannedPack]) -> list[list[str]]:
    return [[experiment.name for experiment in pack.experiments] for pack in packs]


def test_settings_that_lay_out_work_are_no_part_of_an_experiment() -> None:
    (one,) = experiments("a")
    (other,) = experiments("a", checkpoint_steps=5, checkpoint_minutes=None)
    assert one.id == other.id
    assert replace(one, settings=other.settings) == other
