"""Scores on the way: when they are taken, that they change no bit of the training, and that a kill loses none."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import forked
from lorastudy.protocol.records import Pack, PackStep, Score
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings
from lorastudy.train.validation import stretches
from tiny import make_arm

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_STEPS = forked.NUM_STEPS
#: By arm of `tiny_values`: the interval, and the points that follow from it.
EVERY = {"r2": 3, "r4": 0.5}
POINTS = {"r2": (3, 6), "r4": (4,)}


def planned(
    *every: float | None, num_steps: int = 20, start: int = 0, earlier: tuple[Score, ...] = (), **pack: Any
) -> list[tuple[int, list[tuple[str, ...]]]]:
    """The end of each stretch with the splits that are scored there, by arm; the arms have these intervals."""
    experiments = tuple(
        Experiment(
            name=f"e{seed}", arm="a", experiment_type="custom", seed=seed,
            settings=Settings(max_steps=num_steps, eval_steps=one), sources=Sources(base_model="b", dataset="d"),
        )
        for seed, one in enumerate(every)
    )  # fmt: skip
    arms = [make_arm(["layer"], name=each.id, num_steps=num_steps) for each in experiments]
    found = stretches(
        Pack(id="pack", attempt=1, engine="packed", experiments=experiments, **pack),
        arms, start=start, num_steps=num_steps,
        earlier=[replace_id(one, experiments[0].id) for one in earlier],
    )  # fmt: skip
    return [(one.stop, [one.splits.get(each.id, ()) for each in experiments]) for one in found]


def replace_id(score: Score, experiment_id: str) -> Score:
    return Score(**{**vars(score), "experiment_id": experiment_id})


def scored(split: str) -> Score:
    return Score(experiment_id="", split=split, metric="loss", version=1, unit="", value=1.0, items=())


def test_every_arm_has_points_of_its_own() -> None:
    assert planned(8, 0.5, None) == [
        (8, [("eval_after_8",), (), ()]),
        (10, [(), ("eval_after_10",), ()]),
        (16, [("eval_after_16",), (), ()]),
        (20, [(), (), ()]),
    ]


def test_a_rung_and_a_point_after_one_step_share_a_pass() -> None:
    assert planned(5, None, rungs=(0.25, 0.5), pause_at=0.5) == [
        (5, [("eval_at_25", "eval_after_5"), ("eval_at_25",)]),
        (10, [("eval_at_50", "eval_after_10"), ("eval_at_50",)]),
        (10, [(), ()]),
    ]


def test_what_was_scored_is_not_scored_again_and_what_was_missed_stays_missing() -> None:
    assert planned(5, 5, start=10, earlier=(scored("eval_after_10"),)) == [
        (10, [(), ("eval_after_10",)]),
        (15, [("eval_after_15",), ("eval_after_15",)]),
        (20, [(), ()]),
    ]


@pytest.fixture(scope="module", params=["packed", "reference"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def suite(engine: str, tmp_path_factory: pytest.TempPathFactory) -> forked.TinySuite:
    arms = forked.tiny_values(tmp_path_factory.mktemp("rows"))["experiments"]
    with_points = [arm | {"eval_steps": EVERY[arm["name"]]} for arm in arms]
    return forked.tiny_suite(tmp_path_factory.mktemp("suite"), engine=engine, experiments=with_points)


@pytest.fixture(scope="module")
def calm(suite: forked.TinySuite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("calm")
    assert len(forked.run(suite, folder).completed) == len(suite.experiments)
    with ExperimentTracker(folder / "experiments.db") as tracker:
        for result in tracker.get_all_experiments():
            on_the_way = {score.step: score for score in result.scores.values() if score.step is not None}
            assert tuple(sorted(on_the_way)) == POINTS[result.arm]
            times = [on_the_way[step].train_seconds for step in sorted(on_the_way)]
            assert times == sorted(times)
            assert 0 < times[0] < times[-1] < result.train_seconds or len(times) == 1
    return forked.everything(folder)


@pytest.mark.long
def test_scores_on_the_way_change_no_bit_of_the_training(
    engine: str, calm: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    plain = forked.tiny_suite(tmp_path_factory.mktemp("plain"), engine=engine)
    forked.run(plain, tmp_path)
    for name, found in forked.everything(tmp_path).items():
        with_points = calm[name]
        more = {key: value for key, value in with_points["values"].items() if key not in found["values"]}
        assert {split for split, _ in more} == {f"eval_after_{step}" for step in POINTS[name.split("_")[0]]}
        assert all(with_points["values"][key] == value for key, value in found["values"].items())
        assert [with_points[key] for key in ("status", "steps", "answers", "adapter")] == [
            found[key] for key in ("status", "steps", "answers", "adapter")
        ]


@pytest.mark.long
def test_a_kill_loses_no_score(suite: forked.TinySuite, calm: dict[str, Any], tmp_path: Path) -> None:
    executor = forked.ForkedExecutor(cache=suite.cache)

    def kill_once(_: object, event: object) -> None:
        if isinstance(event, PackStep) and event.step == 5 and len(executor.pids) == 1:
            os.kill(executor.pids[0], signal.SIGKILL)

    outcome = forked.run(suite, tmp_path, executor=executor, on_event=kill_once)
    assert len(outcome.completed) == len(suite.experiments)
    assert forked.everything(tmp_path) == calm
