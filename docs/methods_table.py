"""The methods and the engines that train them, as docs/methods.md shows them: `python -m benchmarks.methods` measures it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorastudy.report.document import Cell, Table, TableColumn
from lorastudy.report.numbers import ABSENT, listing

#: The methods by the names that the measurement gives them, as a suite file writes them.
_WRITTEN: Mapping[str, str] = {
    "dora and loraplus": "method: dora with loraplus_lr_ratio: 4",
    "gaussian": "init_lora_weights: gaussian",
    "orthogonal": "init_lora_weights: orthogonal",
    "rank_pattern": "rank_pattern with alpha_pattern",
    "dora and rank_pattern": "method: dora with rank_pattern",
    "pissa and rank_pattern": "method: pissa with rank_pattern",
    "pissa_niter_4": "init_lora_weights: pissa_niter_4",
    "bias all": "bias: all",
    "bias lora_only": "method: dora with bias: lora_only",
    "modules_to_save": "modules_to_save: [embed_tokens, lm_head]",
    "trainable_token_indices": "trainable_token_indices: [3, 7, 9]",
}
_ENGINES = ("packed", "reference")


def methods_table(root: Path) -> Table:
    """One line for each method: the greatest errors in each engine over the families, and the rank that is saved."""
    columns = (
        TableColumn("In a suite file", numeric=False),
        *(TableColumn(f"Loss, {engine} (relative)") for engine in _ENGINES),
        *(TableColumn(f"Saved = trained, {engine} (logits)") for engine in _ENGINES),
        TableColumn("Rank trained → saved", numeric=False),
    )
    results = _measured(root)["results"]
    return Table(columns=columns, rows=tuple(_row(name, results) for name in _names(results)))


def methods_by_family(root: Path) -> Table:
    """One line for each method and engine that trains it: the error of a step's loss in each family, in fp32."""
    results = _measured(root)["results"]
    families = list(dict.fromkeys(result["family"] for result in results))
    errors = {(each["method"], each["engine"], each["family"]): each["loss_error"] for each in results}
    columns = (
        TableColumn("In a suite file", numeric=False),
        TableColumn("Engine", numeric=False),
        *(TableColumn(family) for family in families),
    )
    rows = tuple(
        (
            Cell(_written(name)),
            Cell(engine),
            *(
                Cell(f"{errors[name, engine, family]:.1e}" if (name, engine, family) in errors else ABSENT)
                for family in families
            ),
        )
        for name in _names(results)
        for engine in _ENGINES
        if any((name, engine, family) in errors for family in families)
    )
    return Table(columns=columns, rows=rows)


def methods_summary(root: Path) -> str:
    """What was measured, on which families and versions, and the greatest error of all."""
    measured = _measured(root)
    results = measured["results"]
    families = dict.fromkeys(result["family"] for result in results)
    versions = listing([f"{name} {number}" for name, number in measured["versions"].items()])
    worst = max(result["loss_error"] for result in results)
    return (
        f"{len(results)} comparisons of {len(_names(results))} methods on random models of {listing(list(families))}. The "
        f"greatest relative difference of a step's loss is {worst:.1e}. Measured with {versions}."
    )


def _row(name: str, results: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    own = [result for result in results if result["method"] == name]
    by_engine = {engine: [result for result in own if result["engine"] == engine] for engine in _ENGINES}
    ranks = {f"{result['rank']} → {result['num_saved_rank']}" for result in own if result["rank"] is not None}
    return (
        Cell(_written(name)),
        *(
            Cell(f"{max(result[key] for result in found):.1e}" if found else ABSENT)
            for key in ("loss_error", "saved_error")
            for found in by_engine.values()
        ),
        Cell(listing(sorted(ranks)) if ranks else ABSENT),
    )


def _written(name: str) -> str:
    """The method as a suite file has it."""
    other = f"peft: {{peft_type: {name}}}" if name.isupper() else f"method: {name}"
    return _WRITTEN.get(name, other)


def _names(results: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(result["method"] for result in results))


def _measured(root: Path) -> dict[str, Any]:
    path = root / "benchmarks" / "results" / "methods.json"
    measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return measured
