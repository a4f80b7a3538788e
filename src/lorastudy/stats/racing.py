"""Racing: which arms are so clearly behind after part of the training that the rest of it would be wasted.

An arm is one configuration at one learning rate, with all its seeds. At a rung, after a share of the steps, every arm is
compared with one that is ahead, on the held-out rows, by differences per seed and item. It is pruned if it is shown to be behind
by more than an allowance, and is so on every single seed.

**The arm ahead.** The arm of the lowest mean loss. If the suite has a margin, the reference's configuration at its best rate so
far instead: an arm that would be as good as the reference within the margin must not be pruned, and an arm that is behind the
reference is behind the leader too.

**The allowance.** An arm that is behind now need not be behind at the end: a low learning rate catches up, and a high one
recovers when the schedule lowers it. So after a share r of the steps the difference must be greater than

    margin + ALLOWANCE x (1 - r) / r x (loss of the base model - loss of the arm ahead)

This is a share of what training has gained so far, in proportion to the steps left over those done. No test can say how large
it must be; it was measured by replaying races over full runs (`benchmarks/replay_racing.py`; docs/science.md has the results).

**Many looks at many arms.** A one-sided test of the mean difference over new seeds and new items (`p_behind`). Its p, times the
number of arms that could be ahead, times the number of rungs, must be at most `LEVEL` (Bonferroni). The arm ahead is chosen by
its result; the correction counts every arm that it could have been, so that choice costs nothing more. An arm that is behind by
exactly what is allowed is pruned with a probability of at most `LEVEL` over all rungs together; an equal arm with a much smaller
one. With a smaller level, few rows would be the guard against wrong stops, which more rows remove. A larger allowance with a
larger level prunes as much and holds then too.

**Who is kept.** The best arm of the reference; and with too few seeds for a verdict to call anything worse, the best arm of each
configuration, since a race must not decide what the full grid could not.

Everything follows from the scores, so a race that is resumed reaches the same decisions.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special  # not `stats`, which takes half a second to import

from lorastudy.stats.twoway import ItemScores, TwoWay, common_weights, two_way
from lorastudy.stats.verdicts import Floats
from lorastudy.suite.question import MIN_SEEDS, Margin

#: Share of the gain so far over the base model, after half of the training.
ALLOWANCE = 0.05
LEVEL = 0.1
_SMALLEST_P = 1e-30


@dataclass(frozen=True, kw_only=True)
class Behind:
    """An arm that is pruned, and why."""

    arm: str
    ahead: str
    """The arm that it was compared with."""
    difference: float
    """Mean loss of the arm minus that of the arm ahead, in nats per token."""
    bound: float
    """The value that the difference had to exceed."""
    p: float
    """p that the difference is at most the bound, corrected for the number of arms and rungs."""
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class RaceRules:
    """The rules of a race, fixed before it begins. `num_arms` is the number of arms at the start."""

    num_arms: int
    num_rungs: int
    margin: Margin | None = None
    """The suite's margin; a share is taken of what the reference has gained at the rung."""
    allowance: float = ALLOWANCE
    level: float = LEVEL


RungLosses = Mapping[str, Mapping[int, ItemScores]]
"""By arm and seed: the loss on every held-out row."""


def allowance_at(rung: float, *, allowance: float = ALLOWANCE) -> float:
    """The share of the gain so far by which an arm may be behind at a rung."""
    return allowance * (1 - rung) / rung


def clearly_behind(
    losses: RungLosses,
    *,
    rung: float,
    base_loss: float,
    rules: RaceRules,
    reference: Collection[str] = (),
    configurations: Sequence[Collection[str]] = (),
) -> tuple[Behind, ...]:
    """The arms to prune, in the order given.

    `configurations` groups the arms that differ only in their rate; `reference` are those of the reference's configuration. The
    best arm of the reference is never pruned, and with fewer than `MIN_SEEDS` seeds nor is the best of any configuration. An arm
    that lacks a seed which another arm has is left alone; so are all arms if their seeds do not share items.
    """
    table, weights, groups = _table(losses)
    if len(table) < 2 or weights is None:
        return ()
    means = {arm: float((values * weights).sum(axis=-1).mean()) for arm, values in table.items()}
    best = _best_of(reference, means)
    num_seeds = len(next(iter(table.values())))
    kept = {best} | {_best_of(arms, means) for arms in configurations if num_seeds < MIN_SEEDS}
    ahead = best if rules.margin is not None and best is not None else min(means, key=means.__getitem__)
    gain = base_loss - means[ahead]
    if gain <= 0:
        return ()  # nothing was learnt yet, so nothing is known about who will
    margin = 0.0 if rules.margin is None else rules.margin.allowed(reference=means[ahead], base=base_loss)
    bound = margin + allowance_at(rung, allowance=rules.allowance) * gain
    found = []
    for arm, values in table.items():
        if arm == ahead or arm in kept:
            continue
        alone = p_behind(values - table[ahead], weights, bound=bound, groups=groups)
        p = min(1.0, alone * _num_looks(rules))
        on_every_seed = ((values - table[ahead]) * weights).sum(axis=-1) > bound
        if p <= rules.level and on_every_seed.all():
            found.append(
                Behind(
                    arm=arm,
                    ahead=ahead,
                    difference=means[arm] - means[ahead],
                    bound=bound,
                    p=p,
                    num_seeds=num_seeds,
                )
            )
    return tuple(found)


def measured_races() -> list[dict[str, Any]]:
    """Results of this rule in races replayed over full runs: counts of stops, wrong stops and unchanged verdicts.

    Written by `benchmarks/replay_racing.py`; empty before anything was measured.
    """
    file = Path(__file__).with_name("racing_measured.json")
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def p_behind(
    differences: Floats, weights: Floats, *, bound: float, groups: Sequence[int] | None = None
) -> float:
    """One-sided p, uncorrected, that the mean difference by (seed, item) is at most the bound; 1 if nothing varies.

    Each component of the variance (`twoway`) is multiplied by the t quantile of its own degrees of freedom (number of seeds,
    or of items or groups of items, minus one). p is the level at which the mean exceeds the bound by exactly

        sqrt(t(n - 1)**2 V(seeds) + t(m - 1)**2 I)

    as in Howe (1974, Journal of the American Statistical Association 69) for a sum of two means. Satterthwaite's degrees of
    freedom for the sum fail at the small levels that the correction needs: three seeds that agree by luck would claim the
    degrees of the items. The seeds' degrees for the sum hold, but apply quantiles for few seeds to the noise of the items, so
    that hardly anything is ever shown (docs/log.md).
    """
    estimate = two_way(differences, weights, groups=groups)
    ahead_by = float(estimate.mean) - bound
    if ahead_by <= 0 or estimate.standard_error <= 1e-9 * abs(estimate.mean):
        return 1.0
    lowest, highest = math.log(_SMALLEST_P), math.log(0.5)
    while highest - lowest > 1e-9:
        middle = (lowest + highest) / 2
        lowest, highest = (
            (lowest, middle) if ahead_by > _half_width(estimate, p=math.exp(middle)) else (middle, highest)
        )
    return math.exp(highest)


def _half_width(estimate: TwoWay, *, p: float) -> float:
    assert estimate.num_groups is not None
    of_seeds, of_items = (
        special.stdtrit(number - 1, p) for number in (estimate.num_seeds, estimate.num_groups)
    )
    return math.sqrt(of_seeds**2 * estimate.seed_variance + of_items**2 * estimate.items_alone)


def _best_of(arms: Collection[str], means: Mapping[str, float]) -> str | None:
    return min((arm for arm in arms if arm in means), key=means.__getitem__, default=None)


def _num_looks(rules: RaceRules) -> int:
    return (rules.num_arms - 1) * rules.num_rungs


def _table(losses: RungLosses) -> tuple[dict[str, Floats], Floats | None, tuple[int, ...] | None]:
    """Losses by (seed, item) of the arms that have every seed, the items' relative weights, and their groups.

    No weights if there is no such arm, with fewer than two seeds, or if `common_weights` finds none.
    """
    seeds = sorted({seed for by_seed in losses.values() for seed in by_seed})
    whole = {arm: by_seed for arm, by_seed in losses.items() if len(by_seed) == len(seeds)}
    scored = [by_seed[seed] for by_seed in whole.values() for seed in seeds]
    weights = common_weights(scored) if len(seeds) > 1 else None
    if weights is None:
        return {}, None, None
    table = {arm: np.array([by_seed[seed].values for seed in seeds]) for arm, by_seed in whole.items()}
    return table, weights / weights.sum(), scored[0].groups
