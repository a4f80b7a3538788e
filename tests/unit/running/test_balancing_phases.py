"""A relay with real training in forks: what arms come to that change hands, and that a kill changes nothing."""

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import forked
from lorastudy.executors import MultiWorkerExecutor
from lorastudy.planning.packing import ArmWork
from lorastudy.planning.predictions import Predictions
from lorastudy.protocol.records import Pack, PackStep
from lorastudy.running.study import StudyOutcome
from lorastudy.store import ExperimentTracker

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

ARMS = [{"name": f"r{rank}", "lora_rank": rank, "lora_dropout": 0.2} for rank in (1, 2, 3, 4, 8)]


class Leaving:
    """The user asks to leave after so many steps of packs; the pack under way is followed to where it pauses or ends."""

    def __init__(self, *, after: int) -> None:
        self._left = after

    def on_event(self, _: object, event: object) -> None:
        self._left -= isinstance(event, PackStep)

    def __call__(self) -> bool:
        return self._left <= 0


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> forked.TinySuite:
    # Saved by its pauses alone, so that what goes on from a pause is seen to.
    return forked.tiny_suite(
        tmp_path_factory.mktemp("suite"), experiments=ARMS, seeds=[0], max_arms_per_pack=5, checkpoint_steps=3
    )


def relay(
    suite: forked.TinySuite, folder: Path, *, executor: Any = None, **named: Callable[..., Any]
) -> StudyOutcome:
    executor = executor or forked.TwoLanes(cache=suite.cache)
    return forked.run(suite, folder, executor=executor, **named)


@pytest.fixture(scope="module")
def relayed(suite: forked.TinySuite, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyOutcome]:
    folder = tmp_path_factory.mktemp("relayed")
    return folder, relay(suite, folder)


def packs_of(folder: Path) -> list[tuple[list[str], float | None, float]]:
    """The arms of each pack, where it paused and where it had begun, in the order in which they were served."""
    files = sorted(
        (folder / "runs").glob("pack-*/attempt-*/pack.json"), key=lambda path: path.stat().st_mtime_ns
    )
    packs = [Pack.read(file.parent) for file in files]
    return [([each.arm for each in pack.experiments], pack.pause_at, pack.begun) for pack in packs]


def test_the_fifth_arm_changes_hands_and_all_complete(relayed: tuple[Path, StudyOutcome]) -> None:
    folder, outcome = relayed
    assert len(outcome.completed) == 5
    assert (outcome.failed, outcome.not_run, outcome.done_before) == ((), (), ())
    assert packs_of(folder) == [
        (["r1", "r2"], 0.75, 0.0),
        (["r3", "r4", "r8"], 0.5, 0.0),
        (["r1", "r2"], None, 0.75),
        (["r3", "r4"], None, 0.5),
        (["r8"], None, 0.5),
    ]
    with ExperimentTracker(folder / "experiments.db") as tracker:
        for result in tracker.get_all_experiments():
            assert [row.step for row in tracker.get_steps(result.experiment_id)] == list(range(1, 9))
            assert result.incidents == ()  # a pause that was planned is none
    assert not list(folder.rglob("checkpoint-*"))


def test_it_comes_to_what_it_comes_to_where_nobody_moves(
    suite: forked.TinySuite, relayed: tuple[Path, StudyOutcome], tmp_path: Path
) -> None:
    forked.run(suite, tmp_path)
    together, moved = forked.everything(tmp_path), forked.everything(relayed[0])
    assert together.keys() == moved.keys()
    for name, wanted in together.items():
        losses, expected = ([step.loss for step in each["steps"]] for each in (moved[name], wanted))
        assert losses == pytest.approx(expected, rel=1e-6)
        assert moved[name]["values"] == pytest.approx(wanted["values"], rel=1e-5)


def test_a_pack_that_pauses_at_its_last_step_is_only_scored_after_it(
    suite: forked.TinySuite,
    relayed: tuple[Path, StudyOutcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scoring an arm takes as long as training it."""
    monkeypatch.setattr(
        Predictions,
        "work",
        lambda _, experiments: {e.id: ArmWork(training=1, scoring=1) for e in experiments},
    )
    assert len(relay(suite, tmp_path).completed) == 5
    assert packs_of(tmp_path) == [
        (["r1", "r2"], 839 / 840, 0.0),
        (["r3", "r4", "r8"], 2 / 3, 0.0),
        (["r1", "r2"], None, 839 / 840),
        (["r3", "r4"], None, 2 / 3),
        (["r8"], None, 2 / 3),
    ]
    found, wanted = forked.everything(tmp_path), forked.everything(relayed[0])
    for name, values in wanted.items():
        assert found[name]["status"] == "completed"
        losses, expected = ([step.loss for step in each["steps"]] for each in (found[name], values))
        assert losses == pytest.approx(expected, rel=1e-6)
        assert found[name]["values"] == pytest.approx(values["values"], rel=1e-5)


# Of the 6 + 4 steps of the first leg and the 2 + 4 + 4 of the second.
@pytest.mark.parametrize(
    "number", [8, 14, *(pytest.param(number, marks=pytest.mark.slow) for number in (3, 11, 17))]
)
def test_a_suite_that_is_killed_goes_on_to_the_same_bits(
    suite: forked.TinySuite, relayed: tuple[Path, StudyOutcome], tmp_path: Path, number: int
) -> None:
    steps: list[PackStep] = []

    class KilledError(Exception):
        pass

    def on_event(_: object, event: object) -> None:
        steps.extend([event] if isinstance(event, PackStep) else [])
        if len(steps) == number:
            raise KilledError

    with pytest.raises(KilledError):
        relay(suite, tmp_path, on_event=on_event)
    outcome = relay(suite, tmp_path)
    assert len(outcome.completed) + len(outcome.done_before) == 5
    assert forked.everything(tmp_path) == forked.everything(relayed[0])


def test_a_worker_that_is_killed_changes_nothing(
    suite: forked.TinySuite, relayed: tuple[Path, StudyOutcome], tmp_path: Path
) -> None:
    executor, steps = forked.TwoLanes(cache=suite.cache), []

    def on_event(_: object, event: object) -> None:
        steps.extend([event] if isinstance(event, PackStep) else [])
        if isinstance(event, PackStep) and len(steps) in {5, 15}:
            os.kill(executor.pids[-1], signal.SIGKILL)

    assert len(relay(suite, tmp_path, executor=executor, on_event=on_event).completed) == 5
    assert forked.everything(tmp_path) == forked.everything(relayed[0])


def test_real_workers_side_by_side_come_to_the_same_and_stay_for_the_second_leg(
    suite: forked.TinySuite, relayed: tuple[Path, StudyOutcome], tmp_path: Path
) -> None:
    lanes = [{"OMP_NUM_THREADS": "1"}] * 2
    with closing(MultiWorkerExecutor(environments=lanes, hands_over=True)) as executor:
        assert len(relay(suite, tmp_path, executor=executor).completed) == 5
    assert len(packs_of(tmp_path)) == 5
    assert len(list((tmp_path / "runs").rglob("worker.log"))) == 2
    assert forked.everything(tmp_path) == forked.everything(relayed[0])


def test_where_the_checkpoints_of_the_pause_are_gone_the_first_leg_is_run_again(
    suite: forked.TinySuite, relayed: tuple[Path, StudyOutcome], tmp_path: Path
) -> None:
    relay(suite, tmp_path, is_leaving=(leaving := Leaving(after=10)), on_event=leaving.on_event)
    for checkpoints in (tmp_path / "runs").rglob("checkpoints"):
        shutil.rmtree(checkpoints)
    assert len(relay(suite, tmp_path).completed) == 5
    assert forked.everything(tmp_path) == forked.everything(relayed[0])


def test_done_is_done(suite: forked.TinySuite, relayed: tuple[Path, StudyOutcome]) -> None:
    folder, _ = relayed
    before = packs_of(folder)
    again = relay(suite, folder)
    assert len(again.done_before) == 5
    assert packs_of(folder) == before


def test_without_a_second_worker_nothing_pauses(suite: forked.TinySuite, tmp_path: Path) -> None:
    relay(suite, tmp_path, executor=forked.ForkedExecutor(cache=suite.cache))
    assert packs_of(tmp_path) == [(["r1", "r2", "r3", "r4", "r8"], None, 0.0)]
