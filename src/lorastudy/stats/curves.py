"""Training loss over steps, averaged over seeds and thinned for drawing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.stats.summary import Spread
from lorastudy.store.views import StepRow


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Mean over seeds of the mean training loss of the steps that end at `step`, and one sd to either side.

    `low` and `high` are None for a single seed.
    """

    step: int
    mean: float
    low: float | None
    high: float | None
    n: int


def bin_width(num_steps: int, max_points: int = 60) -> int:
    """Steps per point, so that a curve has at most `max_points` points."""
    return max(1, math.ceil(num_steps / max_points))


def mean_curve(runs: Sequence[Sequence[StepRow]], *, width: int) -> tuple[CurvePoint, ...]:
    """One point for every `width` steps. Steps without a finite loss are left out, never filled in."""
    bins: dict[int, list[float]] = {}
    for run in runs:
        for end, losses in _binned(run, width).items():
            bins.setdefault(end, []).append(sum(losses) / len(losses))
    return tuple(_point(end, Spread.of(values)) for end, values in sorted(bins.items()))


def _binned(run: Sequence[StepRow], width: int) -> dict[int, list[float]]:
    last = max((row.step for row in run), default=0)
    binned: dict[int, list[float]] = {}
    for row in run:
        if row.loss is not None:
            end = min(math.ceil(row.step / width) * width, last)
            binned.setdefault(end, []).append(row.loss)
    return binned


def _point(step: int, spread: Spread | None) -> CurvePoint:
    assert spread is not None
    low = None if spread.sd is None else spread.mean - spread.sd
    high = None if spread.sd is None else spread.mean + spread.sd
    return CurvePoint(step=step, mean=spread.mean, low=low, high=high, n=spread.n)
