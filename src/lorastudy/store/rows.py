"""One row of the store, sealed with its hash: writing, changing and checking rows, and saving the intact ones.

Every row is compared with its hash: damaged rows are named, and intact ones are copied out of a damaged store. This cannot
find a row that is gone altogether. `rebuilding` compares the store with the run folders and restores such rows.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import Connection, Double, Select, Table, and_, bindparam, func, insert, select, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.sql import ColumnElement

from lorastudy.store import schema
from lorastudy.store.schema import metadata
from lorastudy.store.views import DamagedRow
from lorastudy.suite.experiment import canonical_json

HASH_COLUMN = "row_sha256"

Row = Mapping[str, Any]
"""The values of a row by column name."""

#: Tables that run folders do not hold, or only in part: suites, and their names for experiments.
OF_SUITES = (schema.suites, schema.experiments, schema.suite_experiments)

#: Tables of records by workers and the runner.
OF_RUNS = tuple(table for table in schema.metadata.sorted_tables if table not in OF_SUITES)


class DamageError(Exception):
    """A row differs from what was written. The store turns this into a `StoreError` with its name and a remedy."""


def read(connection: Connection, statement: Select[Any]) -> Iterator[dict[str, Any]]:
    """The rows of a query, one after another, by column name."""
    return (row._asdict() for row in connection.execute(statement))


def intact(connection: Connection, table: Table, *, statement: Select[Any] | None = None) -> Iterator[Row]:
    """The whole rows of a table, or of a query on it, each compared with its hash.

    Raises:
        DamageError: a row differs from what was written. A wrong number is worse than none.
    """
    for row in read(connection, select(table) if statement is None else statement):
        if not is_intact(table, row):
            raise DamageError(f"a row of table {table.name} ({key_text(table, row)}) is not what was written")
        yield row


def key_text(table: Table, row: Row) -> str:
    """The primary key of a row as readable text."""
    return ", ".join(f"{column.name} {row[column.name]!r}" for column in table.primary_key)


def add(connection: Connection, table: Table, *, rows: Sequence[Mapping[str, Any]]) -> None:
    """Seal rows and insert them in one statement."""
    if rows:
        connection.execute(insert(table), [_sealed(table, row) for row in rows])


def change(connection: Connection, table: Table, *, key: Mapping[str, Any], to: Mapping[str, Any]) -> None:
    """Change some columns of the row with this key and seal it again. A row that has these values is left alone."""
    (row,) = read(connection, select(table).where(matches(table, key)))
    changed = _sealed(table, {**row, **to})
    if changed != row:
        connection.execute(update(table).where(matches(table, key)).values(changed))


def seal_all(connection: Connection, table: Table) -> None:
    """Give every row the hash of its present content. Only a migration may do this."""
    for row in list(read(connection, select(table))):
        key = {column.name: row[column.name] for column in table.primary_key}
        sealed = _sealed(table, row)
        if sealed != row:
            connection.execute(update(table).where(matches(table, key)).values(sealed))


def exists(connection: Connection, table: Table, *, key: Mapping[str, Any]) -> bool:
    """Whether a row with these values exists."""
    return count(connection, table, key=key) > 0


def count(connection: Connection, table: Table, *, key: Mapping[str, Any]) -> int:
    """The number of rows with these values."""
    absent = frozenset(name for name, value in key.items() if value is None)
    statement = _counting(table, names=frozenset(key), absent=absent)
    return int(connection.execute(statement, dict(key)).scalar_one())


@cache
def _counting(table: Table, *, names: frozenset[str], absent: frozenset[str]) -> Select[int]:
    """The query that counts the rows with a key. Building it takes longer than running it, so it is cached.

    NULL equals nothing, so absent values have their own condition.
    """
    conditions = (
        table.c[name].is_(None) if name in absent else table.c[name] == bindparam(name)
        for name in sorted(names)
    )
    return select(func.count()).select_from(table).where(and_(*conditions))


def is_intact(table: Table, row: Row) -> bool:
    """Whether a row still has the hash that it was written with.

    A flipped bit may also change a value's type or break its UTF-8. A row that cannot be hashed is not intact.
    """
    try:
        return bool(row[HASH_COLUMN] == _row_hash(table, row))
    except (TypeError, ValueError):
        return False


def _sealed(table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
    """The row with a value for every column, with numbers as the database returns them, and with its hash."""
    row = {column.name: _as_stored(column.type, values.get(column.name)) for column in table.columns}
    return {**row, HASH_COLUMN: _row_hash(table, row)}


def _as_stored(column_type: object, value: Any) -> Any:
    # SQLite keeps whole doubles as integers, which have no minus zero. Adding zero turns it into plain zero.
    return float(value) + 0.0 if isinstance(column_type, Double) and value is not None else value


def _row_hash(table: Table, row: Row) -> str:
    body = {name: value for name, value in row.items() if name != HASH_COLUMN}
    return hashlib.sha256(canonical_json([table.name, body]).encode()).hexdigest()


def matches(table: Table, key: Mapping[str, Any]) -> ColumnElement[bool]:
    """The condition that a row has these values."""
    return and_(*(table.c[name] == value for name, value in key.items()))


@dataclass(kw_only=True)
class Salvage:
    """The number of copied rows, and the damaged rows that were not copied."""

    num_rows: int = 0
    damaged: list[DamagedRow] = field(default_factory=list)


def salvage(source: Connection, target: Connection, *, tables: Sequence[Table]) -> Salvage:
    """Copy the intact rows of these tables that the target lacks; parents come before children.

    A run that the target has gets the source's times and end, if the source has an end.
    """
    found = Salvage()
    for table in tables:
        for row in examined(source, table):
            if isinstance(row, DamagedRow):
                found.damaged.append(row)
            elif exists(target, table, key=_key(table, row)):
                if table is schema.runs and row["status"] != "running":
                    target.execute(update(table).where(matches(table, _key(table, row))).values(dict(row)))
            elif _has_parents(target, table, row=row):
                target.execute(insert(table), [dict(row)])
                found.num_rows += 1
            else:
                reason = "what it belongs to is damaged"
                found.damaged.append(DamagedRow(table=table.name, key=_key(table, row), reason=reason))
    return found


def _has_parents(target: Connection, table: Table, *, row: Row) -> bool:
    return all(
        exists(
            target,
            constraint.referred_table,
            key={element.column.name: row[element.parent.name] for element in constraint.elements},
        )
        for constraint in table.foreign_key_constraints
    )


def damaged_rows(connection: Connection) -> list[DamagedRow]:
    """Rows that differ from what was written, table by table; empty for a sound store."""
    return [
        row
        for table in metadata.sorted_tables
        for row in examined(connection, table)
        if isinstance(row, DamagedRow)
    ]


def examined(connection: Connection, table: Table) -> Iterator[Row | DamagedRow]:
    """Every row of a table; a damaged one as a `DamagedRow`."""
    try:
        for row in read(connection, select(table)):
            if is_intact(table, row):
                yield row
            else:
                key = {column.name: row[column.name] for column in table.primary_key}
                yield DamagedRow(table=table.name, key=key, reason="the row does not match its hash")
    except DatabaseError as error:
        # Broken pages: the rows behind them cannot be read at all.
        yield DamagedRow(table=table.name, key={}, reason=str(error.orig))


def _key(table: Table, row: Row) -> dict[str, object]:
    return {column.name: row[column.name] for column in table.primary_key}
