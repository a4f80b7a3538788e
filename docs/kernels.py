"""The tables of the kernels of a step on a GPU, from `benchmarks/results/kernels.json` and `kernel_families.json` alone."""

import json
from pathlib import Path
from typing import Any

from lorastudy.report.document import Block, Cell, Paragraph, Table, TableColumn
from lorastudy.report.numbers import count, listing

RESULTS = Path("benchmarks") / "results" / "kernels.json"
FAMILY_RESULTS = Path("benchmarks") / "results" / "kernel_families.json"
PRECISIONS = {"4bit": "NF4"}


def kernel_blocks(root: Path) -> list[Block]:
    """Each setting: its kernels by phase, its copies between host and device, and how often the host waits."""
    found: dict[str, Any] = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    settings = found["settings"]
    phases = tuple(settings[0]["launches"])
    titles = ("Arms", "Micro-batch", "Rows", "Precision", "Kernels", *(phase.capitalize() for phase in phases),
              "Copies to the device", "Copies to the host", "Waits")  # fmt: skip
    columns = tuple(TableColumn(title, numeric=title not in {"Rows", "Precision"}) for title in titles)
    libraries = listing([f"{name} {number}" for name, number in found["versions"].items()])
    where = f"The shape is {found['shape']} with {found['num_layers']} layers. Counted with {libraries}; not measured."
    rows = tuple(_cells(setting, phases=phases) for setting in settings)
    return [Table(columns=columns, rows=rows), Paragraph((where,))]


def _cells(setting: dict[str, Any], *, phases: tuple[str, ...]) -> tuple[Cell, ...]:
    launches = setting["launches"]
    numbers = (
        sum(launches.values()),
        *(launches[phase] for phase in phases),
        *(sum(setting[name].values()) for name in ("to_device", "to_host", "waits")),
    )
    return (
        Cell(count(setting["num_arms"])),
        Cell(count(setting["batch_size"])),
        Cell("each arm its own" if setting["has_own_rows"] else "one for all"),
        Cell(PRECISIONS.get(setting["quantization"], setting["quantization"])),
        *(Cell(count(number)) for number in numbers),
    )


def kernel_family_blocks(root: Path) -> list[Block]:
    """Each family: the kernels of a layer, the calls of attention in it, and how often the host waits within a step."""
    found: dict[str, Any] = json.loads((root / FAMILY_RESULTS).read_text(encoding="utf-8"))
    titles = (
        "Family",
        "Adapted",
        "Kernels of a layer, forward",
        "Backward",
        "Calls of attention",
        "Waits within the step",
    )
    columns = tuple(TableColumn(title, numeric=title not in {"Family", "Adapted"}) for title in titles)
    rows = tuple(
        (
            Cell(each["family"]),
            Cell(each["preset"]),
            *(Cell(count(each[name])) for name in ("forward", "backward", "attention_calls", "waits")),
        )
        for each in found["families"]
    )
    libraries = listing([f"{name} {number}" for name, number in found["versions"].items()])
    lengths, ranks = (listing([str(number) for number in found[name]]) for name in ("row_lengths", "ranks"))
    where = f"{len(rows)} families. Rows of {lengths} tokens, arms of ranks {ranks}, bf16. Counted with {libraries}; not measured."
    return [Table(columns=columns, rows=rows), Paragraph((where,))]
