"""Every row compared with its hash: damaged rows are named, and intact ones are copied out of a damaged store.

This cannot find a row that is gone altogether. `rebuilding` compares the store with the run folders and restores such
rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, Table, insert, select, update
from sqlalchemy.exc import DatabaseError

from lorastudy.store import rows, schema
from lorastudy.store.rows import Row
from lorastudy.store.schema import metadata
from lorastudy.store.views import DamagedRow

#: Tables that run folders do not hold, or only in part: suites, and their names for experiments.
OF_SUITES = (schema.suites, schema.experiments, schema.suite_experiments)

#: Tables of records by workers and the runner.
OF_RUNS = tuple(table for table in schema.metadata.sorted_tables if table not in OF_SUITES)


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
            elif rows.exists(target, table, key=_key(table, row)):
                if table is schema.runs and row["status"] != "running":
                    target.execute(
                        update(table).where(rows.matches(table, _key(table, row))).values(dict(row))
                    )
            elif _has_parents(target, table, row=row):
                target.execute(insert(table), [dict(row)])
                found.num_rows += 1
            else:
                reason = "what it belongs to is damaged"
                found.damaged.append(DamagedRow(table=table.name, key=_key(table, row), reason=reason))
    return found


def _has_parents(target: Connection, table: Table, *, row: Row) -> bool:
    return all(
        rows.exists(
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
        for row in rows.read(connection, select(table)):
            if rows.is_intact(table, row):
                yield row
            else:
                key = {column.name: row[column.name] for column in table.primary_key}
                yield DamagedRow(table=table.name, key=key, reason="the row does not match its hash")
    except DatabaseError as error:
        # Broken pages: the rows behind them cannot be read at all.
        yield DamagedRow(table=table.name, key={}, reason=str(error.orig))


def _key(table: Table, row: Row) -> dict[str, object]:
    return {column.name: row[column.name] for column in table.primary_key}
