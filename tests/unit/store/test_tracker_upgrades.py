"""Stores of every earlier version are upgraded, with a backup, and say what they said."""

import importlib.util
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lorastudy.errors import StoreError
from lorastudy.store import ExperimentTracker, backup, migrations
from lorastudy.store.schema import HEAD_REVISION
from lorastudy.suite.question import Question

STORES = Path(__file__).parent / "stores"
KEPT = sorted(STORES.glob("*.sql"))


def loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def restored(tmp_path: Path) -> Callable[[Path], Path]:
    """The database that a dump is of."""

    def restored(dump: Path) -> Path:
        database = tmp_path / f"{dump.stem}.db"
        loaded(STORES / "make.py").restore(dump, database)
        return database

    return restored


def test_a_store_of_every_version_is_kept() -> None:
    assert [file.stem for file in KEPT] == sorted(migrations.known_revisions())


@pytest.mark.parametrize("dump", KEPT, ids=lambda dump: dump.stem)
def test_a_store_of_an_earlier_version_says_what_it_said(
    dump: Path, restored: Callable[[Path], Path], tmp_path: Path
) -> None:
    database = restored(dump)
    with ExperimentTracker(database, writable=True) as tracker:
        assert tracker.verify() == []
        tracker.export_to_json(tmp_path / "now.json")
    then, now = (json.loads(file.read_text()) for file in (dump.with_suffix(".json"), tmp_path / "now.json"))
    assert {"suites", "experiments"} <= then.keys()
    for key in ("suites", "experiments"):
        assert_still_said(then[key], now[key])
    is_current = dump.stem == HEAD_REVISION
    assert len(list(tmp_path.glob("*.backup"))) == (0 if is_current else 1)


def assert_still_said(then: Any, now: Any) -> None:
    """Whatever was said is said still; there may be more by now."""
    if isinstance(then, dict):
        assert then.keys() <= now.keys()
        for key, value in then.items():
            assert_still_said(value, now[key])
    elif isinstance(then, list):
        assert len(then) == len(now)
        for one, other in zip(then, now, strict=True):
            assert_still_said(one, other)
    else:
        assert then == now


def test_a_store_of_before_questions_keeps_its_results_and_can_state_a_question(
    restored: Callable[[Path], Path],
) -> None:
    with ExperimentTracker(restored(STORES / "0004.sql"), writable=True) as tracker:
        (suite,) = [suite for suite in tracker.get_suites() if suite.num_experiments]
        assert suite.questions == ()
        assert tracker.state_question(suite.suite_name, Question(seeds=(0,)))
        assert tracker.get_all_experiments()[0].status == "completed"
        assert tracker.verify() == []


# --- backups --------------------------------------------------------------------------------------------


@pytest.fixture
def store(restored: Callable[[Path], Path]) -> Path:
    return restored(KEPT[-1])


def test_a_backup_is_equal_and_a_second_one_has_another_name(store: Path) -> None:
    copies = [backup.back_up(store, kind="copy") for _ in range(2)]
    assert [copy.name.removeprefix(store.name) for copy in copies] == [".copy.backup", ".copy.2.backup"]
    for copy in copies:
        with ExperimentTracker(copy) as tracker, ExperimentTracker(store) as original:
            assert tracker.get_all_experiments() == original.get_all_experiments()


def test_a_backup_is_made_while_a_suite_writes(store: Path) -> None:
    with ExperimentTracker(store, writable=True) as writer:
        (first, *_) = writer.get_all_experiments()
        writer.start_run(first.experiment_id, attempt=2, pack_id="p", engine="packed", run_folder="f")
        copy = backup.back_up(store, kind="copy")
        with ExperimentTracker(copy) as tracker:
            assert tracker.next_attempt([first.experiment_id]) == 3


def test_a_damaged_store_is_not_backed_up_as_if_it_were_sound(store: Path) -> None:
    connection = sqlite3.connect(store)
    number = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'scores'").fetchone()[0]
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    content = bytearray(store.read_bytes())
    content[(number - 1) * size] = 0xFF
    store.write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged \(.*lorastudy doctor|malformed"):
        backup.back_up(store, kind="copy")
    assert [file.name for file in store.parent.iterdir() if "backup" in file.name] == []


def test_a_backup_that_cannot_be_written_says_so_and_leaves_nothing(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the backup could not be written"):
        backup.copy(store, tmp_path / "no folder" / "copy.db")
    assert not (tmp_path / "no folder").exists()


def test_a_damaged_row_is_not_upgraded_into_a_sound_one(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = sqlite3.connect(store)
    with connection:
        connection.execute("UPDATE scores SET value = 2")
    connection.close()
    monkeypatch.setattr("lorastudy.store.store.HEAD_REVISION", "another")
    with pytest.raises(StoreError, match=r"row of table scores does not match its hash, and is not upgraded"):
        ExperimentTracker(store, writable=True)
