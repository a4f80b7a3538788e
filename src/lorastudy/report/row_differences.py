"""How two arms differ on each scored row: for a figure, and for the rows at either end."""

from dataclasses import dataclass

import numpy as np

from lorastudy.analysis.overview import Analysis
from lorastudy.recommend.decision import decide
from lorastudy.report.findings.headline import deciding_pair
from lorastudy.stats.comparison import Comparison
from lorastudy.stats.study import stored_split


@dataclass(frozen=True, kw_only=True)
class RowDifference:
    """One row's scores, means over the seeds of the pair. `row` is its place among the scored rows, from 1 on."""

    row: int
    arm: float
    reference: float
    weight: float
    """The row's weight in the arm's score: its tokens for a loss."""

    @property
    def difference(self) -> float:
        """Arm minus reference."""
        return self.arm - self.reference


@dataclass(frozen=True, kw_only=True)
class RowsOfPair:
    """The comparison behind the study's answer, row by row."""

    pair: Comparison
    split: str
    rows: tuple[RowDifference, ...]
    """In order of cost: first those on which the arm is worst against the reference."""


def rows_of_deciding_pair(analysis: Analysis) -> RowsOfPair | None:
    """The rows of the comparison behind the answer; None without one, or if its scores were stored without items.

    A row for which some run has no value is left out. The weighted mean of the differences is the pair's mean difference.
    """
    pair = deciding_pair(analysis, decide(analysis))
    if pair is None or not pair.differences:
        return None
    study, metric = analysis.study, analysis.primary
    split = stored_split(metric.split, study)
    sides = []
    for name in (pair.arm, pair.reference):
        runs = {run.seed: run for run in study.arm(name).completed}
        scores = [
            analysis.items.get((runs[seed].experiment_id, split, metric.name)) for seed in pair.differences
        ]
        sides.append([score for score in scores if score is not None])
    known = [score for side in sides for score in side]
    if len(known) < 2 * len(pair.differences) or len({(len(s.values), s.weights) for s in known}) != 1:
        return None
    arm_R, reference_R = (
        np.array([score.values for score in side], dtype=np.float64).mean(axis=0) for side in sides
    )  # None becomes NaN
    weights = known[0].weights or (1,) * len(arm_R)
    rows = [
        RowDifference(row=place, arm=float(ours), reference=float(theirs), weight=float(weight))
        for place, (ours, theirs, weight) in enumerate(zip(arm_R, reference_R, weights, strict=True), start=1)
        if not np.isnan(ours) and not np.isnan(theirs)
    ]
    rows.sort(key=lambda one: -metric.cost_sign * one.difference)
    return RowsOfPair(pair=pair, split=split, rows=tuple(rows)) if len(rows) > 1 else None
