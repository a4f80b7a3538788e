"""Brings an earlier store to the newest schema, one revision file after another (alembic, run from code).

A new store is made from `schema.py` without this package. Alembic takes 0.25 s to import, so the package is imported
only when a store is not current.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, select

from lorastudy.store import rows
from lorastudy.store.rows import DamageError
from lorastudy.store.schema import VERSION_TABLE

_FOLDER = Path(__file__).parent


def upgrade(connection: Connection) -> None:
    """Run the missing revisions within the caller's transaction, and seal every row again.

    A row's hash covers all its columns, so a new column breaks it. Sealing a damaged row would hide the damage, so each
    row is first compared with its old hash.

    Raises:
        DamageError: a row differs from what was written.
    """
    for table in _own_tables(connection):
        for row in rows.read(connection, select(table)):
            if not rows.is_intact(table, row):
                raise DamageError(f"a row of table {table.name} does not match its hash, and is not upgraded")
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    for table in _own_tables(connection):
        rows.seal_all(connection, table)


def _own_tables(connection: Connection) -> list[Table]:
    """The tables that the database has now, at any revision."""
    there = MetaData()
    there.reflect(connection, only=lambda name, _: name != VERSION_TABLE)
    return [table for table in there.sorted_tables if rows.HASH_COLUMN in table.columns]


def known_revisions() -> tuple[str, ...]:
    """Revisions that this version reads or upgrades, the newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def _config() -> Config:
    config = Config()
    # ConfigParser takes % for interpolation, and the path of an installation may contain one.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
