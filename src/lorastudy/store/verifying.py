"""Holds every row of the store against its hash.

What this cannot see: a row that is gone altogether. What a run folder holds can be compared and restored by
`rebuilding`.
"""

from collections.abc import Iterator

from sqlalchemy import Connection, Table, select
from sqlalchemy.exc import DatabaseError

from lorastudy.store import rows
from lorastudy.store.rows import Row
from lorastudy.store.schema import metadata
from lorastudy.store.views import DamagedRow


def damaged_rows(connection: Connection) -> list[DamagedRow]:
    """Rows that are not what was written, table by table; empty for a sound store."""
    return [
        row
        for table in metadata.sorted_tables
        for row in examined(connection, table)
        if isinstance(row, DamagedRow)
    ]


def examined(connection: Connection, table: Table) -> Iterator[Row | DamagedRow]:
    """Every row of a table: as it is if it is what was written, else as a `DamagedRow`."""
    try:
        for row in rows.read(connection, select(table)):
            if rows.is_intact(table, row):
                yield row
            else:
                key = {column.name: row[column.name] for column in table.primary_key}
                yield DamagedRow(table=table.name, key=key, reason="the row does not match its hash")
    except DatabaseError as error:
        # broken pages: the rows behind them cannot be read at all
        yield DamagedRow(table=table.name, key={}, reason=str(error.orig))
