"""The forest plot: each arm's difference from the reference with its interval, the margin and the verdict."""

from lorastudy.analysis.overview import Analysis
from lorastudy.analysis.paired import Comparison
from lorastudy.report.figures.figure import Figure, PairRow


def pairs_figure(analysis: Analysis) -> Figure | None:
    """The comparisons that verdicts are about; None where no two arms share a seed."""
    rows = tuple(
        PairRow(
            arm=comparison.arm,
            mean=comparison.mean,
            low=comparison.interval[0] if comparison.interval else None,
            high=comparison.interval[1] if comparison.interval else None,
            n=comparison.n,
            verdict=_word(comparison),
            decided=comparison.verdict in {"better", "as good within the margin"},
        )
        for comparison in analysis.primary_comparisons
        if comparison.mean is not None
    )
    if not rows or analysis.reference is None:
        return None
    metric, reference = analysis.primary, analysis.reference.name
    title, unit = metric.title.lower(), f" ({metric.unit})" if metric.unit else ""
    worse_side = "right" if metric.lower_is_better else "left"
    margin = analysis.question.margin
    band = "" if margin is None else " Band: the margin that was set before the run."
    spread = (
        "bar: 95 % interval" if any(row.low is not None for row in rows) else "one seed gives no interval"
    )
    return Figure(
        name="pairs",
        kind="pairs",
        title=f"Difference in {title} from {reference}",
        caption=f"Dot: mean paired difference, arm minus {reference}; {spread}. Worse than {reference} lies to the "
        f"{worse_side}. Filled: a verdict was reached; hollow: none could be.{band}",
        alt=f"Paired difference in {title} of each arm from {reference}, with the verdict beside it",
        arms=tuple(row.arm for row in rows),
        pairs=rows,
        margin=margin,
        x_label=f"{metric.title}, arm minus {reference}{unit}",
    )


def _word(comparison: Comparison) -> str:
    """The verdict without its reason; of "better" also who is."""
    return f"{comparison.winner} is better" if comparison.winner else comparison.verdict
