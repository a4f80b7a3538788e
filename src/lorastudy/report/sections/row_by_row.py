"""The comparison behind the answer, row by row: how the difference is spread over rows, and the rows at either end."""

from collections.abc import Sequence

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Block, Cell, Figure, Heading, Paragraph, Table, TableColumn
from lorastudy.report.numbers import count, number, signed
from lorastudy.report.row_differences import RowDifference, RowsOfPair
from lorastudy.report.side_by_side import SPLIT_WORDS
from lorastudy.stats.summary import Metric

#: Rows that are shown at either end.
_AT_EITHER_END = 5
_DECIMALS = 3


def row_blocks(
    analysis: Analysis, rows: RowsOfPair | None, *, figures: Sequence[Figure], level: int
) -> list[Block]:
    """The figure, and the rows on which the arm does worst and best against the other one; empty without items."""
    if rows is None:
        return []
    arm, other = rows.pair.arm, rows.pair.reference
    ends = _ends(rows.rows)
    text = (
        f"{analysis.primary.title} of {arm} minus {other} on each of {count(len(rows.rows))} "
        f"{SPLIT_WORDS.get(rows.split, rows.split)} rows, means over {rows.pair.n} seeds. {_counts(rows, analysis.primary)} "
        f"The table has the rows on which {arm} does worst against {other}, then those on which it does best."
    )
    unit = f" ({analysis.primary.unit})" if analysis.primary.unit else ""
    columns = (
        TableColumn("Row"),
        TableColumn(arm),
        TableColumn(other),
        TableColumn(f"Difference{unit}"),
    )
    return [
        Heading(level=level, text="Row by row"),
        Paragraph((text,)),
        *figures,
        Table(columns=columns, rows=tuple(map(_cells, ends))),
    ]


def _ends(rows: Sequence[RowDifference]) -> list[RowDifference]:
    """The first and the last few, each once."""
    at_most = min(_AT_EITHER_END, len(rows) // 2)
    return [*rows[:at_most], *rows[-at_most:]]


def _counts(rows: RowsOfPair, metric: Metric) -> str:
    """On how many rows the arm is better, worse and equal."""
    costs = [metric.cost_sign * one.difference for one in rows.rows]
    better, worse = sum(cost < 0 for cost in costs), sum(cost > 0 for cost in costs)
    equal = len(costs) - better - worse
    ties = f", equal on {count(equal)}" if equal else ""
    return (
        f"{rows.pair.arm} has the better score on {count(better)} rows and the worse on {count(worse)}{ties}."
    )


def _cells(one: RowDifference) -> tuple[Cell, ...]:
    return (
        Cell(str(one.row), one.row),
        Cell(number(one.arm, _DECIMALS), one.arm),
        Cell(number(one.reference, _DECIMALS), one.reference),
        Cell(signed(one.difference, _DECIMALS), one.difference),
    )
