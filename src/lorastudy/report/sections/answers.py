"""Stored answers side by side: a prompt, its reference, and what each arm generated.

These are rows of the user's data, so a report has them only if it is asked for them.
"""

from collections.abc import Sequence

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Block, Cell, Heading, Paragraph, Table, TableColumn
from lorastudy.report.numbers import ABSENT, count
from lorastudy.report.sections.versus import two_arms
from lorastudy.report.side_by_side import RowOfArms

#: Longer texts are cut, so that a row stays readable.
_MOST_SHOWN = 600
#: Of more rows, this many are shown at either end.
_AT_EITHER_END = 10


def answer_blocks(analysis: Analysis, rows: Sequence[RowOfArms], *, level: int) -> list[Block]:
    """A row for each stored prompt: first those that only the reference answers right, last those that only the named arm does."""
    if not rows:
        return []
    arms = [summary.arm.name for summary in analysis.completed]
    arm, other = two_arms(analysis)
    ordered = sorted(rows, key=lambda row: row.is_right(arm) - row.is_right(other))
    shown = (
        ordered
        if len(ordered) <= 2 * _AT_EITHER_END
        else [*ordered[:_AT_EITHER_END], *ordered[-_AT_EITHER_END:]]
    )
    order = (
        f" First come rows that {other} answers as the reference and {arm} does not, last those of which the opposite holds."
        if arm != other
        else ""
    )
    text = (
        f"The answers that the store keeps are those to the first rows of each split. Here are {count(len(shown))} of {count(len(rows))} "
        f"rows with the answers of each arm's first seed.{order} The first column names the split, and the row's place among "
        "its scored rows. They are rows of the data: do not share this report if the data is private."
    )
    columns = (
        TableColumn("Row", numeric=False),
        TableColumn("Prompt", numeric=False),
        TableColumn("Reference", numeric=False),
        *(TableColumn(name, numeric=False) for name in arms),
    )
    table = Table(
        columns=columns,
        rows=tuple(
            (
                Cell(row.title),
                Cell(_shown(row.prompt or "")),
                Cell(_shown(row.reference or "")),
                *(Cell(_shown(row.answers[name]) if name in row.answers else ABSENT) for name in arms),
            )
            for row in shown
        ),
    )
    return [Heading(level=level, text="Answers side by side"), Paragraph((text,)), table]


def _shown(text: str) -> str:
    stripped = text.strip()
    return stripped if len(stripped) <= _MOST_SHOWN else f"{stripped[:_MOST_SHOWN]}…"
