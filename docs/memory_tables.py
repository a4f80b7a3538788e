"""The README's two tables of GPU memory: measured where `benchmarks.gpu --memory` was run, until then predicted.

A measured case is one whose configuration is exactly that of the table. Of several files the newest counts. What was not
measured stands there as the planner predicts it (`benchmarks/results/memory-predicted.json`) and is marked as such.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorastudy.report.document import Block, Bullets, Cell, Code, Paragraph, Table, TableColumn, Text
from lorastudy.report.numbers import count, listing, size

PREDICTED = Path("benchmarks") / "results" / "memory-predicted.json"
COMMAND = "python -m benchmarks.gpu --rows --memory --into results.json"

_MODELS = {"phi-2": "Phi-2", "llama-7b": "7B", "llama-13b": "13B"}
_PRECISIONS = {"4bit": "4 bits", "8bit": "8 bits", "bf16": "16 bits"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration of the tables with what is known of it, in bytes."""

    case: dict[str, Any]
    training: int
    inference: int
    """Measured: the peak of one scoring pass. Predicted: the weights and the adapter alone, which is the least."""
    device: str | None
    """What measured it; None where it is predicted."""


def memory_blocks(root: Path) -> list[Block]:
    """Both tables, and what their numbers are."""
    rows = known_rows(root)
    ranks = [row for row in rows if row.case["shape"] == "phi-2"]
    larger = [row for row in rows if row.case["shape"] != "phi-2"]
    return [
        Paragraph((_about(rows),)),
        _rank_table(ranks),
        Paragraph(("And with larger models, rank 16:",)),
        _precision_table(larger),
        Bullets(tuple(_what_they_are(rows))),
    ]


def known_rows(root: Path) -> list[Row]:
    """Every case of the tables, in their order: as measured on a GPU, else as predicted."""
    predicted = json.loads((root / PREDICTED).read_text(encoding="utf-8"))
    measured = _measured(root)
    return [measured.get(_key(each["case"])) or _predicted(each) for each in predicted["memory"]]


def _measured(root: Path) -> dict[str, Row]:
    found = {}
    files = [json.loads(path.read_text(encoding="utf-8")) for path in _files(root)]
    for file in sorted(files, key=lambda file: str(file["made_at"])):
        for entry in file["memory"]:
            if entry["memory_kind"] == "cuda_allocated" and not file.get("smoke"):
                found[_key(entry["case"])] = Row(
                    case=entry["case"],
                    training=entry["training_peak_bytes"],
                    inference=entry["inference_peak_bytes"],
                    device=file["device"],
                )
    return found


def _files(root: Path) -> list[Path]:
    """Results of `benchmarks.gpu` in which memory was measured."""
    paths = sorted((root / "benchmarks" / "results").glob("*.json"))
    return [
        path
        for path in paths
        if path.name != PREDICTED.name and '"training_peak_bytes"' in path.read_text("utf-8")
    ]


def _key(case: dict[str, Any]) -> str:
    """All that makes two cases the same; the modules follow from the shape."""
    return json.dumps({key: value for key, value in sorted(case.items()) if key != "targets"})


def _predicted(entry: dict[str, Any]) -> Row:
    terms = entry["terms"]
    held = ("base_weights", "quantisation_constants", "adapters")
    return Row(
        case=entry["case"],
        training=sum(terms.values()),
        inference=sum(terms[name] for name in held),
        device=None,
    )


def _rank_table(rows: Sequence[Row]) -> Table:
    columns = (
        TableColumn("LoRA rank"),
        TableColumn("Training"),
        TableColumn("Inference"),
        TableColumn("", numeric=False),
    )
    return Table(
        columns=columns,
        rows=tuple(
            (
                Cell(str(row.case["ranks"][0])),
                Cell(size(row.training)),
                Cell(size(row.inference) if row.device else f"at least {size(row.inference)}"),
                Cell(_status(row)),
            )
            for row in rows
        ),
    )


def _precision_table(rows: Sequence[Row]) -> Table:
    models = list(dict.fromkeys(row.case["shape"] for row in rows))
    by_case = {(row.case["shape"], row.case["quantization"]): row for row in rows}
    columns = (
        TableColumn("Model size", numeric=False),
        *(TableColumn(f"Training in {name}") for name in _PRECISIONS.values()),
    )
    return Table(
        columns=columns,
        rows=tuple(
            (
                Cell(_MODELS[model]),
                *(
                    Cell(f"{size(row.training)}, {_status(row)}")
                    for row in (by_case[model, precision] for precision in _PRECISIONS)
                ),
            )
            for model in models
        ),
    )


def _status(row: Row) -> str:
    return "measured" if row.device else "predicted"


def _about(rows: Sequence[Row]) -> str:
    """Which model, which rows, and what was measured of it."""
    case = rows[0].case
    devices = list(dict.fromkeys(row.device for row in rows if row.device))
    on = f"measured on {listing(devices)}" if devices else "predicted for a GPU and not measured yet"
    return (
        f"Peak memory with the base in 4 bits, {_MODELS[case['shape']]}, {count(case['batch_size'])} row of "
        f"{count(case['length'])} tokens at a time, adapters on the attention projections; {on}:"
    )


def _what_they_are(rows: Sequence[Row]) -> list[Text]:
    lines: list[Text] = []
    if any(row.device for row in rows):
        measured = (
            "Measured: the most that the allocator handed out, with random weights of the model's shape; inference is one "
            "scoring pass."
        )
        lines.append((measured,))
    if not all(row.device for row in rows):
        predicted = (
            "Predicted: by the planner, from the model's configuration alone; inference is the weights and the adapter, "
            "without activations."
        )
        command: Text = (
            "What measures them, on a machine with a GPU: ",
            Code(COMMAND),
            "; the file that it writes belongs into benchmarks/results.",
        )
        lines += [(predicted,), command]
    return lines
