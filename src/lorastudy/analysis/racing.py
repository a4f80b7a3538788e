"""Racing: which arms are so clearly behind after a part of the training that the rest of it would be wasted.

An arm is one configuration at one learning rate, with all its seeds. At a rung, after a share of the steps, every arm
is held against one that is ahead, on the held-out rows, by differences per seed and item. It is stopped if it is
shown to be behind by more than an allowance, on every single seed.

**What is compared with.** The arm of the lowest mean loss. Where the suite has a margin, the reference's configuration
at its best rate so far instead: an arm that would be as good as that within the margin must not be stopped, and
what is behind the reference is behind the leader too.

**The allowance.** That an arm is behind now does not say that it will be in the end: a low learning rate catches up, a
high one recovers when the schedule takes it down. So the difference must be greater than

    margin + ALLOWANCE x (loss of the base model - loss of the arm ahead)

which is a share of what training has brought so far. No test can say how large it must be; it was measured, by
replaying races over full runs (`benchmarks/replay_racing.py`; docs/science.md has what came out).

**Many looks at many arms.** One-sided t test of the mean difference, with the variance between seeds and between items
(`twoway`); its p, times the number of arms that could be ahead, times the number of rungs, must be at most `LEVEL`
(Bonferroni). The arm ahead is picked by its result; since every arm it could have been is counted, that costs nothing
more. So among arms that are equal, any one is stopped with a probability of at most `LEVEL` over all rungs together;
with the allowance, of much less. The t distribution has as many degrees of freedom as there are seeds, less one, and not
Satterthwaite's: at the small levels that the correction asks for, three seeds that agree by luck would claim the degrees
of the items, and in simulated races of equal arms twice as many were stopped as the level allows.

Everything follows from the scores, so a race that is taken up again comes to the same decisions.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special  # not `stats`, which takes half a second to import

from lorastudy.analysis.items import ItemScores, common_weights
from lorastudy.analysis.significance import Floats
from lorastudy.analysis.twoway import two_way
from lorastudy.spec.question import Margin

#: Of the gain over the base model so far.
ALLOWANCE = 0.05
LEVEL = 0.02


@dataclass(frozen=True, kw_only=True)
class Behind:
    """An arm that is stopped, and why."""

    arm: str
    ahead: str
    """What it was compared with."""
    difference: float
    """Mean loss of the arm minus that of the one ahead, nats per token."""
    bound: float
    """What the difference had to exceed."""
    p: float
    """That it does not, corrected for the number of arms and rungs."""
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class RaceRules:
    """What a race is held to, all of it fixed before it begins. `num_arms` is how many began."""

    num_arms: int
    num_rungs: int
    margin: Margin | None = None
    """The suite's; a share is taken of the gain that the reference has made by then."""
    allowance: float = ALLOWANCE
    level: float = LEVEL


RungLosses = Mapping[str, Mapping[int, ItemScores]]
"""By arm and seed, the loss on every held-out row."""


def clearly_behind(
    losses: RungLosses, *, base_loss: float, rules: RaceRules, reference: Collection[str] = ()
) -> tuple[Behind, ...]:
    """The arms that are to be stopped, in the order given.

    `reference` are the arms of the configuration that verdicts compare with: the best of them is never stopped. An arm
    that lacks a seed which another has is left alone, as are all where seeds do not share their items.
    """
    table, weights = _table(losses)
    if len(table) < 2 or weights is None:
        return ()
    means = {arm: float((values * weights).sum(axis=-1).mean()) for arm, values in table.items()}
    of_reference = [arm for arm in reference if arm in table]
    kept = min(of_reference, key=means.__getitem__, default=None)
    ahead = kept if rules.margin is not None and kept is not None else min(means, key=means.__getitem__)
    gain = base_loss - means[ahead]
    if gain <= 0:
        return ()  # nothing was learnt yet, so nothing is known of who will learn
    margin = 0.0 if rules.margin is None else rules.margin.allowed(reference=means[ahead], base=base_loss)
    bound = margin + rules.allowance * gain
    found = []
    for arm, values in table.items():
        if arm in {ahead, kept}:
            continue
        p = min(1.0, p_behind(values - table[ahead], weights, bound=bound) * _num_looks(rules))
        on_every_seed = ((values - table[ahead]) * weights).sum(axis=-1) > bound
        if p <= rules.level and on_every_seed.all():
            found.append(
                Behind(
                    arm=arm,
                    ahead=ahead,
                    difference=means[arm] - means[ahead],
                    bound=bound,
                    p=p,
                    num_seeds=len(values),
                )
            )
    return tuple(found)


def measured_races() -> list[dict[str, Any]]:
    """What this rule came to in races replayed over full runs: counts of stops, wrong ones and equal verdicts.

    Written by `benchmarks/replay_racing.py`; empty before anything was measured.
    """
    file = Path(__file__).with_name("racing_measured.json")
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def p_behind(differences: Floats, weights: Floats, *, bound: float) -> float:
    """One-sided p, uncorrected, of the differences by (seed, item) being at most the bound; 1 where nothing varies."""
    estimate = two_way(differences, weights)
    if estimate.standard_error <= 1e-9 * abs(estimate.mean):
        return 1.0
    t = (estimate.mean - bound) / estimate.standard_error
    return float(special.stdtr(estimate.num_seeds - 1, -t))


def _num_looks(rules: RaceRules) -> int:
    return (rules.num_arms - 1) * rules.num_rungs


def _table(losses: RungLosses) -> tuple[dict[str, Floats], Floats | None]:
    """Losses by (seed, item) of the arms that have every seed, and the items' shares of the weight; None without any.

    None too with fewer than two seeds, or where `common_weights` finds none.
    """
    seeds = sorted({seed for by_seed in losses.values() for seed in by_seed})
    whole = {arm: by_seed for arm, by_seed in losses.items() if len(by_seed) == len(seeds)}
    scored = [by_seed[seed] for by_seed in whole.values() for seed in seeds]
    weights = common_weights(scored) if len(seeds) > 1 else None
    if weights is None:
        return {}, None
    table = {arm: np.array([by_seed[seed].values for seed in seeds]) for arm, by_seed in whole.items()}
    return table, weights / weights.sum()
