"""A store is made again, from the run folders and from what is intact in the old one; the doctor says when to."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from lorastudy.errors import StoreError
from lorastudy.protocol.records import RECORDS_NAME
from lorastudy.store import ExperimentTracker, rebuilding
from lorastudy.store.doctor import examine
from lorastudy.store.rebuilding import rebuild_store
from torture import studies
from torture.faults.bitflips import flipped

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two packs with two arms each, and of a second suite that shares one of them."""
    folder = tmp_path_factory.mktemp("finished")
    wanted = studies.experiments()
    studies.run_study(folder, wanted)
    with ExperimentTracker(folder / studies.DATABASE, writable=True) as tracker:
        tracker.register("others", wanted[1:2], description="one of them once more")
        rebuilding.keep_note(tracker, "others", runs=runs_of(folder))
    return folder


@pytest.fixture
def study(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder as it was; run folders are known by their whole path."""
    store = finished / studies.DATABASE
    kept = finished.with_name("kept")
    if not kept.exists():
        shutil.copytree(finished, kept)
    shutil.rmtree(finished)
    shutil.copytree(kept, finished)
    assert store.exists()
    return finished


def runs_of(study: Path) -> Path:
    return study / "results" / "runs"


def rows_of(database: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = sqlite3.connect(database)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    rows = {table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr) for table in tables}
    connection.close()
    return rows


def id_of(database: Path, name: str) -> str:
    with ExperimentTracker(database) as tracker:
        return next(each.experiment_id for each in tracker.get_all_experiments() if each.name == name)


def edit(database: Path, statement: str) -> None:
    connection = sqlite3.connect(database)
    with connection:
        connection.execute(statement)
    connection.close()


def test_a_store_that_is_gone_comes_back_with_its_suites(study: Path) -> None:
    store = study / studies.DATABASE
    before = studies.content(store)
    store.unlink()
    rebuilt = rebuild_store(store, runs=runs_of(study))
    assert (rebuilt.problems, rebuilt.backup) == ((), None)
    assert studies.text(studies.content(store)) == studies.text(before)
    with ExperimentTracker(store) as tracker:
        suites = [(each.suite_name, each.description) for each in tracker.get_suites()]
    assert suites == [("torture", ""), ("others", "one of them once more")]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE scores SET value = value + 1",
        "UPDATE runs SET status = 'failed'",
        "DELETE FROM score_items",
        "UPDATE experiments SET seed = 7",
        "UPDATE suites SET created_at = 'x'",
        "UPDATE steps SET loss = 0 WHERE step = 2",
        "SELECT 1",
    ],
)
def test_a_damaged_store_comes_back_as_it_was_to_the_row(study: Path, statement: str) -> None:
    store = study / studies.DATABASE
    before = rows_of(store)
    edit(store, "PRAGMA foreign_keys = OFF")
    edit(store, statement)
    rebuilt = rebuild_store(store, runs=runs_of(study))
    assert rebuilt.problems == ()
    if "UPDATE runs" in statement or "UPDATE suites" in statement:  # times are the store's alone
        assert without_times(rows_of(store)) == without_times(before)
    else:
        assert rows_of(store) == before
    assert rebuilt.backup is not None
    assert rebuilt.backup.name == "experiments.db.before-rebuild.backup"


def without_times(rows: dict[str, list[tuple[object, ...]]]) -> dict[str, list[tuple[object, ...]]]:
    """Rows without times, and without the hashes over them."""

    def is_time(value: object) -> bool:
        return isinstance(value, str) and (value.startswith("20") or len(value) == 64)

    return {
        table: sorted((tuple(value for value in row if not is_time(value)) for row in found), key=repr)
        for table, found in rows.items()
    }


def test_what_has_no_folder_any_more_is_taken_from_the_old_store(study: Path) -> None:
    store = study / studies.DATABASE
    before = rows_of(store)
    shutil.rmtree(runs_of(study))
    rebuilt = rebuild_store(store, runs=runs_of(study))
    assert (rebuilt.num_records, rebuilt.problems) == (0, ())
    assert rows_of(store) == before


def test_a_run_that_lost_a_part_for_good_counts_as_failed(study: Path) -> None:
    store = study / studies.DATABASE
    (damaged,) = {
        each.experiment_id for each in ExperimentTracker(store).get_all_experiments() if each.name == "r1_d0"
    }
    shutil.rmtree(runs_of(study))
    edit(store, f"UPDATE scores SET value = 0 WHERE metric = 'loss' AND experiment_id = '{damaged}'")
    rebuilt = rebuild_store(store, runs=runs_of(study))
    assert any("r1_d0" in problem and "counts as failed" in problem for problem in rebuilt.problems)
    with ExperimentTracker(store) as tracker:
        assert tracker.verify() == []
        statuses = {each.name: each.status for each in tracker.get_all_experiments()}
    assert statuses == {"r1_d0": "failed", "r2_d0": "completed", "r1_d1": "completed", "r2_d1": "completed"}


def test_where_it_cannot_be_told_what_is_lost_no_run_without_a_folder_counts(study: Path) -> None:
    store = study / studies.DATABASE
    edit(
        store,
        f"UPDATE scores SET experiment_id = 'who' WHERE metric = 'loss' AND experiment_id = '{id_of(store, 'r1_d0')}'",
    )
    pack = sorted(path for path in runs_of(study).iterdir() if path.name.startswith("pack"))[0]
    shutil.rmtree(pack)
    rebuild_store(store, runs=runs_of(study))
    with ExperimentTracker(store) as tracker:
        results = tracker.get_all_experiments()
        statuses = [each.status for each in results if str(pack) in str(each.run_folder)]
        others = [each.status for each in results if str(pack) not in str(each.run_folder)]
    assert set(statuses) == {"failed"}
    assert set(others) == {"completed"}


def test_a_store_of_which_nothing_can_be_read_comes_from_the_folders(study: Path) -> None:
    store = study / studies.DATABASE
    before = studies.text(studies.content(store))
    store.write_bytes(b"not a database any more" * 100)
    rebuilt = rebuild_store(store, runs=runs_of(study))
    assert len(rebuilt.problems) == 1
    assert "nothing of the old store could be read" in rebuilt.problems[0]
    assert studies.text(studies.content(store)) == before


def test_a_store_in_use_is_not_rebuilt(study: Path) -> None:
    store = study / studies.DATABASE
    with ExperimentTracker(store, writable=True), pytest.raises(StoreError, match="is being written by"):
        rebuild_store(store, runs=runs_of(study))


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    store = tmp_path / "other.db"
    edit(store, "CREATE TABLE recipes (name TEXT)")
    before = store.read_bytes()
    with pytest.raises(StoreError, match="database of something else"):
        rebuild_store(store, runs=tmp_path)
    assert store.read_bytes() == before
    assert not store.with_name("other.db.lock").exists()


# --- the doctor -----------------------------------------------------------------------------------------


def found(study: Path) -> list[tuple[str, str]]:
    return [(finding.kind, finding.what) for finding in examine(str(study / studies.DATABASE))]


def one(study: Path, pattern: str) -> Path:
    return sorted((study / "results" / "runs").rglob(pattern))[0]


def test_a_sound_study_has_nothing_to_mend(study: Path) -> None:
    # the scripted worker's weights are no safetensors file
    for weights in runs_of(study).rglob("*.safetensors"):
        weights.write_bytes((2).to_bytes(8, "little") + b"{}")
    assert found(study) == []


@pytest.mark.parametrize(
    ("injure", "kind", "what"),
    [
        (
            lambda study: edit(study / studies.DATABASE, "UPDATE scores SET value = 2"),
            "damage",
            "table scores",
        ),
        (
            lambda study: edit(study / studies.DATABASE, "DELETE FROM score_items"),
            "damage",
            "records of it are not in",
        ),
        (lambda study: rot(one(study, RECORDS_NAME)), "damage", "records.jsonl: damaged"),
        (lambda study: cut(one(study, RECORDS_NAME)), "damage", "its last line is cut off"),
        (lambda study: one(study, "pack.json").unlink(), "damage", "has no pack.json"),
        (lambda study: rot(one(study, "pack.json")), "damage", "pack.json"),
        (lambda study: one(study, "*.safetensors").unlink(), "damage", "the weights of r"),
        (lambda study: shutil.rmtree(one(study, "adapters")), "damage", "the adapter of r"),
        (lambda study: one(study, "*.safetensors").write_bytes(b"12345678"), "damage", "cut off or damaged"),
        (lambda study: shutil.rmtree(one(study, "pack-*")), "note", "1 of 2 run folders are gone"),
    ],
)
def test_the_doctor_names_what_is_wrong(
    study: Path, injure: Callable[[Path], None], kind: str, what: str
) -> None:
    for weights in runs_of(study).rglob("*.safetensors"):
        weights.write_bytes((2).to_bytes(8, "little") + b"{}")
    injure(study)
    assert any(each == kind and what in said for each, said in found(study)), found(study)


def rot(file: Path) -> None:
    file.write_bytes(flipped(file.read_bytes(), 8 * 100))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])
