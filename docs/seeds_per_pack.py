"""What one seed per pack costs: a table for `docs/log.md`, from `benchmarks/results/seeds_per_pack.json` alone."""

import json
from pathlib import Path
from typing import Any

from lorastudy.report.document import Block, Cell, Paragraph, Table, TableColumn
from lorastudy.report.numbers import count, number

RESULTS = Path("benchmarks") / "results" / "seeds_per_pack.json"
_SECONDS = ("train_seconds", "load_seconds", "eval_seconds", "cpu_seconds", "wall_seconds")


def seeds_per_pack_blocks(root: Path) -> list[Block]:
    """Both sides side by side, and their ratio."""
    found: dict[str, Any] = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    apart, together = found["sides"]["one seed"], found["sides"]["all seeds"]
    loads = sorted(each["load_average"] for each in found["rounds"])
    num_rounds = len(found["rounds"]) // 2
    told = (
        f"{found['num_runs']} runs of {found['num_steps']} steps each; medians of {num_rounds} rounds by turns, on "
        f"{found['device']} with {found['rounds'][0]['num_threads']} thread. Before a run the load average of its "
        f"{found['machine']['num_usable_cores']} cores was {number(loads[0], 1)} to {number(loads[-1], 1)}: other work ran beside, "
        "so seconds of processors tell more than those of the clock."
    )
    titles = (
        "Packs of", "Packs", "Steps of a run a second", "Training (s)", "Load and profile (s)", "Evaluation (s)",
        "Processors, all (s)", "Clock, all (s)",
    )  # fmt: skip
    rows = [
        (
            Cell(name),
            Cell(count(side["num_packs"])),
            Cell(number(side["run_steps_per_second"], 1)),
            *(Cell(number(side[key], 1)) for key in _SECONDS),
        )
        for name, side in (("all seeds", together), ("one seed", apart))
    ]
    keys = ("run_steps_per_second", *_SECONDS)
    ratios = (Cell(number(apart[key] / together[key], 2)) for key in keys)
    rows.append((Cell("ratio"), Cell(""), *ratios))
    columns = tuple(TableColumn(title, numeric=title != "Packs of") for title in titles)
    return [Paragraph((told,)), Table(columns=columns, rows=tuple(rows))]
