"""What an order of the rows for each seed costs: tables for `docs/log.md`, from `benchmarks/results/seeds_per_pack.json` alone."""

import json
from pathlib import Path
from typing import Any

from lorastudy.report.document import Block, Cell, Paragraph, Table, TableColumn
from lorastudy.report.numbers import count, number

RESULTS = Path("benchmarks") / "results" / "seeds_per_pack.json"
_STEP_TITLES = ("Rows", "Tokens a second", "To one order", "To a pack for each seed")


def seeds_per_pack_blocks(root: Path) -> list[Block]:
    """The training steps of each setting."""
    found: dict[str, Any] = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    return [block for setting in found["steps"] for block in _step_blocks(found, setting)]


def _step_blocks(found: dict[str, Any], setting: dict[str, Any]) -> list[Block]:
    told = (
        f"Training steps alone, {_size(setting)}: tokens in a second of the processor, medians of {len(setting['rounds'])} "
        f"rounds by turns, on {found['device']} with one thread. Ratios are medians over the rounds."
    )
    rows = tuple(
        (
            Cell(name),
            Cell(count(round(side["tokens_per_second"]))),
            Cell(number(side["to_one_order"], 2)),
            Cell(number(side["to_apart"], 2)),
        )
        for name, side in setting["sides"].items()
    )
    return [Paragraph((told,)), Table(columns=_columns(_STEP_TITLES), rows=rows)]


def _size(setting: dict[str, Any]) -> str:
    return (
        f"{setting['name']}, {setting['num_ranks']} ranks with {setting['num_seeds']} seeds, "
        f"micro-batches of {setting['batch_size']} rows"
    )


def _columns(titles: tuple[str, ...]) -> tuple[TableColumn, ...]:
    return tuple(TableColumn(title, numeric=title != "Rows") for title in titles)
