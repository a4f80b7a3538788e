"""What is adapted in each family of models, as docs/families.md shows it: `python -m benchmarks.families` measures it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorastudy.report.document import Cell, Table, TableColumn
from lorastudy.report.numbers import listing
from lorastudy.suite.settings import TARGET_PRESETS
from lorastudy.suite.targets import in_words

#: What is refused says so, with the beginning of its reason.
_REFUSED = "refused"


def families_table(root: Path) -> Table:
    """One line for each family: for each preset the layers by role and the engine; the greatest error; what is left out."""
    presets = tuple(TableColumn(preset, numeric=False) for preset in TARGET_PRESETS)
    columns = (
        TableColumn("Family", numeric=False),
        *presets,
        TableColumn("Saved = scored, to (nats/token)"),
        TableColumn("Left out", numeric=False),
    )
    rows = tuple(_row(family, cells) for family, cells in _measured(root)["families"].items())
    return Table(columns=columns, rows=rows)


def families_summary(root: Path) -> str:
    """How much was measured, and the greatest error of all."""
    measured = _measured(root)
    cells = [cell for family in measured["families"].values() for cell in family]
    trained = [cell for cell in cells if cell["refused"] is None]
    packed = sum(cell["engine"] == "packed" for cell in trained)
    worst = max(cell["error"] for cell in trained)
    versions = listing([f"{name} {number}" for name, number in measured["versions"].items()])
    return (
        f"{len(measured['families'])} families, {len(trained)} trained adapters ({packed} by the packed engine), "
        f"{len(cells) - len(trained)} refusals. The greatest difference between the loss that an engine stored and that of the "
        f"saved adapter, loaded by PEFT onto a fresh model, is {worst:.1e} nats per token in fp32; {measured['tolerance']:.0e} "
        f"is allowed. Measured with {versions}."
    )


def _row(family: str, cells: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    errors = [cell["error"] for cell in cells if cell["error"] is not None]
    without = {reason.rpartition(": ")[2]: None for cell in cells for reason in cell["left_out"]}
    leaves = {name for cell in cells for reason in cell["left_out"] for name in _names(reason)}
    told = f"{', '.join(sorted(leaves))}: {'; '.join(without)}" if without else ""
    return (
        Cell(family),
        *(Cell(_adapted(cell)) for cell in cells),
        Cell(f"{max(errors):.1e}" if errors else ""),
        Cell(told),
    )


def _adapted(cell: Mapping[str, Any]) -> str:
    if cell["refused"] is not None:
        return _REFUSED
    by_engine = "" if cell["engine"] == "packed" else " (reference)"
    return f"{in_words(cell['roles'])}{by_engine}"


def _names(reason: str) -> list[str]:
    """The last two parts of each layer's name."""
    return [".".join(name.split(".")[-2:]) for name in reason.partition(": ")[0].split(", ")]


def _measured(root: Path) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads(
        (root / "benchmarks" / "results" / "families.json").read_text(encoding="utf-8")
    )
    return measured
