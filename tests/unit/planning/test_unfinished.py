"""The suites that `lorastudy resume` finds in a store."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorastudy.planning.design import Designer
from lorastudy.planning.unfinished import UnfinishedSuite, unfinished_suites
from lorastudy.protocol.records import Outcome
from lorastudy.store import ExperimentTracker
from lorastudy.suite.question import Question
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Arm, Suite

RACING = Question(seeds=(0,), rungs=(0.5,))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A suite that races; its only experiment was stopped by that."""
    arm = Arm(name="r1", settings=Settings(lora_rank=1), seeds=(0,))
    suite = Suite(name="ranks", description="", experiment_type="custom", path=None, arms=(arm,))
    (experiment,) = Designer(suite=suite).design().experiments
    with ExperimentTracker(tmp_path / "all.db", writable=True) as tracker:
        tracker.register("ranks", [experiment])
        tracker.state_question("ranks", RACING)
        tracker.start_run(experiment.id, attempt=1, pack_id="p", engine="packed", run_folder="runs/p")
        stopped = Outcome(experiment_id=experiment.id, status="stopped", failure_kind="pruned")
        tracker.take(stopped, pack_id="p", attempt=1)
    return tmp_path / "all.db"


def resumable(store: Path) -> list[UnfinishedSuite]:
    skipped: list[str] = []
    with ExperimentTracker(store) as tracker:
        found = unfinished_suites(tracker, database=str(store), name=None, on_skip=skipped.append)
    assert skipped == []
    return found


def test_what_racing_stopped_is_over_while_the_suite_races(store: Path) -> None:
    assert resumable(store) == []


def test_what_racing_stopped_is_open_once_the_suite_does_not_race_any_more(store: Path) -> None:
    with ExperimentTracker(store, writable=True) as tracker:
        tracker.state_question("ranks", replace(RACING, rungs=()))
    (unfinished,) = resumable(store)
    assert unfinished.suite.rungs == ()
    assert unfinished.registered is not None
    assert [each.arm for each in unfinished.registered] == ["r1"]
