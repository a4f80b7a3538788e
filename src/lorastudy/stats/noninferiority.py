"""Tests a margin that is a share of the gain, with the noise of that gain.

The arm may give up the share p of the reference's gain. Let A be its loss, R the reference's, and B the loss from which the
gain is measured (`trivial.gain_start`: the base model's, or that of guessing if guessing is better). The arm is as good within
the margin if

    A - R < p (B - R),   that is   c = A - (1 - p) R - p B < 0

The right-hand side of the first form is measured too, so it is wrong to test the difference A - R against it as if it were a
fixed number: p times the noise of the gain would be missing. The second form has all the noise: c is one paired quantity for
each seed and item, linear in what was measured. Its mean is tested against 0 by the same tests that compare a difference with a
fixed margin. This is the linearised test of a ratio of means (Fieller 1954; Hauschke, Kieser, Diletti and Burke, Statistics in
Medicine 18, 1999; for retention trials: Rothmann et al., Statistics in Medicine 22, 2003). It covers losses only, since the
start is always measured for the loss alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorastudy.stats.items import ItemScores, combined_items
from lorastudy.stats.twoway import TwoWay, seeds_only, two_way


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The quantity c that tests a share of the gain, and that share of the measured gain."""

    amount: float
    """p times the mean gain: the margin as a number, for display."""
    by_seed: tuple[float, ...]
    """The mean of c over items, for each seed."""
    estimate: TwoWay
    """Of the mean of c: below 0 if the arm keeps more than 1 - p of the gain."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """One of the three losses: by seed, and by item in order of seed if items were stored."""

    by_seed: Mapping[int, float]
    items: Sequence[ItemScores | None]


def retention(
    *, arm: Losses, reference: Losses, start: Losses, seeds: Sequence[int], share: float
) -> Retention | None:
    """The quantity c over these seeds; None if the start has no loss for one of them, or nothing was gained."""
    if any(seed not in start.by_seed for seed in seeds):
        return None
    gains = [start.by_seed[seed] - reference.by_seed[seed] for seed in seeds]
    gain = sum(gains) / len(gains)
    if gain <= 0:
        return None
    factors = (1.0, share - 1.0, -share)
    sides = (arm, reference, start)
    by_seed = tuple(
        sum(f * side.by_seed[seed] for f, side in zip(factors, sides, strict=True)) for seed in seeds
    )
    cells = combined_items([side.items for side in sides], factors=factors)
    return Retention(
        amount=share * gain,
        by_seed=by_seed,
        estimate=seeds_only(by_seed)
        if cells is None
        else two_way(cells.differences, cells.weights, groups=cells.groups),
    )
