"""What the figures of the evidence show: memory as predicted, the learning rates tried, and the answer's difference by row."""

import math

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import MAX_CURVES, Figure, PredictionRow, RateRow, ScoredRow
from lorastudy.report.numbers import size_unit
from lorastudy.report.predictions import scored_predictions
from lorastudy.report.rate_grids import rate_grids, rate_of
from lorastudy.report.row_differences import rows_of_deciding_pair
from lorastudy.stats.summary import Metric

#: Bars of rows; of more rows a part is drawn, evenly spread over their order.
MAX_ROWS_DRAWN = 400


def predictions_figure(analysis: Analysis) -> Figure | None:
    """Peak memory of each arm alone, and of each pack that was measured: predicted and measured."""
    arms = tuple(summary.arm.name for summary in analysis.completed)
    scored = [one for one in scored_predictions(analysis.study) if one.arm is None or one.arm in arms]
    if not scored:
        return None
    unit, scale = size_unit(one.measured for one in scored)
    return Figure(
        name="memory_prediction",
        kind="predictions",
        title="Predicted and measured memory",
        caption="Peak memory: hollow as predicted before the run, filled as measured.",
        alt="Predicted and measured peak memory of each arm",
        arms=tuple(arm for arm in arms if arm in {one.arm for one in scored}),
        predictions=tuple(
            PredictionRow(
                name=one.arm or one.name,
                arm=one.arm,
                predicted=one.predicted / scale,
                measured=one.measured / scale,
            )
            for one in scored
        ),
        x_label=f"Peak memory ({unit})",
    )


def rates_figure(analysis: Analysis) -> Figure | None:
    """The mean score of each configuration along the learning rates that were tried, with the one that was taken."""
    completed = {summary.arm.name for summary in analysis.completed}
    rows = tuple(
        RateRow(arm=taken.name, rate=rate_of(arm), mean=grid.means[arm.name], is_taken=arm is taken)
        for grid in rate_grids(analysis)
        if (taken := grid.taken) is not None and taken.name in completed
        for arm in sorted(grid.arms, key=rate_of)
        if arm.name in grid.means
    )
    names = tuple(dict.fromkeys(row.arm for row in rows))
    if not rows or len(names) > MAX_CURVES:
        return None
    return Figure(
        name="learning_rates",
        kind="rates",
        title=f"{analysis.primary.title} by learning rate",
        caption="Mean on the rows that chose the rate; ring: the rate taken, if it is among those that were tried. A rate "
        "at which every run diverged has no mean.",
        alt=f"{analysis.primary.title} of each configuration at each learning rate",
        arms=names,
        rates=rows,
        x_label="Learning rate",
        y_label=with_unit(analysis.primary),
    )


def rows_figure(analysis: Analysis) -> Figure | None:
    """The difference of the two arms behind the answer, row by row, in order of cost."""
    found = rows_of_deciding_pair(analysis)
    if found is None:
        return None
    arm, other, metric = found.pair.arm, found.pair.reference, analysis.primary
    num_rows, step = len(found.rows), max(1, math.ceil(len(found.rows) / MAX_ROWS_DRAWN))
    thinned = "" if step == 1 else f" Of {num_rows:,} rows every {step}th is drawn."
    better_side = "below" if metric.lower_is_better else "above"
    unit = f" ({metric.unit})" if metric.unit else ""
    return Figure(
        name="rows",
        kind="rows",
        title=f"{metric.title} row by row: {arm} minus {other}",
        caption=f"Each bar is a row, in order; {better_side} zero {arm} has the better score.{thinned}",
        alt=f"Difference in {metric.title.lower()} between {arm} and {other} on each row, in order",
        arms=(arm,),
        rows=tuple(
            ScoredRow(
                row=one.row,
                place=(place + 0.5) / num_rows,
                ours=one.arm,
                theirs=one.reference,
                difference=one.difference,
            )
            for place, one in enumerate(found.rows)
            if place % step == 0
        ),
        marked=other,
        x_label="Share of rows",
        y_label=f"Difference{unit}",
    )


def with_unit(metric: Metric) -> str:
    """The metric's title with its unit in brackets."""
    return f"{metric.title} ({metric.unit})" if metric.unit else metric.title
