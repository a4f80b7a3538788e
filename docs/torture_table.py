"""The torture table as docs/reliability.md shows it, from the results that are kept beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorastudy.report.document import Cell, Table, TableColumn
from lorastudy.report.numbers import count, duration, listing

_COLUMNS = (
    TableColumn("Fault", numeric=False),
    TableColumn("Injected"),
    TableColumn("What must hold", numeric=False),
    TableColumn("Violated"),
    TableColumn("What came of it", numeric=False),
)


def torture_table(root: Path) -> Table:
    """One line for each row that has been run; `python tests/torture/run.py --kept` runs them."""
    return Table(
        columns=_COLUMNS,
        rows=tuple(
            (
                Cell(row["fault"]),
                Cell(count(row["num_faults"])),
                Cell(row["must"]),
                Cell(count(row["num_violations"])),
                Cell(row["detail"]),
            )
            for row in _kept(root).values()
        ),
    )


def torture_conditions(root: Path) -> str:
    """When, where and with what the kept rows were run."""
    kept = _kept(root).values()
    dates = sorted({row["date"] for row in kept})
    took = duration(sum(row["seconds"] for row in kept))
    when = dates[0] if len(dates) == 1 else f"between {dates[0]} and {dates[-1]}"
    versions = listing(sorted({_versions(row["made_with"]) for row in kept}))
    return (
        f"Run {when}, {took} in all ({versions}); seed {listing(sorted({str(row['seed']) for row in kept}))}."
    )


def _versions(made_with: Mapping[str, str]) -> str:
    return (
        f"lorastudy {made_with['lorastudy']}, Python {made_with['python']}, SQLite {made_with['sqlite']}, "
        f"{made_with['system']}"
    )


def _kept(root: Path) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads((root / "docs" / "reliability.json").read_text(encoding="utf-8"))
    return kept
