"""How a study spent its runs: which learning rates it tried for each configuration, and which arms racing stopped.

For each configuration: the chosen rate, and how that choice biases its score. For racing: why an arm was stopped, what that saved, and
how often such stops were wrong in measured races.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Block, Cell, Figure, Heading, Paragraph, Table, TableColumn
from lorastudy.report.numbers import ABSENT, count, listing, number, percent, signed
from lorastudy.report.rate_grids import RateGrid, rate_grids, rate_of
from lorastudy.stats.racing import LEVEL, allowance_at, measured_races
from lorastudy.stats.rate_choice import best_rate_within, failed_rows_by_run
from lorastudy.stats.study import Study, StudyArm, reporting_split, stored_split
from lorastudy.suite.question import MIN_SEEDS, rung_name

_DECIMALS = 3
#: A factor this large says nothing.
_FAR = 100.0


def rate_blocks(analysis: Analysis, *, figures: Sequence[Figure] = (), level: int) -> list[Block]:
    """The figures, and a row for each configuration that was run at several rates; empty if none was."""
    grids = rate_grids(analysis)
    if not grids:
        return []
    rates = sorted({rate_of(arm) for grid in grids for arm in grid.arms})
    columns = (
        TableColumn("Configuration", numeric=False),
        *(TableColumn(f"{rate:g}") for rate in rates),
        TableColumn("taken"),
        *([TableColumn(f"optimism{_unit(analysis)}")] if _is_optimism_known(analysis) else []),
        TableColumn("", numeric=False),
    )
    rows = tuple(_rate_row(analysis, grid, rates=rates) for grid in grids)
    title = Heading(level=level, text="Learning rates")
    return [title, Paragraph((_what_this_is(analysis),)), *figures, Table(columns=columns, rows=rows)]


def _rate_row(analysis: Analysis, grid: RateGrid, *, rates: Sequence[float]) -> tuple[Cell, ...]:
    by_rate = {rate_of(arm): arm for arm in grid.arms}
    cells = (
        _cell(analysis, by_rate[rate], means=grid.means) if rate in by_rate else Cell(ABSENT)
        for rate in rates
    )
    rate = None if grid.taken is None else rate_of(grid.taken)
    on_edge = rate in {min(by_rate), max(by_rate)}
    if grid.is_sought:
        note = "the search is still running"
    elif analysis.study.is_left_out(grid.arms):
        note = "not in the finals"
    else:
        note = "on the edge of what was tried: not tuned" if on_edge else _how_near(analysis, grid.arms)
    optimism = [_optimism(analysis, grid.best)] if _is_optimism_known(analysis) else []
    return (
        Cell(grid.name),
        *cells,
        Cell(ABSENT if rate is None else f"{rate:g}", rate),
        *optimism,
        Cell(note),
    )


def _how_near(analysis: Analysis, grid: Sequence[StudyArm]) -> str:
    """How far the chosen rate may be from the best one."""
    factor = best_rate_within(analysis.study, grid, metric=analysis.primary)
    if factor is None:
        return "tuned; how closely is not known"
    return (
        f"tuned to within a factor of {factor:.2g}"
        if factor < _FAR
        else "tuned; the best rate may be far off"
    )


def _is_optimism_known(analysis: Analysis) -> bool:
    """False if separate runs chose, or with fewer than three seeds."""
    return any(choice.optimism is not None for choice in analysis.choices)


def _optimism(analysis: Analysis, taken: StudyArm | None) -> Cell:
    """How much better the chosen rate's score looks than one that its seed did not help to choose."""
    known = {choice.arm.name: choice.optimism for choice in analysis.choices}
    value = None if taken is None else known.get(taken.name)
    return Cell(ABSENT) if value is None else Cell(signed(value, 4), value)


def _cell(analysis: Analysis, arm: StudyArm, *, means: Mapping[str, float]) -> Cell:
    """The arm's mean, or why there is none."""
    diverged = sum(result.failure_kind == "diverged" for result in arm.results)
    if arm.name not in means:
        key = _choosing_key(analysis)
        why = "no value" if any(key in run.failed_rows for run in arm.completed) else ABSENT
        return Cell("stopped" if arm.was_pruned else "diverged" if diverged else why)
    some = f", {diverged} diverged" if diverged else ""
    failed = failed_rows_by_run(analysis.study, arm, metric=analysis.primary)
    some += f", {failed:g} rows failed" if failed else ""
    return Cell(f"{number(means[arm.name], _DECIMALS)}{some}", means[arm.name])


def _what_this_is(analysis: Analysis) -> str:
    study = analysis.study
    rows = "held-out rows"
    if reporting_split(study) == "test":
        rows += ", which are not the test rows that results are reported on"
    elif analysis.choices and not study.tuning_seeds:
        rows += ", which also report"
    seeds = sorted({r.seed for r in study.results} & study.tuning_seeds)
    runs = ""
    if seeds:
        which = f"seed{'s' * (len(seeds) > 1)} {listing(map(str, seeds))}"
        runs = f" Separate runs made the choice ({which}); a rate placed between those tried has no mean."
    taken = " Each configuration is compared at the rate taken." if analysis.choices else ""
    optimism = (
        " Optimism: how much better its score looks than one that its seed did not help to choose."
        if _is_optimism_known(analysis)
        else ""
    )
    metric, in_unit = (
        analysis.primary.title.lower().removeprefix("held-out "),
        f", in {analysis.primary.unit}" if analysis.primary.unit else "",
    )
    num_scored = {
        frozenset(run.seed for run in study.choosing_runs(arm) if run.status == "completed")
        for arm in study.arms
    }
    seeds_in_common = "" if len(num_scored) == 1 else ", over common seeds"
    near = (
        " In 95 of 100 cases the best rate lies within the factor given for a tuned one. The factor comes from a parabola through "
        "the best rate and its neighbours, the noise of arms with one seed, and how far recorded curves are from a parabola."
    )
    failed = _where_rows_failed(analysis)
    return f"Mean {metric} on the {rows}{in_unit}, by learning rate{seeds_in_common}.{runs}{taken}{failed}{optimism}{near}"


def _where_rows_failed(analysis: Analysis) -> str:
    """How rows without a value of the metric counted in the choice; empty if every choosing run had one for every row."""
    study = analysis.study
    key = _choosing_key(analysis)
    if not any(key in run.failed_rows for arm in study.arms for run in study.choosing_runs(arm)):
        return ""
    return (
        " A mean is over the rows with a value. So a rate with fewer failed rows by run came before one with more, whatever their "
        "means, and a run without any value counted as one that diverged."
    )


def _choosing_key(analysis: Analysis) -> tuple[str, str]:
    """The key of the primary metric's scores on the rows that choose."""
    return stored_split(analysis.primary.split, analysis.study, choosing=True), analysis.primary.name


def _unit(analysis: Analysis) -> str:
    return f" ({analysis.primary.unit})" if analysis.primary.unit else ""


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
        f"every seed and with p at most {LEVEL:g} over all arms and looks. The reference at its best rate is never stopped. With fewer than {MIN_SEEDS} seeds the best rate of each "
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
    return [heading, Paragraph((rule,)), Table(columns=columns, rows=tuple(map(_stopped_row, stopped)))]


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


def _stopped_row(arm: StudyArm) -> tuple[Cell, ...]:
    stopped = [result for result in arm.results if result.was_pruned]
    steps = sorted({result.num_steps for result in stopped if result.num_steps is not None})
    text = dict.fromkeys(result.failure_message or ABSENT for result in stopped)
    return (
        Cell(arm.name),
        Cell(listing(map(str, steps)), steps[0] if steps else None),
        Cell(str(len(stopped)), len(stopped)),
        Cell("; ".join(text)),
    )
