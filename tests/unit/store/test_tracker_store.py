"""Opening, creating, upgrading and damage: what becomes of the file."""

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, create_engine, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateTable

from lorastudy.errors import StoreError
from lorastudy.protocol.records import Outcome, PackStep
from lorastudy.store import ExperimentTracker, migrations, rows, schema
from lorastudy.store import database as database_module
from lorastudy.store.database import Database


@pytest.fixture
def filled(database, make_experiment, make_records):
    """A store at rest with one completed run, and the id of its experiment."""
    experiment = make_experiment(8)
    with ExperimentTracker(database, writable=True) as tracker:
        tracker.register("ranks", [experiment])
        tracker.start_run(experiment.id, attempt=1, pack_id="p", engine="packed", run_folder="runs/p")
        for record in make_records(experiment.id):
            assert tracker.take(record, pack_id="p", attempt=1)
    return database


def edit(database: Path, statement: str) -> None:
    connection = sqlite3.connect(database)
    with connection:
        connection.execute(statement)
    connection.close()


def test_reading_creates_nothing(tmp_path):
    with pytest.raises(StoreError, match=r"none\.db: there is no results store here.*lorastudy suite"):
        ExperimentTracker(tmp_path / "new" / "none.db")
    assert list(tmp_path.iterdir()) == []


def test_at_rest_the_store_is_one_file_and_reading_adds_none(filled):
    assert [file.name for file in filled.parent.iterdir()] == [filled.name]
    before = filled.read_bytes()
    with ExperimentTracker(filled) as tracker:
        assert tracker.get_all_experiments()[0].status == "completed"
        assert [file.name for file in filled.parent.iterdir()] == [filled.name]
    assert filled.read_bytes() == before
    assert [file.name for file in filled.parent.iterdir()] == [filled.name]


def test_a_reader_sees_each_write_while_the_writer_goes_on(filled, make_experiment):
    with ExperimentTracker(filled, writable=True) as writer, ExperimentTracker(filled) as reader:
        writer.register("more", [make_experiment(16)])
        assert len(reader.get_all_experiments()) == 2
        writer.register("more", [make_experiment(32)])
        assert len(reader.get_all_experiments()) == 3


def test_what_was_taken_survives_a_killed_writer(database, make_experiment):
    script = f"""
import os
from lorastudy.protocol.records import Outcome
from lorastudy.suite.experiment import Experiment
from lorastudy.store import ExperimentTracker
experiment = Experiment.from_json({make_experiment(8).to_json()!r})
tracker = ExperimentTracker({str(database)!r}, writable=True)
tracker.register("ranks", [experiment])
tracker.start_run(experiment.id, attempt=1, pack_id="p", engine="packed", run_folder="f")
tracker.take(Outcome(experiment_id=experiment.id, status="completed"), pack_id="p", attempt=1)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    with ExperimentTracker(database) as tracker:
        assert [result.status for result in tracker.get_all_experiments()] == ["completed"]


def test_durable_writes_are_synced_and_steps_are_not(database):
    opened = Database(database, writable=True)

    def level(*, durable: bool) -> int:
        with opened.writing(durable=durable) as connection:
            return int(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())

    assert (level(durable=True), level(durable=False), level(durable=True)) == (2, 1, 2)  # FULL, NORMAL, FULL
    with opened.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    opened.close()


def test_a_reader_cannot_write(filled, make_experiment):
    with ExperimentTracker(filled) as tracker, pytest.raises(StoreError, match="writable=True"):
        tracker.register("ranks", [make_experiment(16)])


def test_a_second_writer_waits_and_then_says_so(filled, make_experiment, monkeypatch):
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT_SECONDS", 0.05)
    with ExperimentTracker(filled, writable=True) as tracker:
        other = sqlite3.connect(filled, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked"):
            tracker.register("ranks", [make_experiment(16)])
        other.execute("ROLLBACK")
        other.close()
        tracker.register("ranks", [make_experiment(16)])


@pytest.mark.parametrize("writable", [False, True])
def test_other_files_are_refused_and_left_as_they_are(tmp_path, writable):
    text, foreign = tmp_path / "notes.db", tmp_path / "other.db"
    text.write_text("not a database, but long enough to have a header of a hundred bytes" * 3)
    edit(foreign, "CREATE TABLE recipes (name TEXT)")
    before = text.read_bytes(), foreign.read_bytes()
    with pytest.raises(StoreError, match="file is not a database"):
        ExperimentTracker(text, writable=writable)
    with pytest.raises(StoreError, match=r"a database of something else.*recipes"):
        ExperimentTracker(foreign, writable=writable)
    assert (text.read_bytes(), foreign.read_bytes()) == before


@pytest.mark.parametrize("writable", [False, True])
def test_a_store_of_a_newer_version_is_refused(filled, writable):
    edit(filled, f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"newer version.*9999.*pip install --upgrade lorastudy"):
        ExperimentTracker(filled, writable=writable)


def test_an_empty_file_is_filled_by_a_writer_only(tmp_path):
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(StoreError, match="is empty: `lorastudy db upgrade`"):
        ExperimentTracker(empty)
    ExperimentTracker(empty, writable=True).close()
    with ExperimentTracker(empty) as tracker:
        assert tracker.get_suites() == []


@pytest.mark.parametrize(
    ("database", "message"),
    [
        ("mysql://host/name", "SQLite file or in PostgreSQL"),
        ("sqlite://", "SQLite file or in PostgreSQL"),
        ("nonsense://", "not a database URL|SQLite file"),
        ("postgresql+asyncpg://host/name", "asyncpg is not installed"),
    ],
)
def test_a_url_that_cannot_be_used_says_why(database, message):
    with pytest.raises(StoreError, match=message):
        ExperimentTracker(database)


def test_an_sqlite_url_is_a_path(filled):
    with ExperimentTracker(f"sqlite:///{filled}") as tracker:
        assert len(tracker.get_all_experiments()) == 1


# --- migrations -----------------------------------------------------------------------------------------


def test_a_new_store_has_the_tables_of_the_schema(tmp_path):
    ExperimentTracker(tmp_path / "new.db", writable=True).close()
    engine = create_engine(f"sqlite:///{tmp_path / 'new.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": schema.VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()
    assert migrations.known_revisions()[0] == schema.HEAD_REVISION


@pytest.fixture
def next_version(tmp_path, monkeypatch):
    """This version with one more revision, which adds a column."""
    folder = tmp_path / "migrations of the next version, 100%"
    shutil.copytree(Path(migrations.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "r0099_colour.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision = 'r0099'\ndown_revision = '{schema.HEAD_REVISION}'\n"
        "def upgrade():\n    op.add_column('suites', sa.Column('colour', sa.Text))\n"
        "    if op.get_bind().execute(sa.text('SELECT count(*) FROM suites')).scalar_one() > 1:\n"
        "        raise RuntimeError('no')\n"
    )
    monkeypatch.setattr(migrations, "_FOLDER", folder)
    monkeypatch.setattr(database_module, "HEAD_REVISION", "r0099")


def columns(database: Path) -> list[str]:
    connection = sqlite3.connect(database)
    names = [row[1] for row in connection.execute("PRAGMA table_info(suites)")]
    connection.close()
    return names


def test_an_older_store_is_backed_up_and_upgraded_by_a_writer(filled, next_version):
    with pytest.raises(StoreError, match=f"older revision {schema.HEAD_REVISION}: `lorastudy db upgrade`"):
        ExperimentTracker(filled)
    assert "colour" not in columns(filled)
    ExperimentTracker(filled, writable=True).close()
    backup = filled.with_name(f"experiments.db.{schema.HEAD_REVISION}.backup")
    assert "colour" in columns(filled)
    assert "colour" not in columns(backup)
    engine = create_engine(f"sqlite:///{filled}")
    with engine.connect() as connection:
        there = MetaData()
        there.reflect(connection)
        suites = there.tables["suites"]
        (row,) = rows.read(connection, select(suites))
        assert "colour" in row
        assert rows.is_intact(suites, row)  # sealed anew, the new column included
    engine.dispose()


def test_a_failed_upgrade_changes_nothing_and_overwrites_no_backup(
    filled, make_experiment, next_version, monkeypatch
):
    with monkeypatch.context() as older:
        older.setattr(database_module, "HEAD_REVISION", schema.HEAD_REVISION)
        with ExperimentTracker(filled, writable=True) as tracker:
            tracker.register("another", [make_experiment(16)])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            ExperimentTracker(filled, writable=True)
    assert "colour" not in columns(filled)
    backups = sorted(file.name for file in filled.parent.iterdir() if file.name.endswith(".backup"))
    assert backups == [f"experiments.db.{schema.HEAD_REVISION}{number}.backup" for number in (".2", "")]


def test_the_design_of_a_suite_is_kept_and_the_newest_counts(filled):
    with ExperimentTracker(filled, writable=True) as tracker:
        assert tracker.get_designs() == {}
        for rank in (4, 8):
            tracker.keep_design("ranks", {"arms": [{"settings": {"lora_rank": rank}}]})
        assert tracker.get_designs() == {"ranks": {"arms": [{"settings": {"lora_rank": 8}}]}}
        assert tracker.verify() == []


def test_the_tables_compile_for_postgresql():
    statements = [
        str(CreateTable(table).compile(dialect=postgresql.dialect()))
        for table in schema.metadata.sorted_tables
    ]
    assert len(statements) == len(schema.metadata.tables) > 0
    assert any("DOUBLE PRECISION" in statement for statement in statements)


# --- damage ---------------------------------------------------------------------------------------------


def read_everything(tracker: ExperimentTracker) -> None:
    tracker.get_suites()
    for result in tracker.get_all_experiments():
        tracker.get_steps(result.experiment_id)
        tracker.get_generations(result.experiment_id)
        for split, metric in result.scores:
            tracker.get_items(result.experiment_id, split=split, metric=metric)


def page_of(database: Path, name: str) -> tuple[int, int]:
    """Where the first page of a table or an index begins in the file, and its size."""
    connection = sqlite3.connect(database)
    number = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()[0]
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    return (number - 1) * size, size


def test_a_row_that_its_index_does_not_know_is_damage_and_not_one_result_less(filled):
    """Its hash is in order, and a query by its key would pass over it."""
    content = bytearray(filled.read_bytes())
    start, size = page_of(filled, "sqlite_autoindex_scores_1")
    content[content.index(b"exact_match", start, start + size)] ^= 1
    filled.write_bytes(content)
    with ExperimentTracker(filled) as tracker:
        assert tracker.verify() == []
        with pytest.raises(StoreError, match=r"is damaged: row 2 missing from index.*lorastudy db rebuild"):
            read_everything(tracker)


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE scores SET value = value + 1e-15 WHERE metric = 'loss'", "scores"),
        ("UPDATE score_items SET items = replace(items, '1.8', '1.9') WHERE metric = 'loss'", "score_items"),
        ("UPDATE runs SET status = 'failed'", "runs"),
        ("UPDATE steps SET loss = NULL WHERE step = 1", "steps"),
        ("UPDATE experiments SET row_sha256 = upper(row_sha256)", "experiments"),
        ("UPDATE generations SET answer = CAST(x'ff' AS TEXT)", "generations"),
        ("UPDATE environments SET torch = x'01'", "environments"),
    ],
)
def test_a_changed_value_is_found(filled, statement, table):
    edit(filled, statement)
    with ExperimentTracker(filled) as tracker:
        (row,) = tracker.verify()
        assert row.table == table
        assert row.key
        with pytest.raises(
            StoreError, match=rf"damaged: a row of table {table} \(.*lorastudy doctor|not decode"
        ):
            read_everything(tracker)


def test_a_flipped_bit_in_the_file_is_found(filled):
    content = bytearray(filled.read_bytes())
    position = content.index(b"a processor")
    content[position] ^= 1
    filled.write_bytes(content)
    with ExperimentTracker(filled) as tracker:
        (row,) = tracker.verify()
    assert (row.table, list(row.key)) == ("environments", ["environment_id"])


def test_a_table_that_cannot_be_read_is_damage_and_not_a_crash(filled):
    content = bytearray(filled.read_bytes())
    start, _ = page_of(filled, "scores")
    content[start] = 0xFF
    filled.write_bytes(content)
    with ExperimentTracker(filled) as tracker:
        assert ("scores", {}) in [(row.table, row.key) for row in tracker.verify()]
        with pytest.raises(StoreError, match="malformed"):
            tracker.get_all_experiments()


# --- lightness ------------------------------------------------------------------------------------------


def imported_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in output.stdout.split()}


def test_the_typed_values_need_no_database():
    assert not imported_by("import lorastudy.store.views") & {"sqlalchemy", "alembic", "torch"}


def test_reading_a_current_store_needs_neither_alembic_nor_a_learning_library(filled):
    code = f"from lorastudy.store import ExperimentTracker, replay\nExperimentTracker({os.fspath(filled)!r}).get_suites()"
    modules = imported_by(code)
    assert "sqlalchemy" in modules
    assert not modules & {"alembic", "torch", "transformers", "peft", "datasets", "numpy"}


def test_a_step_of_many_arms_is_whole_or_absent(filled, make_experiment, make_records):
    """A row that is refused takes the whole record with it, and the store goes on."""
    experiment = make_experiment(8)
    step = next(
        record for record in make_records(experiment.id, experiment.id) if isinstance(record, PackStep)
    )
    with ExperimentTracker(filled, writable=True) as tracker:
        tracker.start_run(experiment.id, attempt=2, pack_id="p", engine="packed", run_folder="runs/p2")
        with pytest.raises(IntegrityError):
            tracker.take(step, pack_id="p", attempt=2)
        assert tracker.take(make_records(experiment.id)[3], pack_id="p", attempt=2)
        tracker.take(Outcome(experiment_id=experiment.id, status="completed"), pack_id="p", attempt=2)
        assert len(tracker.get_steps(experiment.id)) == 1


def test_what_is_written_together_is_there_as_a_whole_or_not_at_all(database, make_experiment):
    experiments = [make_experiment(4), make_experiment(8)]
    with ExperimentTracker(database, writable=True) as tracker, ExperimentTracker(database) as reader:
        tracker.register("ranks", experiments)

        def start(each) -> None:
            tracker.start_run(each.id, attempt=1, pack_id="p", engine="packed", run_folder="runs/p")

        def running() -> int:
            return len(reader.get_all_experiments(status="running"))

        def start_both(first, second) -> None:
            with tracker.together():
                start(first)
                start(second)

        with pytest.raises(StoreError, match="is not registered"):
            start_both(experiments[0], make_experiment(16))
        assert running() == 0
        with tracker.together():
            for each in experiments:
                start(each)
            assert running() == 0, "nobody sees a part of it"
        assert running() == 2


def test_a_count_asks_for_null_as_null(filled):
    opened = Database(filled, writable=False)
    with opened.reading() as connection:
        assert rows.count(connection, schema.runs, key={"pack_id": "p", "failure_kind": None}) == 1
        assert rows.count(connection, schema.runs, key={"pack_id": "p", "failure_kind": "crashed"}) == 0
        assert rows.count(connection, schema.runs, key={"pack_id": None}) == 0
    opened.close()
