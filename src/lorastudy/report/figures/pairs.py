"""The forest plot: each arm's difference from the reference with its interval, the margin and the verdict."""

from lorastudy.analysis.overview import Analysis
from lorastudy.report.figures.figure import Figure, PairRow
from lorastudy.report.findings.wording import margin_was_set


def pairs_figure(analysis: Analysis) -> Figure | None:
    """The comparisons that verdicts are about; None where no two arms share a seed."""
    if analysis.reference is None:
        return None
    rows = tuple(
        PairRow(
            arm=comparison.arm,
            mean=comparison.mean,
            low=comparison.interval[0] if comparison.interval else None,
            high=comparison.interval[1] if comparison.interval else None,
            n=comparison.n,
            verdict=_short(comparison.told, arm=comparison.arm, reference=analysis.reference.name),
            decided=comparison.verdict in {"better", "as good within the margin"},
        )
        for comparison in analysis.primary_comparisons
        if comparison.mean is not None
    )
    if not rows:
        return None
    metric, reference = analysis.primary, analysis.reference.name
    title, unit = metric.title.lower(), f" ({metric.unit})" if metric.unit else ""
    worse_side = "right" if metric.lower_is_better else "left"
    margin = analysis.criterion.margin
    band = "" if margin is None else f" Band: {_margin(analysis)}."
    untuned = ", or it holds at untuned rates only" if analysis.untuned else ""
    spread = (
        "bar: 95 % interval" if any(row.low is not None for row in rows) else "one seed gives no interval"
    )
    return Figure(
        name="pairs",
        kind="pairs",
        title=f"Difference in {title} from the reference",
        caption=f"Dot: mean paired difference, arm minus {reference}; {spread}. Worse than {reference} lies to the "
        f"{worse_side}. Filled: a verdict was reached; hollow: none could be{untuned}.{band}",
        alt=f"Paired difference in {title} of each arm from {reference}, with the verdict beside it",
        arms=tuple(row.arm for row in rows),
        pairs=rows,
        margin=margin,
        x_label=f"{metric.title}, arm minus {reference}{unit}",
    )


def _margin(analysis: Analysis) -> str:
    """When the margin was set, and that a share is of what was measured."""
    was_set = margin_was_set(analysis)
    told = f"the margin {'that was ' if was_set.startswith('set') else ''}{was_set}"
    if analysis.criterion.margin_share is None:
        return told
    comma = "," if "margin" in analysis.criterion.late_by_key else ""
    return f"{told}{comma} as a share of the gain, here of the measured one"


def _short(told: str, *, arm: str, reference: str) -> str:
    """The verdict beside a row of the plot: both names stand in it already, and may be long."""
    for name, short in ((reference, "reference"), (arm, "this arm")):
        if told.startswith(f"{name} "):
            return f"{short} {told.removeprefix(f'{name} ')}"
    return told
