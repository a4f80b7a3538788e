"""The speed tables, from `benchmarks/results/*.json` alone. A row that no file holds is said not to be measured.

A measurement counts for a row only if it was made with the settings that the row is about; a trial with fewer steps
stays in its file.

Files of one machine replace each other row by row: what is shown is the newest measurement of each row on each
device, so a run that left a row out does not take the older one away.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorastudy.report.document import Block, Cell, Table, TableColumn, paragraph
from lorastudy.report.numbers import (
    ABSENT,
    count,
    decimals_of_size,
    interval,
    listing,
    number,
    percent,
    size,
)

FORMAT = 1
#: `<date>-<device>.json`: what `make bench` and `benchmarks.gpu` write. Other results may lie beside them.
DATED = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]-*.json"
NOT_MEASURED = "not measured yet"
OURS, BASELINE = "lorastudy", "baseline"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How many times as fast one quantity is to be: at least, and as hoped for."""

    decides: str
    floor: float
    goal: float | None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A row of the table: what is to be measured, and what it was hoped to come to."""

    id: str
    device: str
    setting: str
    expects: Mapping[str, Any]
    floor: float
    goal: float
    decides: str
    whole_floor: float | None = None
    """A floor for the whole process besides that for what decides."""

    def goals(self) -> tuple[Goal, ...]:
        """What decides, and the whole process where it has a floor of its own."""
        decides = Goal(decides=self.decides, floor=self.floor, goal=self.goal)
        if self.whole_floor is None:
            return (decides,)
        return (decides, Goal(decides="wall_seconds", floor=self.whole_floor, goal=None))

    def is_answered_by(self, row: Mapping[str, Any]) -> bool:
        """Whether the row was measured with these settings."""
        return bool(row["setting"].items() >= self.expects.items())


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row as one file holds it, with the head of that file."""

    file: str
    head: Mapping[str, Any]
    row: Mapping[str, Any]

    @property
    def agrees(self) -> bool:
        """Both sides learnt the same; a row without that check does not count as measured."""
        return bool(self.row["quality"] and self.row["quality"]["agrees"])

    def ratio(self, quantity: str, *, of: str = BASELINE) -> Mapping[str, Any] | None:
        """Times as fast as the other side, over the pairs; None where it was not measured."""
        ratios: Mapping[str, Mapping[str, Any] | None] = self.row["ratios"].get(of, {})
        return ratios.get(quantity)


def asked_rows(root: Path) -> list[Asked]:
    """All rows, in the order of the table."""
    text = (root / "benchmarks" / "rows.json").read_text(encoding="utf-8")
    return [Asked(**row) for row in json.loads(text)]


def results(root: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file name, content) of all results files, the oldest first."""
    found = []
    for path in sorted((root / "benchmarks" / "results").glob(DATED)):
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT:
            raise ValueError(f"{path.name} has format {body['format']}, not {FORMAT}")
        found.append((path.name, body))
    return sorted(found, key=lambda item: item[1]["made_at"])


def newest(root: Path) -> dict[str, list[Measured]]:
    """By row, the newest measurement on each device."""
    asked = {row.id: row for row in asked_rows(root)}
    by_row: dict[str, dict[str, Measured]] = {}
    for file, body in results(root):
        head = {key: value for key, value in body.items() if key not in {"rows", "growth", "memory"}}
        for row in body["rows"]:
            if body.get("smoke") or not asked[row["id"]].is_answered_by(row):
                continue
            by_row.setdefault(row["id"], {})[body["device"]] = Measured(file=file, head=head, row=row)
    return {row_id: list(devices.values()) for row_id, devices in by_row.items()}


# --- tables -----------------------------------------------------------------------------------------------


def speed_table(root: Path) -> list[Block]:
    """For the reader: how many times as fast, how many tokens a second, which share of the peak."""
    columns = (
        TableColumn("What both sides train", numeric=False),
        TableColumn("Parameters"),
        TableColumn("Measured on", numeric=False),
        TableColumn("Training"),
        TableColumn("Whole process"),
        TableColumn("A warm step"),
        TableColumn("Tokens a second"),
        TableColumn("Of the matmul peak"),
    )
    rows = []
    for asked, measured in _lines(root):
        if measured is None:
            rows.append((Cell(asked.setting), Cell(ABSENT), Cell(NOT_MEASURED), *[Cell(ABSENT)] * 5))
            continue
        ours = measured.row["medians"][OURS]
        rows.append(
            (
                Cell(asked.setting),
                Cell(_millions(measured.row["num_parameters"])),
                Cell(_where(measured.head)),
                Cell(_times(measured, "train_seconds")),
                Cell(_times(measured, "wall_seconds")),
                Cell(_times(measured, "step_seconds")),
                Cell(count(ours["tokens_per_second"])),
                Cell(percent(ours["peak_share"])),
            )
        )
    return [Table(columns=columns, rows=tuple(rows))]


def short_table(root: Path) -> list[Block]:
    """For the first look: how many times as fast, of what was measured."""
    columns = (
        TableColumn("What both sides train", numeric=False),
        TableColumn("Measured on", numeric=False),
        TableColumn("Training"),
        TableColumn("Whole process"),
    )
    rows = tuple(
        (
            Cell(asked.setting),
            Cell(_where(measured.head)),
            Cell(_times(measured, "train_seconds")),
            Cell(_times(measured, "wall_seconds")),
        )
        for asked, measured in _lines(root)
        if measured is not None
    )
    return [Table(columns=columns, rows=rows)]


def goal_table(root: Path) -> list[Block]:
    """For whoever works on it: what was hoped for, and whether it was reached."""
    columns = (
        TableColumn("What both sides train", numeric=False),
        TableColumn("Counts", numeric=False),
        TableColumn("Floor"),
        TableColumn("Goal"),
        TableColumn("Measured"),
        TableColumn("So", numeric=False),
    )
    words = {"train_seconds": "training", "wall_seconds": "whole process", "step_seconds": "a warm step"}
    rows = [
        (
            Cell(asked.setting),
            Cell(words[goal.decides]),
            Cell(f"{number(goal.floor, 1)} times"),
            Cell(ABSENT if goal.goal is None else f"{number(goal.goal, 1)} times"),
            Cell(ABSENT if measured is None else _times(measured, goal.decides)),
            Cell(outcome(goal, measured)),
        )
        for asked, measured in _lines(root)
        for goal in asked.goals()
    ]
    return [Table(columns=columns, rows=tuple(rows))]


def outcome(goal: Goal, measured: Measured | None) -> str:
    """Where the measured ratio stands between floor and goal."""
    ratio = None if measured is None else measured.ratio(goal.decides)
    if measured is None or ratio is None:
        return NOT_MEASURED
    if not measured.agrees:
        return "does not count: the losses differ"
    if goal.goal is not None and ratio["median"] >= goal.goal:
        return "goal reached"
    return "floor reached" if ratio["median"] >= goal.floor else "below the floor"


def detail_table(root: Path) -> list[Block]:
    """Every side's own figures: medians with the smallest and the largest, and what no difference looks like."""
    quantities = {"train_seconds": "training", "wall_seconds": "whole process", "step_seconds": "a warm step"}
    columns = (
        TableColumn("Row", numeric=False),
        TableColumn("Side", numeric=False),
        TableColumn("Counts", numeric=False),
        TableColumn("Seconds"),
        TableColumn("Against ours"),
        TableColumn("Tokens a second"),
        TableColumn("Of the matmul peak"),
    )
    rows = []
    for asked, measured in _lines(root):
        for side, medians in measured.row["medians"].items() if measured else ():
            for quantity, words in quantities.items():
                if measured is None or medians[quantity] is None:
                    continue
                is_training = quantity == "train_seconds"
                rows.append(
                    (
                        Cell(f"{asked.id}, {measured.head['device']}"),
                        Cell(side.replace("_", " ")),
                        Cell(words),
                        Cell(_seconds(medians[quantity])),
                        Cell(_against_ours(measured, quantity, side=side)),
                        Cell(count(medians["tokens_per_second"]) if is_training else ABSENT),
                        Cell(percent(medians["peak_share"]) if is_training else ABSENT),
                    )
                )
    return (
        [Table(columns=columns, rows=tuple(rows))] if rows else [paragraph(f"{NOT_MEASURED.capitalize()}.")]
    )


def quality_table(root: Path) -> list[Block]:
    """Whether both sides learnt the same."""
    columns = (
        TableColumn("Row", numeric=False),
        TableColumn("Compared", numeric=False),
        TableColumn("Largest relative difference"),
        TableColumn("Tolerance"),
        TableColumn("Held-out, after all steps"),
        TableColumn("From starts of their own"),
    )
    rows = []
    for asked, measured in _lines(root):
        quality = measured.row["quality"] if measured else None
        if measured is None or quality is None:
            continue
        rows.append(
            (
                Cell(f"{asked.id}, {measured.head['device']}"),
                Cell(quality["compared"]),
                Cell(f"{quality['largest_difference']:.1e}"),
                Cell(f"{quality['tolerance']:.0e}"),
                *(_difference(quality.get(key)) for key in ("at_the_end", "own_start")),
            )
        )
    return (
        [Table(columns=columns, rows=tuple(rows))] if rows else [paragraph(f"{NOT_MEASURED.capitalize()}.")]
    )


def _difference(value: float | None) -> Cell:
    return Cell(ABSENT if value is None else f"{value:.1e}")


def machine_table(root: Path) -> list[Block]:
    """The files, and what made them."""
    columns = tuple(
        TableColumn(title, numeric=False)
        for title in ("File", "Device", "Processor", "Cores", "Memory", "Load before", "Versions", "Commit")
    )
    rows = []
    for file, body in results(root):
        machine, versions = body["machine"], body["versions"]
        processor = machine["processor"]
        names = ("torch", "transformers", "peft")
        commit = body["commit"]
        changed = " with changes" if commit["is_changed"] else ""
        rows.append(
            (
                Cell(file),
                Cell(body["device"]),
                Cell(f"{processor['model']} ({', '.join(processor['flags']) or 'no vector extensions'})"),
                Cell(str(machine["num_usable_cores"])),
                Cell(size(machine["memory_bytes"])),
                Cell(ABSENT if machine["load_average"] is None else number(machine["load_average"], 1)),
                Cell(listing(f"{name} {versions[name] or ABSENT}" for name in names)),
                Cell(f"{commit['name'][:10]}{changed}" if commit["name"] else ABSENT),
            )
        )
    return [Table(columns=columns, rows=tuple(rows))] if rows else [paragraph("No results file yet.")]


def _lines(root: Path) -> Iterator[tuple[Asked, Measured | None]]:
    """Every row that is asked for, once for each device that it was measured on, or once without."""
    found = newest(root)
    for asked in asked_rows(root):
        for measured in found.get(asked.id) or [None]:
            yield asked, measured


def _millions(num_parameters: int) -> str:
    value = num_parameters / 1e6
    return f"{number(value, decimals_of_size(value))} M"


def _where(head: Mapping[str, Any]) -> str:
    cores = head["machine"]["num_usable_cores"]
    is_processor = head["device"] == head["machine"]["processor"]["model"]
    return f"{head['device']}, {cores} cores" if is_processor else str(head["device"])


def _times(measured: Measured, quantity: str) -> str:
    said = _spread(measured.ratio(quantity))
    return said if measured.agrees or said == ABSENT else f"{said}, but the losses differ"


def _spread(spread: Mapping[str, Any] | None) -> str:
    """Median with the smallest and the largest."""
    if spread is None:
        return ABSENT
    return f"{number(spread['median'], 2)} times {interval((spread['low'], spread['high']), 2)}"


def _against_ours(measured: Measured, quantity: str, *, side: str) -> str:
    """The ratio of the pairs; for ours, how far it was from itself when it ran again."""
    if side != OURS:
        return _spread(measured.ratio(quantity, of=side))
    floor = measured.row["noise_floor"][quantity]
    return ABSENT if floor is None else f"{number(floor, 2)} times itself"


def _seconds(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return ABSENT
    decimals = decimals_of_size(spread["median"])
    return f"{number(spread['median'], decimals)} s {interval((spread['low'], spread['high']), decimals)}"


def newest_growth(root: Path) -> tuple[str, Mapping[str, Any]] | None:
    """(where it was measured, what was found) of the newest file that holds growth; None without one."""
    holding: Sequence[tuple[str, dict[str, Any]]] = [r for r in results(root) if "growth" in r[1]]
    if not holding:
        return None
    body = holding[-1][1]
    return _where(body), body["growth"]
