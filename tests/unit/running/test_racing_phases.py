"""A race with real training in forks: who is stopped, what the others come to, and that a kill changes neither."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import forked
import tiny
from lorastudy.planning.design import pruned
from lorastudy.protocol.records import Outcome, PackStep
from lorastudy.protocol.run_folder import CHECKPOINTS_NAME
from lorastudy.running import racing
from lorastudy.running.study import StudyOutcome
from lorastudy.store import ExperimentTracker, rebuild, replay

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

RUNGS = (0.25, 0.5)
#: Two that learn, and one whose rate is far too small: it stays where the base model is.
ARMS = [
    {"name": "r2", "lora_rank": 2},
    {"name": "r4", "lora_rank": 4, "lora_dropout": 0.2},
    {"name": "still", "lora_rank": 2, "learning_rate": 1e-7},
]


#: Tests of the runner alone need one engine. Of the others `make test` runs one on both, `make slow` all.
PACKED = pytest.mark.parametrize("suite", ["packed"], indirect=True)
BOTH = pytest.mark.parametrize("suite", ["packed", "reference"], indirect=True)


@pytest.fixture(scope="module", params=["packed", pytest.param("reference", marks=pytest.mark.slow)])
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> forked.TinySuite:
    folder = tmp_path_factory.mktemp("suite")
    # One answer to whatever is asked: a few steps learn it, on held-out rows too.
    rows = [
        {"prompt": f"{row.prompt_text} ", "completion": "w5 w6 w7 w8"}
        for row in tiny.make_rows(24, longest=10)
    ]
    (folder / "learnable.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # Two packs of six: one of which nobody is stopped, and one that loses four.
    return forked.tiny_suite(
        folder, engine=request.param, experiments=ARMS, seeds=[0, 1, 2, 3], learning_rate=0.02, max_arms_per_pack=6,
        dataset_path=str(folder / "learnable.jsonl"),
    )  # fmt: skip


def race(suite: forked.TinySuite, folder: Path, **named: Any) -> StudyOutcome:
    return forked.run(suite, folder, rungs=RUNGS, **named)


@pytest.fixture(scope="module")
def num_with_checkpoints(suite: forked.TinySuite) -> list[int]:
    """How many attempts hold checkpoints as each run of `raced` ends."""
    return []


@pytest.fixture(scope="module")
def raced(
    suite: forked.TinySuite, tmp_path_factory: pytest.TempPathFactory, num_with_checkpoints: list[int]
) -> tuple[Path, StudyOutcome]:
    folder = tmp_path_factory.mktemp("raced")

    def look(_: object, event: object) -> None:
        if isinstance(event, Outcome):
            # By name, without looking into them: a worker may be removing its own just now.
            attempts = (folder / "runs").glob("*/*")
            num_with_checkpoints.append(sum((attempt / CHECKPOINTS_NAME).exists() for attempt in attempts))

    return folder, race(suite, folder, on_event=look)


@pytest.fixture(scope="module")
def full(suite: forked.TinySuite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("full")
    forked.run(suite, folder)
    return forked.everything(folder)


def names(suite: forked.TinySuite, ids: Any) -> set[str]:
    return {each.name for each in suite.experiments if each.id in set(ids)}


def without_rungs(found: dict[str, Any]) -> dict[str, Any]:
    kept = {"values", "items"}
    return {
        key: {k: v for k, v in value.items() if not k[0].startswith("eval_at_")} if key in kept else value
        for key, value in found.items()
    }


@BOTH
def test_the_arm_that_stays_behind_is_stopped_at_a_rung_and_the_rest_completes(
    suite: forked.TinySuite, raced: tuple[Path, StudyOutcome]
) -> None:
    folder, outcome = raced
    assert names(suite, outcome.pruned) == {f"still_seed{seed}" for seed in range(4)}
    assert names(suite, outcome.completed) == {
        f"{arm}_seed{seed}" for arm in ("r2", "r4") for seed in range(4)
    }
    assert (outcome.failed, outcome.not_run, outcome.done_before) == ((), (), ())
    with ExperimentTracker(folder / "experiments.db") as tracker:
        for result in tracker.get_all_experiments():
            steps = [row.step for row in tracker.get_steps(result.experiment_id)]
            assert steps == list(range(1, (2 if result.was_pruned else 8) + 1))
            assert result.num_steps == len(steps)
            assert ("eval_at_25", "loss") in result.scores
            assert (("eval_at_50", "loss") in result.scores) != result.was_pruned
            assert (("eval", "loss") in result.scores) != result.was_pruned
            if result.was_pruned:
                assert result.failure_message is not None
                assert result.failure_message.startswith(
                    "stopped by racing after 25 % of the steps: its held-out loss"
                )
                assert result.adapter_path is None
            assert result.incidents == ()  # a pause that was planned is none
    assert not list(folder.rglob("checkpoint-*"))


def test_what_goes_on_comes_to_what_it_comes_to_without_a_race(
    suite: forked.TinySuite, raced: tuple[Path, StudyOutcome], full: dict[str, Any]
) -> None:
    found = forked.everything(raced[0])
    for name in names(suite, raced[1].completed):
        ours, theirs = without_rungs(found[name]), full[name]
        if suite.experiments[0].settings.engine == "reference":
            assert ours == theirs  # arms train one by one there, so their company cannot matter
            continue
        assert ours["answers"] == theirs["answers"]
        for key, value in theirs["values"].items():
            assert ours["values"][key] == pytest.approx(value, rel=1e-5)


def test_a_race_that_stops_nobody_comes_to_the_very_bits(
    suite: forked.TinySuite, full: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorastudy.stats.racing.clearly_behind", lambda *_, **__: ())
    outcome = race(suite, tmp_path)
    assert len(outcome.completed) == len(suite.experiments)
    found = forked.everything(tmp_path)
    assert {name: without_rungs(each) for name, each in found.items()} == full


def test_a_race_that_is_over_runs_nothing_again(
    suite: forked.TinySuite, raced: tuple[Path, StudyOutcome]
) -> None:
    folder, first = raced
    before = forked.everything(folder)
    executor = forked.ForkedExecutor(cache=suite.cache)
    again = race(suite, folder, executor=executor)
    assert executor.pids == []
    assert again.pruned == first.pruned
    assert set(again.done_before) == set(first.completed)
    assert forked.everything(folder) == before


@PACKED
@pytest.mark.parametrize("number", [16, pytest.param(3, marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_changes_no_decision_and_no_bit(
    suite: forked.TinySuite, raced: tuple[Path, StudyOutcome], tmp_path: Path, number: int
) -> None:
    executor = forked.ForkedExecutor(cache=suite.cache)
    told: list[PackStep] = []

    def kill_once(_: object, event: object) -> None:
        told.extend([event] if isinstance(event, PackStep) else [])
        if isinstance(event, PackStep) and len(told) == number:
            os.kill(executor.pids[-1], signal.SIGKILL)

    outcome = race(suite, tmp_path, executor=executor, on_event=kill_once)
    assert len(told) > number, "it was killed on the way"
    assert outcome.pruned == raced[1].pruned
    assert forked.everything(tmp_path) == forked.everything(raced[0])


@PACKED
@pytest.mark.parametrize(
    "number", [9, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 16, 20))]
)
def test_a_runner_that_is_killed_goes_on_to_the_same_end(
    suite: forked.TinySuite, raced: tuple[Path, StudyOutcome], tmp_path: Path, number: int
) -> None:
    """It dies as it hears of the n-th end of a run: pauses count, so most of them fall between the legs."""
    heard: list[Outcome] = []

    def die(_: object, event: object) -> None:
        heard.extend([event] if isinstance(event, Outcome) else [])
        if len(heard) == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race(suite, tmp_path, on_event=die)
    outcome = race(suite, tmp_path)
    assert outcome.pruned == raced[1].pruned
    assert outcome.not_run == ()
    assert forked.everything(tmp_path) == forked.everything(raced[0])
    assert not list(tmp_path.rglob("checkpoint-*"))


@PACKED
def test_a_runner_that_dies_over_its_decision_goes_on_to_the_same_end(
    suite: forked.TinySuite, raced: tuple[Path, StudyOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four seeds are on record as stopped, the others are not."""
    put, recorded = racing.prune, []

    def die_over_the_third(pruning: Any, *, tracker: Any) -> None:
        recorded.append(pruning)
        if len(recorded) == 3:
            raise KeyboardInterrupt
        put(pruning, tracker=tracker)

    monkeypatch.setattr(racing, "prune", die_over_the_third)
    with pytest.raises(KeyboardInterrupt):
        race(suite, tmp_path)
    monkeypatch.setattr(racing, "prune", put)
    assert race(suite, tmp_path).pruned == raced[1].pruned
    assert forked.everything(tmp_path) == forked.everything(raced[0])


@PACKED
def test_a_decision_that_was_made_is_repeated_and_never_made_again(
    suite: forked.TinySuite, raced: tuple[Path, StudyOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner dies after the first rung, where nobody was behind by a test that would now find everybody behind."""
    steps: list[PackStep] = []

    def die(_: object, event: object) -> None:
        steps.extend([event] if isinstance(event, PackStep) else [])
        if len(steps) == 5:  # of 2 steps to the first rung, in two packs
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lorastudy.stats.racing.clearly_behind", lambda *_, **__: ())
        with pytest.raises(KeyboardInterrupt):
            race(suite, tmp_path, on_event=die)
    with ExperimentTracker(tmp_path / "experiments.db") as tracker:
        (decision,) = tracker.get_decisions(forked.SUITE)
    assert (decision.content["rung"], decision.content["pruned"]) == (0.25, {})
    outcome = race(suite, tmp_path)
    with ExperimentTracker(tmp_path / "experiments.db") as tracker:
        first, second = tracker.get_decisions(forked.SUITE)
        stopped_at = {r.num_steps for r in tracker.get_all_experiments() if r.was_pruned}
    assert first == decision
    assert second.content["rung"] == 0.5
    assert stopped_at == {4}, "at the second rung, where it was decided for the first time"
    assert outcome.pruned == raced[1].pruned


@pytest.mark.slow
@PACKED
def test_leaving_on_the_way_and_coming_back(
    suite: forked.TinySuite, raced: tuple[Path, StudyOutcome], tmp_path: Path
) -> None:
    told: list[PackStep] = []
    executor = forked.ForkedExecutor(cache=suite.cache)

    def leave(_: object, event: object) -> None:
        told.extend([event] if isinstance(event, PackStep) else [])
        if isinstance(event, PackStep) and len(told) == 3:
            executor.leave()

    first = race(suite, tmp_path, executor=executor, on_event=leave, is_leaving=lambda: len(told) >= 3)
    assert first.not_run
    assert first.pruned == ()
    assert race(suite, tmp_path).pruned == raced[1].pruned
    assert forked.everything(tmp_path) == forked.everything(raced[0])


@PACKED
def test_the_store_can_be_made_again_from_the_run_folders(
    suite: forked.TinySuite, raced: tuple[Path, StudyOutcome], tmp_path: Path
) -> None:
    folders = sorted((raced[0] / "runs").glob("pack-*/attempt-*"))
    with ExperimentTracker(tmp_path / "again.db", writable=True) as tracker:
        rebuild(tracker, folders, suite_name=forked.SUITE)
        again = {result.name: result for result in tracker.get_all_experiments()}
        found = pruned(suite.experiments, tracker=tracker)
    assert found == set(raced[1].pruned)
    with ExperimentTracker(raced[0] / "experiments.db", writable=True) as tracker:
        assert sum(replay(tracker, folder) for folder in folders) == 0, (
            "the store has all that the folders say"
        )
        for result in tracker.get_all_experiments():
            assert (again[result.name].status, again[result.name].scores) == (result.status, result.scores)


@PACKED
def test_without_racing_what_was_stopped_is_run_to_its_end(
    suite: forked.TinySuite, raced: tuple[Path, StudyOutcome], full: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(raced[0], folder)
    outcome = forked.run(suite, folder)
    assert set(outcome.completed) == set(raced[1].pruned)
    found = forked.everything(folder)
    for name in names(suite, raced[1].pruned):
        assert found[name]["values"]["eval", "loss"] == pytest.approx(
            full[name]["values"]["eval", "loss"], rel=1e-5
        )


@PACKED
def test_checkpoints_lie_there_between_two_legs_only(
    raced: tuple[Path, StudyOutcome], num_with_checkpoints: list[int]
) -> None:
    assert max(num_with_checkpoints) >= 2
    assert not list(raced[0].rglob("checkpoint-*"))
