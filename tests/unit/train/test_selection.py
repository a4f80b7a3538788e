"""The best adapter and early stopping: as transformers decides, to the bits of a shorter training, and through a kill."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

import forked
from lorastudy.protocol.records import PackStep
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.settings import Settings
from lorastudy.train.selection import ArmSelection

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_STEPS = forked.NUM_STEPS


def decided(losses: list[float], **settings: Any) -> ArmSelection:
    selection = ArmSelection()
    for step, loss in enumerate(losses, start=1):
        selection = selection.after(loss, step=step, settings=Settings(**settings))
        if selection.stopped_at is not None:
            break
    return selection


def decided_by_transformers(
    losses: list[float], *, patience: int, threshold: float
) -> tuple[int, int | None]:
    """The best step and the step of the stop, with the best loss updated after the callback, as its Trainer does."""
    callback = EarlyStoppingCallback(early_stopping_patience=patience, early_stopping_threshold=threshold)
    arguments = TrainingArguments(metric_for_best_model="eval_loss", greater_is_better=False, report_to=[])
    state, control, best_step = TrainerState(), TrainerControl(), 0
    for step, loss in enumerate(losses, start=1):
        callback.on_evaluate(arguments, state, control, metrics={"eval_loss": loss})
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric, best_step = loss, step
        if control.should_training_stop:
            return best_step, step
    return best_step, None


def test_it_decides_as_transformers_does() -> None:
    draw = random.Random(0)
    for _ in range(300):
        losses = [draw.choice([1.0, 1.1, 1.2, 1.25, 1.3, 2.0]) for _ in range(draw.randint(1, 12))]
        patience, threshold = draw.randint(1, 4), draw.choice([0.0, 0.06, 0.2])
        ours = decided(losses, early_stopping_patience=patience, early_stopping_threshold=threshold)
        expected = decided_by_transformers(losses, patience=patience, threshold=threshold)
        assert (ours.best_step, ours.stopped_at) == expected, (losses, patience, threshold)


@pytest.mark.parametrize("losses", [[], [2.0], [2.0, 1.0, 3.0]])
def test_a_checkpoint_keeps_it(losses: list[float]) -> None:
    selection = decided(losses)
    assert ArmSelection.from_json(selection.to_json()) == selection


#: At a constant rate a shorter training is the beginning of a longer one. One arm's rate ruins it.
ARMS = [
    {"name": "ruined", "lora_rank": 2, "learning_rate": 0.5},
    {"name": "sound", "lora_rank": 4, "lora_dropout": 0.2, "learning_rate": 1e-3},
]
SHARED = {"lr_scheduler_type": "constant", "test_fraction": 0.25, "seeds": [0]}


def suite_of(folder: Path, engine: str, *, ruined: dict[str, Any], **settings: Any) -> forked.TinySuite:
    arms = [ARMS[0] | ruined, ARMS[1]]
    return forked.tiny_suite(folder, engine=engine, experiments=arms, **(SHARED | settings))


def results(folder: Path) -> dict[str, ExperimentResult]:
    with ExperimentTracker(folder / "experiments.db") as tracker:
        return {result.arm: result for result in tracker.get_all_experiments()}


#: `make slow` repeats every test on the reference engine.
@pytest.fixture(scope="module", params=["packed", pytest.param("reference", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(engine: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both arms with scores on the way, which decide nothing."""
    folder = tmp_path_factory.mktemp("plain")
    forked.run(suite_of(tmp_path_factory.mktemp("suite"), engine, ruined={}, eval_steps=2), folder)
    assert all(result.selected_step is None for result in results(folder).values())
    return forked.everything(folder)


@pytest.fixture(scope="module")
def best_suite(engine: str, tmp_path_factory: pytest.TempPathFactory) -> forked.TinySuite:
    selecting = {"select_checkpoint": "best"}
    return suite_of(tmp_path_factory.mktemp("suite"), engine, ruined=selecting, eval_steps=2)


@pytest.fixture(scope="module")
def best(best_suite: forked.TinySuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("best")
    assert len(forked.run(best_suite, folder).completed) == 2
    return folder


@pytest.mark.long
def test_the_best_adapter_is_that_of_a_training_that_ended_there(
    engine: str, best: Path, plain: dict[str, Any], tmp_path: Path
) -> None:
    result = results(best)["ruined"]
    losses = {
        score.step: score.value
        for (split, _), score in result.scores.items()
        if split.startswith("eval_after_")
    }
    assert sorted(losses) == [2, 4, 6, 8]
    assert result.selected_step == min(losses, key=losses.__getitem__) < NUM_STEPS
    assert (result.num_steps, result.num_planned_steps) == (NUM_STEPS, NUM_STEPS)
    found = forked.everything(best)
    assert found["sound"] == plain["sound"], "the other arm keeps its bits"
    assert found["ruined"]["steps"] == plain["ruined"]["steps"]
    forked.run(suite_of(tmp_path, engine, ruined={}, max_steps=result.selected_step), tmp_path)
    shorter = forked.everything(tmp_path)["ruined"]
    assert found["ruined"]["adapter"] == shorter["adapter"]
    answers, expected = ([each.answer for each in one["answers"]] for one in (found["ruined"], shorter))
    assert answers == expected
    same = {key for key in shorter["values"] if "_before" not in key[0]}
    assert ("test", "loss") in same
    assert {key: found["ruined"]["values"][key] for key in same} == {
        key: shorter["values"][key] for key in same
    }
    assert found["ruined"]["values"]["eval", "loss"] == losses[result.selected_step]


@pytest.mark.long
@pytest.mark.parametrize("after", [3, 7])
def test_a_kill_loses_neither_the_best_adapter_nor_a_decision(
    best_suite: forked.TinySuite, best: Path, tmp_path: Path, after: int
) -> None:
    executor = forked.ForkedExecutor(cache=best_suite.cache)

    def kill_once(_: object, event: object) -> None:
        if isinstance(event, PackStep) and event.step == after and len(executor.pids) == 1:
            os.kill(executor.pids[0], signal.SIGKILL)

    assert len(forked.run(best_suite, tmp_path, executor=executor, on_event=kill_once).completed) == 2
    assert len(executor.pids) == 2
    assert forked.everything(tmp_path) == forked.everything(best)
    assert results(tmp_path)["ruined"].selected_step == results(best)["ruined"].selected_step
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.long
def test_an_arm_that_stops_early_leaves_the_others_their_bits(
    engine: str, plain: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stopping = {"early_stopping_patience": 1}
    suite = suite_of(tmp_path_factory.mktemp("suite"), engine, ruined=stopping, eval_steps=2)
    forked.run(suite, tmp_path)
    found, result = forked.everything(tmp_path), results(tmp_path)["ruined"]
    assert found["sound"] == plain["sound"]
    assert result.status == "completed"
    assert result.num_steps is not None
    assert 2 < result.num_steps < NUM_STEPS == result.num_planned_steps
    sound = results(tmp_path)["sound"].train_seconds
    assert result.train_seconds is not None
    assert sound is not None
    assert 0 < result.train_seconds < sound
    assert found["ruined"]["steps"] == plain["ruined"]["steps"][: result.num_steps]
    assert {split for split, _ in found["ruined"]["values"] if split.startswith("eval_after_")} == {
        f"eval_after_{step}" for step in range(2, result.num_steps + 1, 2)
    }
    shorter_in = tmp_path_factory.mktemp("shorter")
    forked.run(suite_of(shorter_in, engine, ruined={}, max_steps=result.num_steps), shorter_in)
    assert found["ruined"]["adapter"] == forked.everything(shorter_in)["ruined"]["adapter"]


@pytest.mark.long
def test_a_kill_after_an_early_stop_does_not_wake_the_arm(
    engine: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stopping = {"early_stopping_patience": 1, "select_checkpoint": "best"}
    suite = suite_of(tmp_path_factory.mktemp("suite"), engine, ruined=stopping, eval_steps=1)
    calm = tmp_path_factory.mktemp("calm")
    forked.run(suite, calm)
    stopped_at = results(calm)["ruined"].num_steps
    assert stopped_at is not None
    assert stopped_at < NUM_STEPS - 2
    executor = forked.ForkedExecutor(cache=suite.cache)

    def kill_once(_: object, event: object) -> None:
        if isinstance(event, PackStep) and event.step == NUM_STEPS - 1 and len(executor.pids) == 1:
            os.kill(executor.pids[0], signal.SIGKILL)

    forked.run(suite, tmp_path, executor=executor, on_event=kill_once)
    assert forked.everything(tmp_path) == forked.everything(calm)
    assert results(tmp_path)["ruined"].num_steps == stopped_at
