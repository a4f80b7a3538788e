"""The table of docs/tokenizers.md, from what `python tests/token_kinds.py` kept beside it."""

import json
from pathlib import Path

from lorastudy.report.document import Cell, Table, TableColumn


def tokenizer_table(root: Path) -> Table:
    """A line for each chat template, a column for each kind of tokenizer."""
    kept = json.loads((root / "docs" / "tokenizers.json").read_text(encoding="utf-8"))
    templates = list(next(iter(kept.values())))
    return Table(
        columns=(
            TableColumn("Chat template", numeric=False),
            *(TableColumn(kind, numeric=False) for kind in kept),
        ),
        rows=tuple(
            (Cell(template), *(Cell(_told(kept[kind][template])) for kind in kept)) for template in templates
        ),
    )


def _told(formats: dict[str, list[int]]) -> str:
    """`12 of 12`; with the formats whose rows were refused."""
    counts = [tuple(count) for count in formats.values() if count]
    equal = sum(min(ids, labels) for _, ids, labels in counts)
    refused = [name for name, count in formats.items() if not count]
    told = f"{equal} of {sum(rows for rows, _, _ in counts)}"
    return f"{told}; {', '.join(refused)} refused" if refused else told
