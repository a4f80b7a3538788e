"""One row of the store, sealed with its hash: writing, changing and checking rows."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Double, Select, Table, and_, bindparam, func, insert, select, update
from sqlalchemy.sql import ColumnElement

from lorastudy.suite.experiment import canonical_json

HASH_COLUMN = "row_sha256"

Row = Mapping[str, Any]
"""The values of a row by column name."""


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
