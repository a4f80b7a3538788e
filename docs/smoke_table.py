"""What the smoke run found on the oldest versions and on the pinned ones, from its result file alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorastudy.report.document import Block, Cell, Paragraph, Table, TableColumn
from lorastudy.report.numbers import ABSENT, count, listing

RESULTS = Path("benchmarks") / "results" / "smoke_oldest.json"
LIBRARIES = ("torch", "transformers", "peft")


def smoke_blocks(root: Path) -> list[Block]:
    """One line for each environment: its versions, and what became of every part."""
    runs: dict[str, Any] = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    columns = tuple(
        TableColumn(title, numeric=False)
        for title in ("Python", *LIBRARIES, "Passed", "Failed", "Skipped", "Demo", "Date", "Command")
    )
    parts = listing([part["name"] for part in next(iter(runs.values()))["parts"]])
    rows = tuple(_cells(run) for run in runs.values())
    return [Table(columns=columns, rows=rows), Paragraph((f"The parts, on the CPU: {parts}.",))]


def _cells(run: Mapping[str, Any]) -> tuple[Cell, ...]:
    versions, parts = run["versions"], run["parts"]
    (demo,) = (part for part in parts if part["num_passed"] is None)
    return (
        *(Cell(versions[name]) for name in ("python", *LIBRARIES)),
        *(Cell(_total(parts, key)) for key in ("num_passed", "num_failed", "num_skipped")),
        Cell("failed" if demo["exit_code"] else "passed"),
        Cell(run["made_at"][:10]),
        Cell(run["command"]),
    )


def _total(parts: Sequence[Mapping[str, Any]], key: str) -> str:
    """Over all parts that count tests; a part that broke off before it counted shows as absent."""
    counts = [part[key] for part in parts if part[key] is not None]
    return count(sum(counts)) if counts else ABSENT
