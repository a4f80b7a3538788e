"""A margin that is a share of the gain, tested with the noise of that gain.

An arm that may give up the share p of what the reference gained is as good within that margin if, with its loss A, the
reference's R and the loss B that the gain starts from (`trivial.gain_start`: the base model's, or that of guessing where guessing
is better than the base model),

    A - R < p (B - R),   that is   c = A - (1 - p) R - p B < 0

The right-hand side of the first form is measured too, so the difference A - R must not be held against it as if it were a
fixed number: p times the noise of the gain would be missing. The second form has it all: c is one paired quantity for
each seed and item, linear in what was measured, and its mean is tested against 0 by the very tests that hold a difference
against a fixed margin. It is the linearised test of a ratio of means (Fieller 1954; Hauschke, Kieser, Diletti and Burke,
Statistics in Medicine 18, 1999; of retention trials: Rothmann et al., Statistics in Medicine 22, 2003). Losses only, since
only of them the start is always measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorastudy.stats.items import ItemScores, combined_items
from lorastudy.stats.twoway import TwoWay, seeds_only, two_way


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What a share of the gain is tested by: c, and what the share amounts to at the measured gain."""

    amount: float
    """p times the mean gain: the margin as far as it can be shown as a number."""
    by_seed: tuple[float, ...]
    """The mean of c over items, for each seed."""
    estimate: TwoWay
    """Of the mean of c: below 0 where the arm keeps more than 1 - p of the gain."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """One of the three sides: its loss by seed, and item by item where that was stored, in the seeds' order."""

    by_seed: Mapping[int, float]
    items: Sequence[ItemScores | None]


def retention(
    *, arm: Losses, reference: Losses, start: Losses, seeds: Sequence[int], share: float
) -> Retention | None:
    """`c` over these seeds; None where the loss at the start lacks for one of them, or nothing was gained."""
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
