"""Stores of every released revision are upgraded, with a backup, and say what they said. Older ones are refused."""

import importlib.util
import json
import re
import shlex
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from lorastudy.cli.main import main
from lorastudy.errors import StoreError
from lorastudy.store import ExperimentTracker, database, migrations
from lorastudy.store.rebuilding import rebuild_store
from lorastudy.store.schema import HEAD_REVISION, VERSION_TABLE, metadata

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


def test_a_store_of_every_revision_is_kept() -> None:
    assert [file.stem for file in KEPT] == sorted(migrations.known_revisions())


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This version with a made-up next revision: a new column, and a new table that is filled from an old one."""
    folder = tmp_path / "migrations of the next version"
    shutil.copytree(Path(migrations.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "r0099_made_up.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision = 'r0099'\ndown_revision = '{HEAD_REVISION}'\n"
        "def upgrade():\n"
        "    op.add_column('suite_designs', sa.Column('colour', sa.Text))\n"
        "    op.create_table('metrics', sa.Column('metric', sa.Text, primary_key=True),\n"
        "        sa.Column('row_sha256', sa.Text, nullable=False))\n"
        "    op.execute(\"INSERT INTO metrics SELECT DISTINCT metric, '' FROM scores\")\n"
    )
    monkeypatch.setattr(migrations, "_FOLDER", folder)
    monkeypatch.setattr("lorastudy.store.database.HEAD_REVISION", "r0099")


@pytest.mark.parametrize("dump", KEPT, ids=lambda dump: dump.stem)
def test_a_kept_store_has_the_tables_of_this_version(dump: Path, restored: Callable[[Path], Path]) -> None:
    database = restored(dump)
    ExperimentTracker(database, writable=True).close()
    engine = create_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    engine.dispose()


@pytest.mark.parametrize("dump", KEPT, ids=lambda dump: dump.stem)
def test_a_kept_store_says_what_it_said(dump: Path, restored: Callable[[Path], Path], tmp_path: Path) -> None:
    assert_says_what_it_said(restored(dump), dump, now=tmp_path / "now.json")
    assert len(list(tmp_path.glob("*.backup"))) == (0 if dump.stem == HEAD_REVISION else 1)


@pytest.mark.usefixtures("next_version")
@pytest.mark.parametrize("dump", KEPT, ids=lambda dump: dump.stem)
def test_the_next_version_upgrades_a_kept_store_and_it_says_what_it_said(
    dump: Path, restored: Callable[[Path], Path], tmp_path: Path
) -> None:
    database = restored(dump)
    ExperimentTracker(database, writable=True).close()
    connection = sqlite3.connect(database)
    metrics = {
        metric for (metric,) in connection.execute("SELECT metric FROM metrics WHERE length(row_sha256) = 64")
    }
    assert (
        metrics == {metric for (metric,) in connection.execute("SELECT DISTINCT metric FROM scores")} != set()
    )
    assert "colour" in [row[1] for row in connection.execute("PRAGMA table_info(suite_designs)")]
    assert list(connection.execute(f"SELECT version_num FROM {VERSION_TABLE}")) == [("r0099",)]
    connection.close()
    assert len(list(tmp_path.glob("*.backup"))) == 1
    with ExperimentTracker(database, writable=True) as tracker:
        # Only the next version knows the new column, and with it the hash of that row.
        assert [row.table for row in tracker.verify()] == ["suite_designs"]
        tracker.export_to_json(tmp_path / "now.json")
    then, now = (json.loads(file.read_text()) for file in (dump.with_suffix(".json"), tmp_path / "now.json"))
    assert_still_said({key: then[key] for key in ("suites", "experiments")}, now)


def assert_says_what_it_said(database: Path, dump: Path, *, now: Path) -> None:
    with ExperimentTracker(database, writable=True) as tracker:
        assert tracker.verify() == []
        tracker.export_to_json(now)
    then, found = (json.loads(file.read_text()) for file in (dump.with_suffix(".json"), now))
    assert {"suites", "experiments"} <= then.keys()
    for key in ("suites", "experiments"):
        assert_still_said(then[key], found[key])


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


# --- stores of before the first release -----------------------------------------------------------------


@pytest.fixture
def unreleased(tmp_path: Path) -> Path:
    """A store of revision 0009 beside the run folders that it was made of."""
    shutil.copytree(STORES / "unreleased" / "runs", tmp_path / "results" / "runs")
    database = tmp_path / "results" / "experiments.db"
    connection = sqlite3.connect(database)
    with connection:
        connection.execute(f"CREATE TABLE {VERSION_TABLE} (version_num TEXT NOT NULL)")
        connection.execute(f"INSERT INTO {VERSION_TABLE} VALUES ('0009')")
        connection.execute("CREATE TABLE runs (run_folder TEXT NOT NULL)")
        folders = [(str(file.parent),) for file in (tmp_path / "results").rglob("pack.json")]
        connection.executemany("INSERT INTO runs VALUES (?)", folders)
        connection.execute("CREATE TABLE imports (tool TEXT, file TEXT)")
    connection.close()
    return database


@pytest.mark.parametrize("writable", [False, True])
def test_it_is_refused_with_the_command_that_rebuilds_it(unreleased: Path, writable: bool) -> None:
    before = unreleased.read_bytes()
    command = f"lorastudy db rebuild --database {unreleased} --runs-dir {unreleased.parent / 'runs'}"
    with pytest.raises(StoreError, match=re.escape(command)):
        ExperimentTracker(unreleased, writable=writable)
    assert unreleased.read_bytes() == before
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command)[1:])
    assert (ended.value.code or 0) == 0
    with ExperimentTracker(unreleased) as tracker:
        assert tracker.verify() == []
        found = {
            result.name: {
                "status": result.status,
                "num_steps": result.num_steps,
                "scores": {"/".join(key): score.value for key, score in result.scores.items()},
            }
            for result in tracker.get_all_experiments()
        }
        stopped = [result for result in tracker.get_all_experiments() if result.status == "stopped"]
    assert found == json.loads((STORES / "unreleased" / "said.json").read_text())
    # Older versions wrote `outraced` for `pruned`.
    assert {result.arm for result in stopped} == {"still"}
    assert all(result.was_pruned for result in stopped)
    assert unreleased.with_name("experiments.db.before-rebuild.backup").read_bytes() == before


def test_rebuilding_names_what_the_old_store_alone_holds(unreleased: Path) -> None:
    connection = sqlite3.connect(unreleased)
    with connection:
        connection.execute("INSERT INTO runs VALUES ('gone/attempt-1')")
        connection.execute("INSERT INTO imports VALUES ('another tool', 'results.csv')")
    connection.close()
    rebuilt = rebuild_store(unreleased, runs=unreleased.parent / "runs")
    assert len(rebuilt.problems) == 2
    assert "results from results.csv (another tool) are in the old store alone" in rebuilt.problems[0]
    assert "1 of 4 run folders are gone, such as gone/attempt-1" in rebuilt.problems[1]


# --- backups --------------------------------------------------------------------------------------------


@pytest.fixture
def store(restored: Callable[[Path], Path]) -> Path:
    return restored(KEPT[-1])


def test_a_backup_is_equal_and_a_second_one_has_another_name(store: Path) -> None:
    copies = [database.back_up(store, kind="copy") for _ in range(2)]
    assert [copy.name.removeprefix(store.name) for copy in copies] == [".copy.backup", ".copy.2.backup"]
    for copy in copies:
        with ExperimentTracker(copy) as tracker, ExperimentTracker(store) as original:
            assert tracker.get_all_experiments() == original.get_all_experiments()


def test_a_backup_is_made_while_a_suite_writes(store: Path) -> None:
    with ExperimentTracker(store, writable=True) as writer:
        (first, *_) = writer.get_all_experiments()
        writer.start_run(first.experiment_id, attempt=2, pack_id="p", engine="packed", run_folder="f")
        copy = database.back_up(store, kind="copy")
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
        database.back_up(store, kind="copy")
    assert [file.name for file in store.parent.iterdir() if "backup" in file.name] == []


def test_a_backup_that_cannot_be_written_says_so_and_leaves_nothing(store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the backup could not be written"):
        database.write_copy(store, tmp_path / "no folder" / "copy.db")
    assert not (tmp_path / "no folder").exists()


def test_a_damaged_row_is_not_upgraded_into_a_sound_one(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = sqlite3.connect(store)
    with connection:
        connection.execute("UPDATE scores SET value = 2")
    connection.close()
    monkeypatch.setattr("lorastudy.store.database.HEAD_REVISION", "another")
    with pytest.raises(StoreError, match=r"row of table scores does not match its hash, and is not upgraded"):
        ExperimentTracker(store, writable=True)
