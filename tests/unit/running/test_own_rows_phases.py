"""Seeds with their own order of the rows, in packs that are killed, raced and balanced: each comes to what it comes to alone."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

import forked
import tiny
from lorastudy.protocol.records import Pack, PackStep
from lorastudy.store import ExperimentTracker

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]

RUNGS = (0.25, 0.5)
#: Two that learn, and one whose rate is far too small: a race stops it.
ARMS = [
    {"name": "r2", "lora_rank": 2},
    {"name": "r4", "lora_rank": 4, "lora_dropout": 0.2},
    {"name": "still", "lora_rank": 2, "learning_rate": 1e-7},
]
#: Of packs of other sizes, after eight steps (`tests/parity` holds five steps to it).
LARGEST_DIFFERENCE = 1e-6


def make_suite(folder: Path, **settings: Any) -> forked.TinySuite:
    """Three arms with four seeds, and no `data_seed`: each seed draws the order of the rows."""
    # One answer to whatever is asked: a few steps learn it, on held-out rows too.
    rows = [
        {"prompt": f"{row.prompt_text} ", "completion": "w5 w6 w7 w8"}
        for row in tiny.make_rows(24, longest=10)
    ]
    path = folder / "learnable.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {"experiments": ARMS, "seeds": [0, 1, 2, 3], "learning_rate": 0.02, "checkpoint_steps": 3}
    return forked.tiny_suite(folder, **{**values, "data_seed": None, "dataset_path": str(path), **settings})


#: `make slow` repeats every test on the reference engine.
@pytest.fixture(scope="module", params=["packed", pytest.param("reference", marks=pytest.mark.slow)])
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> forked.TinySuite:
    return make_suite(tmp_path_factory.mktemp("suite"), engine=request.param)


@pytest.fixture(scope="module")
def together(suite: forked.TinySuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All in one pack, which nothing disturbs."""
    folder = tmp_path_factory.mktemp("together")
    forked.run(suite, folder)
    return folder


@pytest.fixture(scope="module")
def alone(suite: forked.TinySuite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each experiment in a pack of its own."""
    folder, engine = tmp_path_factory.mktemp("alone"), suite.values["engine"]
    apart = make_suite(tmp_path_factory.mktemp("suite_alone"), engine=engine, max_arms_per_pack=1)
    forked.run(apart, folder)
    assert {len(pack.experiments) for pack in packs_of(folder)} == {1}
    return forked.everything(folder)


def packs_of(folder: Path) -> list[Pack]:
    """The packs in the order in which they were served."""
    files = sorted(
        (folder / "runs").glob("pack-*/attempt-*/pack.json"), key=lambda path: path.stat().st_mtime_ns
    )
    return [Pack.read(file.parent) for file in files]


def sizes(folder: Path) -> list[tuple[int, float | None]]:
    """How many experiments each pack had, and where it paused."""
    return [(len(pack.experiments), pack.pause_at) for pack in packs_of(folder)]


def incidents(folder: Path) -> set[str]:
    with ExperimentTracker(folder / "experiments.db") as tracker:
        return {incident.kind for result in tracker.get_all_experiments() for incident in result.incidents}


def names(suite: forked.TinySuite, ids: Any) -> set[str]:
    return {each.name for each in suite.experiments if each.id in set(ids)}


def assert_as_alone(folder: Path, *, alone: dict[str, Any], completed: set[str]) -> None:
    """Losses, adapters and scores of the completed experiments are those of the packs of one."""
    found = forked.everything(folder)
    assert {name for name, each in found.items() if each["status"] == "completed"} == completed
    for name in completed:
        ours, theirs = found[name], alone[name]
        losses, expected = ([step.loss for step in each["steps"]] for each in (ours, theirs))
        assert tiny.largest_relative(losses, expected) <= LARGEST_DIFFERENCE
        adapter, wanted = (load(each["adapter"]) for each in (ours, theirs))
        assert all(tensor.any() for tensor in adapter.values()), "B has left zero"
        assert tiny.largest_difference(adapter, wanted) <= LARGEST_DIFFERENCE
        for key, value in theirs["values"].items():
            assert ours["values"][key] == pytest.approx(value, rel=1e-5)


def killing(executor: forked.ForkedExecutor, *, after: int) -> Callable[[object, object], None]:
    """Kills the worker once that many steps were heard of."""
    steps: list[PackStep] = []

    def on_event(_: object, event: object) -> None:
        if isinstance(event, PackStep):
            steps.append(event)
            if len(steps) == after:
                os.kill(executor.pids[-1], signal.SIGKILL)

    return on_event


def test_a_pack_of_seeds_equals_packs_of_one(
    suite: forked.TinySuite, together: Path, alone: dict[str, Any]
) -> None:
    (pack,) = packs_of(together)
    assert {experiment.data_seed for experiment in pack.experiments} == {0, 1, 2, 3}
    assert_as_alone(together, alone=alone, completed={each.name for each in suite.experiments})


# Every third step is saved: before the first checkpoint, and after one with steps to repeat.
@pytest.mark.parametrize(("number", "kind"), [(2, "not_resumed"), (5, "resumed")])
def test_a_worker_that_is_killed_is_followed_by_one_that_comes_to_the_very_bits(
    suite: forked.TinySuite, together: Path, tmp_path: Path, number: int, kind: str
) -> None:
    executor = forked.ForkedExecutor(cache=suite.cache)
    forked.run(suite, tmp_path, executor=executor, on_event=killing(executor, after=number))
    assert len(executor.pids) == 2
    assert forked.everything(tmp_path) == forked.everything(together)
    assert incidents(tmp_path) == {kind}


def test_a_race_stops_all_seeds_of_an_arm_and_the_others_end_as_they_do_alone(
    suite: forked.TinySuite, alone: dict[str, Any], tmp_path: Path
) -> None:
    folder, killed = tmp_path / "calm", tmp_path / "killed"
    folder.mkdir()
    outcome = forked.run(suite, folder, rungs=RUNGS)
    assert sizes(folder) == [(12, 0.25), (8, 0.5), (8, None)]
    assert names(suite, outcome.pruned) == {f"still_seed{seed}" for seed in range(4)}
    assert_as_alone(folder, alone=alone, completed=names(suite, outcome.completed))
    assert incidents(folder) == set()

    killed.mkdir()
    executor = forked.ForkedExecutor(cache=suite.cache)
    forked.run(
        suite, killed, executor=executor, rungs=RUNGS, on_event=killing(executor, after=6)
    )  # after the two steps of the first leg and the two of the second
    assert len(executor.pids) == 4
    assert forked.everything(killed) == forked.everything(folder)


def test_seeds_that_change_hands_end_as_they_do_alone(
    suite: forked.TinySuite, alone: dict[str, Any], tmp_path: Path
) -> None:
    """Nine experiments for two workers: both pause, and the ninth trains on as a pack of its own."""
    folder, killed = tmp_path / "calm", tmp_path / "killed"
    nine = replace(suite, experiments=suite.experiments[3:])
    folder.mkdir()
    forked.run(nine, folder, executor=forked.TwoLanes(cache=suite.cache))
    assert sizes(folder) == [(4, 0.625), (5, 0.5), (4, None), (4, None), (1, None)]
    assert_as_alone(folder, alone=alone, completed={each.name for each in nine.experiments})
    assert incidents(folder) == set()

    killed.mkdir()
    executor = forked.TwoLanes(cache=suite.cache)
    # The first legs have 5 and 4 steps, the second ones 3, 4 and 4.
    forked.run(nine, killed, executor=executor, on_event=killing(executor, after=14))
    assert len(executor.pids) == 6
    assert forked.everything(killed) == forked.everything(folder)
