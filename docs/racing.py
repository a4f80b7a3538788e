"""What replayed races say of racing: tables for `docs/science.md`.

Everything is read from `benchmarks/results/racing.json`, which `python -m benchmarks.replay_racing` makes.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lorastudy.report.document import Block, Cell, Paragraph, Table, TableColumn
from lorastudy.report.numbers import count, listing, percent
from lorastudy.suite.question import MIN_SEEDS_TO_RACE, rung_name

RESULTS = Path("benchmarks") / "results" / "racing.json"
#: The goal that was set: the verdict of the full grid for a third of its steps, and so many wrong stops at most.
MAX_WRONG, MAX_STEPS = 0.02, 1 / 3

Line = dict[str, Any]


def races(root: Path) -> dict[str, Any]:
    """What came out."""
    found: dict[str, Any] = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    return found


def runs_sentences(root: Path) -> list[Block]:
    """What was recorded, a sentence for each grid."""
    return [Paragraph((" ".join(map(_recorded, races(root)["runs"])),))]


def kept_table(root: Path) -> list[Block]:
    """What the rule does, by grid, number of seeds and margin."""
    columns = (
        "Runs", "Seeds", "Margin", "Studies", "Stops", "Wrong stops", "Good arms stopped", "Same best arm", "Same verdicts", "Steps", "Least",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(_place(root, line["runs"])),
            Cell(str(line["num_seeds"]), line["num_seeds"]),
            Cell(line["margin"] or "none"),
            Cell(count(line["num_studies"]), line["num_studies"]),
            Cell(count(line["num_stops"]), line["num_stops"]),
            *_shares(
                line,
                (
                    "wrong_stops",
                    "good_arms_stopped",
                    "same_best",
                    "same_verdicts",
                    "share_of_steps",
                    "least_share_of_steps",
                ),
            ),
        )
        for line in races(root)["kept"]
    )
    titles = tuple(TableColumn(title, numeric=title not in {"Runs", "Margin"}) for title in columns)
    return [Table(columns=titles, rows=rows)]


def tried_table(root: Path) -> list[Block]:
    """Other rungs, levels and allowances: wrong stops, and the share of the steps, in each cell."""
    lines = races(root)["tried"]
    allowances = sorted({line["allowance"] for line in lines})
    by_key: dict[tuple[str, int, tuple[float, ...], float], dict[float, Line]] = {}
    for line in lines:
        key = (line["runs"], line["times"], tuple(line["rungs"]), line["level"])
        by_key.setdefault(key, {})[line["allowance"]] = line
    rows = tuple(
        (
            Cell(_place(root, runs)),
            Cell(f"{times} x", times),
            Cell(listing(map(rung_name, rungs))),
            Cell(f"{level:g}", level),
            *(Cell(_wrong_and_steps(of_rungs[allowance])) for allowance in allowances),
        )
        for (runs, times, rungs, level), of_rungs in by_key.items()
    )
    titles = (
        TableColumn("Runs", numeric=False),
        TableColumn("Held-out rows"),
        TableColumn("Looks after", numeric=False),
        TableColumn("Level"),
        *(TableColumn(f"allowance {percent(allowance, decimals=0)}") for allowance in allowances),
    )
    return [Table(columns=titles, rows=rows)]


def goal_sentence(root: Path) -> list[Block]:
    """Whether the goal was met, and where it was not."""
    kept = races(root)["kept"]
    lines = [line for line in kept if line["margin"] is None and line["num_seeds"] >= MIN_SEEDS_TO_RACE]
    told = [
        f"{_place(root, line['runs'])} with {line['num_seeds']} seeds: wrong stops {percent(line['wrong_stops'])} "
        f"({_met(holds=line['wrong_stops'] <= MAX_WRONG)}), steps {percent(line['share_of_steps'], decimals=0)} "
        f"({_met(holds=line['share_of_steps'] <= MAX_STEPS)}; at least {percent(line['least_share_of_steps'], decimals=0)} for "
        f"any race with these looks that makes no wrong stop and changes no verdict), same verdicts {percent(line['same_verdicts'], decimals=0)}"
        for line in lines
    ]
    goal = (
        f"The goal was the verdict of the full grid for at most {percent(MAX_STEPS, decimals=0)} of its steps, with at most "
        f"{percent(MAX_WRONG, decimals=0)} of the stops wrong. Without a margin: {'; '.join(told)}."
    )
    return [Paragraph((goal,))]


def _met(*, holds: bool) -> str:
    return "met" if holds else "missed"


def _recorded(runs: Line) -> str:
    settings = runs["settings"]
    return (
        f"{_told(runs)}: ranks {listing(map(str, runs['ranks']))}, rates "
        f"{listing(f'{rate:g}' for rate in runs['rates'])}, {runs['num_seeds']} seeds, {settings['max_steps']} steps of "
        f"{settings['per_device_train_batch_size']} rows, {settings['lr_scheduler_type']} schedule; {runs['num_items']} "
        f"held-out rows decide and {runs['num_test_items']} test rows report."
    )


def _place(root: Path, name: str) -> str:
    runs = next(runs for runs in races(root)["runs"] if runs["name"] == name)
    return _told(runs)


def _told(runs: Line) -> str:
    """Which runs: what was trained on which rows, and the seeds, which tell two recordings of one grid apart."""
    settings, seeds = runs["settings"], runs["seeds"]
    return f"{settings['base_model']}, {settings['dataset_path']} (seeds {min(seeds)} to {max(seeds)})"


def _shares(line: Line, keys: Sequence[str]) -> list[Cell]:
    return [Cell(percent(line[key]), line[key]) for key in keys]


def _wrong_and_steps(line: Line) -> str:
    return f"{percent(line['wrong_stops'])} wrong, {percent(line['share_of_steps'], decimals=0)} of the steps"


BLOCKS: dict[str, Callable[[Path], list[Block]]] = {
    "racing-runs": runs_sentences,
    "racing-kept": kept_table,
    "racing-goal": goal_sentence,
    "racing-tried": tried_table,
}
