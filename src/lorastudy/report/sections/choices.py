"""Which learning rate stands for each configuration, and what having been picked does to its score."""

from lorastudy.analysis.overview import Analysis
from lorastudy.analysis.selection import Choice
from lorastudy.report.document import Block, Cell, Column, Heading, Paragraph, Table
from lorastudy.report.numbers import ABSENT, signed


def choice_blocks(analysis: Analysis, *, level: int) -> list[Block]:
    """One row for each configuration that was run at several rates; nothing where each had one."""
    if not analysis.choices:
        return []
    unit = f" ({analysis.primary.unit})" if analysis.primary.unit else ""
    text = (
        "Each configuration is compared at the learning rate of the lowest mean held-out loss. Optimism: how much "
        "better the chosen score looks than one that its seed had no part in picking."
    )
    columns = (
        Column("Arm compared", numeric=False),
        Column("Chosen"),
        Column("Tried", numeric=False),
        Column("Chosen on", numeric=False),
        Column(f"Optimism{unit}"),
    )
    rows = tuple(_row(choice) for choice in analysis.choices)
    return [
        Heading(level=level, text="Chosen learning rates"),
        Paragraph((text,)),
        Table(columns=columns, rows=rows),
    ]


def _row(choice: Choice) -> tuple[Cell, ...]:
    rates = sorted(float(arm.settings["learning_rate"]) for arm in choice.grid)
    chosen = float(choice.arm.settings["learning_rate"])
    return (
        Cell(choice.arm.name),
        Cell(f"{chosen:g}", chosen),
        Cell(", ".join(f"{rate:g}" for rate in rates)),
        Cell("the rows that report" if choice.in_sample else "rows of their own"),
        Cell(ABSENT) if choice.optimism is None else Cell(signed(choice.optimism, 4), choice.optimism),
    )
