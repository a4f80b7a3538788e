"""What replays say of the search for a learning rate: tables for `docs/rate-search.md`.

Everything is read from `benchmarks/results/rate_search.json`, which `python -m benchmarks.replay_rate_search` makes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorastudy.report.document import Block, Cell, Paragraph, Table, TableColumn
from lorastudy.report.numbers import count, listing, percent

RESULTS = Path("benchmarks") / "results" / "rate_search.json"
_NAMES = {
    "search": "this search",
    "whole_curve": "every recorded rate, the same one seed",
    "before": "search of version 0.1, two seeds",
    "random": "random search",
    "tpe": "TPE (Optuna)",
    "tpe_from_rule": "TPE, told a decade around the published rate, which it tries first",
    "asha": "successive halving by three (Optuna's pruner)",
}


def _read(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    return found


def recorded_sentences(root: Path) -> list[Block]:
    """What was recorded, a sentence for each grid."""
    told = [
        f"{grid['name']}: {grid['settings']['base_model']}, {grid['settings']['dataset_path']}, ranks "
        f"{listing(map(str, grid['ranks']))} on {grid['settings']['target_modules']}, {len(grid['rates'])} rates from "
        f"{grid['rates'][0]:g} to {grid['rates'][-1]:g}, {len(grid['seeds'])} seeds, {grid['settings']['max_steps']} steps of "
        f"{grid['settings']['per_device_train_batch_size']} rows."
        for grid in _read(root)["grids"]
    ]
    return [Paragraph((" ".join(told),))]


def ways_table(root: Path) -> list[Block]:
    """Every way of searching: what it takes, and how good its rates are."""
    found = _read(root)
    near = percent(found["near"], decimals=0)
    columns = (
        TableColumn("Grid", numeric=False),
        TableColumn("Way", numeric=False),
        TableColumn("Runs an arm"),
        TableColumn("Cells"),
        TableColumn("Regret, mean"),
        TableColumn("Regret, 95 of 100 cells below"),
        TableColumn(f"Regret at most {near}"),
    )
    rows = tuple(
        (
            Cell(line["grid"]),
            Cell(_NAMES[line["way"]] + _off(line)),
            Cell(f"{line['runs_per_arm']:.1f}", line["runs_per_arm"]),
            Cell(count(line["num_cells"]), line["num_cells"]),
            *(Cell(percent(line[key]), line[key]) for key in ("mean_regret", "p95_regret", "share_near")),
        )
        for line in found["ways"]
    )
    return [Table(columns=columns, rows=rows)]


def nearness_sentences(root: Path) -> list[Block]:
    """How near the rates found are to the best ones, and how often the factor that reports tell holds it."""
    told = [
        f"{near['grid']}: the best rate by the other seeds is off by a factor of {near['median_off']:.2f} in the median and of "
        f"{near['most_off']:.2f} at most; reports would tell a factor of {near['median_factor']:.2f} in the median, which "
        f"holds it in {near['num_within']} of {near['num_cells']} cells. By noise alone it would hold it in "
        f"{near['num_within_by_noise']}; the rest are {near['shape_error']:.2f} steps of the ladder (root mean square)."
        for near in _read(root)["nearness"]
    ]
    return [Paragraph((" ".join(told),))]


def costs_table(root: Path) -> list[Block]:
    """Runs of a whole study, search and reports, against the full grid."""
    found = _read(root)
    columns = (
        TableColumn("Grid", numeric=False),
        TableColumn("Rule off by"),
        TableColumn("Full grid"),
        TableColumn("With this search"),
        TableColumn("Share"),
        TableColumn("With that of 0.1"),
        TableColumn("Share"),
    )
    rows = tuple(
        (
            Cell(line["grid"]),
            Cell(f"{line['rule_off_by']:g}", line["rule_off_by"]),
            Cell(count(line["full_grid"]), line["full_grid"]),
            *(
                cell
                for key in ("search", "before")
                for cell in (
                    Cell(f"{line[key]:.0f}", line[key]),
                    Cell(percent(line[key] / line["full_grid"], decimals=0), line[key] / line["full_grid"]),
                )
            ),
        )
        for line in found["costs"]
    )
    return [Table(columns=columns, rows=rows)]


def checks_table(root: Path) -> list[Block]:
    """The cells that were trained for real."""
    columns = (
        TableColumn("Grid", numeric=False),
        TableColumn("Rank"),
        TableColumn("Seed"),
        TableColumn("Rate found"),
        TableColumn("Loss between recorded rates"),
        TableColumn("Loss trained"),
        TableColumn("Regret between"),
        TableColumn("Regret trained"),
    )
    rows = tuple(
        (
            Cell(line["grid"]),
            *(Cell(f"{line[key]:g}", line[key]) for key in ("rank", "seed", "rate")),
            *(Cell(f"{line[key]:.3f}", line[key]) for key in ("between", "trained")),
            *(Cell(percent(line[key]), line[key]) for key in ("regret_between", "regret_trained")),
        )
        for line in _read(root)["checks"]
    )
    return [Table(columns=columns, rows=rows)]


def _off(line: dict[str, Any]) -> str:
    return "" if line["rule_off_by"] == 1 else f", the rule off by {line['rule_off_by']:g}"


BLOCKS: dict[str, Callable[[Path], list[Block]]] = {
    "rate-search-recorded": recorded_sentences,
    "rate-search-ways": ways_table,
    "rate-search-nearness": nearness_sentences,
    "rate-search-costs": costs_table,
    "rate-search-checks": checks_table,
}
