"""What the store keeps, whatever database it is in: SQLite as a file, PostgreSQL by URL."""

import dataclasses
import importlib.util
import math
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

from lorastudy.errors import StoreError
from lorastudy.protocol.records import ArmStep, Outcome, Pack, PackStep, Record, Score
from lorastudy.store import ExperimentTracker
from torture import scripted_worker, studies

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def _loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


postgresql = _loaded("postgresql")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    reason = postgresql.missing()
    if reason is not None:
        pytest.skip(reason)
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'lorastudy[postgresql]')")
    with postgresql.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The path or the URL of a database that is not there yet, or empty."""
    if request.param == "sqlite":
        return str(tmp_path / "experiments.db")
    url: str = postgresql.create_database(request.getfixturevalue("server"), f"study-{uuid.uuid4().hex[:8]}")
    return url


@pytest.fixture
def tracker(database: str) -> Iterator[ExperimentTracker]:
    with ExperimentTracker(database, writable=True, clock=lambda: NOON) as tracker:
        yield tracker


@pytest.fixture
def pack() -> Pack:
    return Pack(id="pack-1", attempt=1, engine="packed", experiments=tuple(studies.experiments(num_packs=1)))


@pytest.fixture
def taken(tracker: ExperimentTracker, pack: Pack) -> list[Record]:
    """All records of a pack that ran."""
    start(tracker, pack)
    records = list(scripted_worker.records(pack))
    for record in records:
        assert tracker.take(record, pack_id=pack.id, attempt=pack.attempt)
    return records


def start(tracker: ExperimentTracker, pack: Pack) -> None:
    tracker.register("ranks", pack.experiments, description="which rank")
    for each in pack.experiments:
        tracker.start_run(
            each.id,
            attempt=pack.attempt,
            pack_id=pack.id,
            engine=pack.engine,
            run_folder=f"runs/{pack.attempt}",
        )


def test_what_was_taken_is_read_back(
    tracker: ExperimentTracker, database: str, pack: Pack, taken: list[Record]
) -> None:
    with ExperimentTracker(database) as reader:
        assert [each.suite_name for each in reader.get_suites()] == ["ranks"]
        results = reader.get_all_experiments()
        assert [each.name for each in results] == [each.name for each in pack.experiments]
        for result in results:
            assert (result.status, result.started_at) == ("completed", NOON.isoformat())
            scores = [r for r in taken if isinstance(r, Score) and r.experiment_id == result.experiment_id]
            assert {key: score.value for key, score in result.scores.items()} == {
                (score.split, score.metric): score.value for score in scores
            }
            for score in scores:
                found = reader.get_items(result.experiment_id, split=score.split, metric=score.metric)
                assert found == (score.items, score.weights)
            steps = [
                arm.loss
                for step in taken
                if isinstance(step, PackStep)
                for arm in step.arms
                if arm.experiment_id == result.experiment_id
            ]
            assert [step.loss for step in reader.get_steps(result.experiment_id)] == steps
            assert len(reader.get_generations(result.experiment_id)) == 1
        assert reader.verify() == []
        assert reader.completed([pack.experiments[0].id]).keys() == {pack.experiments[0].id}


def test_doubles_come_back_to_the_last_bit(tracker: ExperimentTracker, pack: Pack) -> None:
    start(tracker, pack)
    first = pack.experiments[0].id
    losses = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2.0]
    for number, loss in enumerate(losses, start=1):
        arm = ArmStep(experiment_id=first, loss=loss, learning_rate=1e-4, grad_norm=None)
        step = PackStep(
            step=number, num_steps=6, num_tokens=2**53 + 1, num_completion_tokens=1, seconds=0.1, arms=(arm,)
        )
        assert tracker.take(step, pack_id=pack.id, attempt=1)
    found = [step.loss for step in tracker.get_steps(first)]
    assert found == losses
    assert math.copysign(1, found[4]) == 1  # minus zero becomes zero, which SQLite cannot keep apart
    assert tracker.verify() == []


def test_a_record_is_taken_once(tracker: ExperimentTracker, pack: Pack, taken: list[Record]) -> None:
    assert [record for record in taken if tracker.take(record, pack_id=pack.id, attempt=1)] == []
    assert tracker.verify() == []


def test_an_older_attempt_is_refused(tracker: ExperimentTracker, pack: Pack) -> None:
    start(tracker, pack)
    start(tracker, dataclasses.replace(pack, attempt=2, id="pack-2"))
    end = Outcome(experiment_id=pack.experiments[0].id, status="completed")
    assert not tracker.take(end, pack_id="pack-1", attempt=1)
    assert tracker.take(end, pack_id="pack-2", attempt=2)
    assert tracker.next_attempt([pack.experiments[0].id]) == 3


def test_a_write_that_fails_leaves_nothing(tracker: ExperimentTracker, pack: Pack) -> None:
    start(tracker, pack)
    with pytest.raises(StoreError, match="is not registered"):
        tracker.start_run("exp-unknown", attempt=1, pack_id="p", engine="packed", run_folder="f")
    assert tracker.next_attempt(["exp-unknown"]) == 1


def test_names_of_any_kind_are_kept_as_they_are(tracker: ExperimentTracker, pack: Pack) -> None:
    name = "naïve '; DROP TABLE runs; -- \N{SNOWMAN} %s {x}"
    experiment = dataclasses.replace(pack.experiments[0], name=name)
    tracker.register(name, [experiment], description=name)
    (result,) = tracker.get_all_experiments(suite_name=name)
    assert (result.name, result.suite_name) == (name, name)


def test_a_reader_creates_nothing_and_says_what_is_missing(database: str) -> None:
    with pytest.raises(StoreError, match=r"there is no results store here|is empty"):
        ExperimentTracker(database)


def test_a_second_writer_is_refused_and_the_first_is_named(tracker: ExperimentTracker, database: str) -> None:
    script = f"""
from lorastudy.errors import StoreError
from lorastudy.store import ExperimentTracker
try:
    ExperimentTracker({database!r}, writable=True)
except StoreError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert f"is being written by process {os.getpid()} on {socket.gethostname()}, since 20" in said
    with ExperimentTracker(database) as reader:
        assert reader.get_suites() == []


def test_the_lock_of_a_writer_that_was_killed_is_free_again(database: str) -> None:
    script = f"""
import os
from lorastudy.store import ExperimentTracker
tracker = ExperimentTracker({database!r}, writable=True)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    ExperimentTracker(database, writable=True).close()
