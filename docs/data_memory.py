"""The table of what commands cost over large data files, from `benchmarks/results/data-memory.json` alone."""

import json
from pathlib import Path
from typing import Any

from lorastudy.report.document import Block, Cell, Paragraph, Table, TableColumn
from lorastudy.report.numbers import ABSENT, count, duration, number, size

RESULTS = Path("benchmarks") / "results" / "data-memory.json"
_COMMIT_SHOWN = 7


def data_memory_blocks(root: Path) -> list[Block]:
    """Each command over each file, by version: the whole command with all its processes."""
    path = root / RESULTS
    if not path.exists():
        return [Paragraph(("Not measured yet.",))]
    found = json.loads(path.read_text(encoding="utf-8"))
    # A file's versions in the order in which they were measured.
    rows = sorted(found["measured"], key=lambda row: (round(row["file_bytes"], -7), row["command"]))
    columns = (
        TableColumn("File", numeric=False),
        TableColumn("Rows", numeric=True),
        TableColumn("Command", numeric=False),
        TableColumn("Version", numeric=False),
        TableColumn("CPU time", numeric=True),
        TableColumn("Wall time", numeric=True),
        TableColumn("Largest process", numeric=True),
        TableColumn("Load before", numeric=True),
    )
    where = (
        f"Measured on {found['device']}, {found['machine']['num_usable_cores']} cores. The wall time is that of a busy machine "
        "where the load before is above the number of cores; the CPU time then says more."
    )
    return [Table(columns=columns, rows=tuple(map(_cells, rows))), Paragraph((where,))]


def _cells(row: dict[str, Any]) -> tuple[Cell, ...]:
    load = row["load_average"]
    return (
        Cell(size(row["file_bytes"])),
        Cell(count(row["num_rows"])),
        Cell(row["command"]),
        Cell(row["commit"][:_COMMIT_SHOWN]),
        Cell(duration(row["cpu_seconds"])),
        Cell(duration(row["wall_seconds"])),
        Cell(size(row["peak_bytes"])),
        Cell(ABSENT if load is None else number(load, 1)),
    )
