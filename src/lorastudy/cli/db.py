"""`lorastudy db`: work on the results store as a file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lorastudy.cli.options import Database, RunsDir
from lorastudy.cli.terminal import say
from lorastudy.errors import StoreError
from lorastudy.places import DATABASE, RUNS_DIR

db = typer.Typer(name="db", help="Back up, upgrade or rebuild the results store.", no_args_is_help=True)


@db.command()
def backup(
    database: Database = DATABASE,
    into: Annotated[
        Path | None, typer.Option(help="The copy; without it a free name beside the store.")
    ] = None,
) -> None:
    """Copy the store, also while a suite is running, and check the copy."""
    from lorastudy.store.database import back_up, write_copy

    file = _file(database)
    if into is None:
        target = back_up(file, kind="copy")
    elif into.exists():
        raise StoreError(f"--into: {into} already exists")
    else:
        target = into
        write_copy(file, target)
    say(f"wrote {target}")


@db.command()
def upgrade(database: Database = DATABASE) -> None:
    """Upgrade the store to this version, after a backup. A current store is not changed."""
    from lorastudy.store import ExperimentTracker
    from lorastudy.store.schema import HEAD_REVISION

    if "://" not in database:
        _file(database)
    ExperimentTracker(database, writable=True).close()
    say(f"{database} has revision {HEAD_REVISION}")


@db.command()
def rebuild(database: Database = DATABASE, runs_dir: RunsDir = RUNS_DIR) -> None:
    """Rebuild the store from the run folders and from its intact rows. The old store is kept beside it."""
    from lorastudy.store.rebuilding import rebuild_store

    if "://" in database:
        raise StoreError(
            f"--database: {database} is on a database server: restore it from its own backups (pg_dump, pg_restore)"
        )
    rebuilt = rebuild_store(Path(database), runs=runs_dir)
    say(
        f"{database}: {rebuilt.num_records} records from run folders, {rebuilt.num_salvaged_rows} rows from the old store"
    )
    if rebuilt.backup is not None:
        say(f"the old store: {rebuilt.backup}")
    for problem in rebuilt.problems:
        say(f"damage: {problem}", file=sys.stderr)
    if rebuilt.problems:
        say(
            "`lorastudy suite` with the same file runs the experiments without results again",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _file(database: str) -> Path:
    """The SQLite file.

    Raises:
        StoreError: it is a server's database, or it does not exist.
    """
    if "://" in database:
        raise StoreError(
            f"--database: {database} is on a database server: back it up with its own tools (pg_dump)"
        )
    if not Path(database).is_file():
        raise StoreError(f"--database: {database}: there is no results store here")
    return Path(database)
