"""Which arms racing stopped and why, what that saved, and how often such stops were wrong in measured races."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorastudy.report.document import Block, Cell, Heading, Paragraph, Table, TableColumn
from lorastudy.report.numbers import ABSENT, count, listing, percent
from lorastudy.stats.racing import LEVEL, allowance_at, measured_races
from lorastudy.stats.study import Study, StudyArm
from lorastudy.suite.question import MIN_SEEDS, rung_name


def racing_blocks(study: Study, *, rungs: Sequence[float], level: int) -> list[Block]:
    """A row for each stopped arm; empty if no race was run."""
    if not rungs and not study.pruned:
        return []
    at = listing(map(rung_name, rungs)) if rungs else "some"
    shares = [percent(allowance_at(rung)) for rung in rungs]
    allowed = f"{listing(shares) if shares else 'a share'} of what training"
    rule = (
        f"Arms were compared after {at} of the steps, on the held-out rows, per seed and item. An arm was stopped if it was shown "
        f"to be behind the arm ahead by more than {allowed} had gained that one by then (plus the margin, if there is one), on "
        f"every seed and with p at most {LEVEL:g} over all arms and looks. With fewer than {MIN_SEEDS} seeds the best rate of each "
        f"configuration is never stopped, since no verdict could call it worse. A stopped arm has no final score and wins nothing. "
        f"{_saved(study)}"
        f"{wrong_stops_measured()}"
    ).rstrip()
    heading = Heading(level=level, text="Stopped by racing")
    stopped = [arm for arm in study.arms if arm.was_pruned]
    if not stopped:
        return [heading, Paragraph((f"{rule} Here no arm was stopped.",))]
    columns = (
        TableColumn("Arm", numeric=False),
        TableColumn("Steps"),
        TableColumn("Runs"),
        TableColumn("Why", numeric=False),
    )
    return [heading, Paragraph((rule,)), Table(columns=columns, rows=tuple(map(_row, stopped)))]


def steps_spent(study: Study) -> tuple[int, int] | None:
    """Steps that all runs took, and that they would have taken without racing; None if unknown."""
    full = {result.num_steps for result in study.completed}
    if len(full) != 1 or None in full:
        return None
    spent = sum(r.num_steps or 0 for r in study.results if r.status == "completed" or r.was_pruned)
    num_runs = sum(r.status == "completed" or r.was_pruned for r in study.results)
    return spent, num_runs * (full.pop() or 0)


def wrong_stops_measured() -> str:
    """How often such stops were wrong in measured races."""
    text = [
        f"{count(one['num_wrong_stops'])} of {count(one['num_stops'])} stops in {count(one['num_studies'])} races were wrong, and "
        f"{percent(one['same_verdicts'], decimals=0)} of these ended in the verdicts of the full grid, {where(one)}"
        for one in measured_races()
    ]
    chosen = "The rule was chosen on these runs, so the figures are not independent; with fewer seeds it stops less."
    return f"In races replayed over full runs, {listing(text)}. {chosen}" if text else ""


def where(measured: Mapping[str, Any]) -> str:
    """The model, data and seeds of a measurement."""
    first, last = min(measured["seeds"]), max(measured["seeds"])
    return (
        f"on {measured['base_model']} with {measured['dataset_path']} and {measured['num_seeds']} of the seeds "
        f"{first} to {last}"
    )


def _saved(study: Study) -> str:
    steps = steps_spent(study)
    if steps is None:
        return ""
    spent, full = steps
    return f"The runs took {count(spent)} of the {count(full)} steps of the full grid ({percent(spent / full, decimals=0)}). "


def _row(arm: StudyArm) -> tuple[Cell, ...]:
    stopped = [result for result in arm.results if result.was_pruned]
    steps = sorted({result.num_steps for result in stopped if result.num_steps is not None})
    text = dict.fromkeys(result.failure_message or ABSENT for result in stopped)
    return (
        Cell(arm.name),
        Cell(listing(map(str, steps)), steps[0] if steps else None),
        Cell(str(len(stopped)), len(stopped)),
        Cell("; ".join(text)),
    )
