"""The arms that may be the best: a model confidence set (Hansen, Lunde and Nason 2011).

`arch.bootstrap.MCS` over seeds: each seed is one observation of every arm's cost, drawn anew with replacement and without
blocks, since seeds have no order. Arms are removed from the worst on, until the bootstrap shows no difference among those that
are left. The set contains the best arm in about the share of studies that its confidence names.

**With few seeds the set is too small.** A bootstrap of n seeds underestimates their spread, so the true best falls out of the
set too often; `docs/science.md` shows how often. Below `MIN_SEEDS` there is no set. The set is about these items only: it does
not include the noise between items. Verdicts include both and do not rest on the set; they overrule it. An arm that a verdict
puts behind another one of the set is removed, and an arm that a verdict cannot distinguish from one of the set stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorastudy.stats.verdicts import ALPHA
from lorastudy.suite.question import MIN_SEEDS

_NUM_RESAMPLES = 1000
_SEED = 20111


@dataclass(frozen=True, kw_only=True)
class ConfidenceSet:
    """The arms that may be the best, with 95 % confidence, and the rest."""

    arms: tuple[str, ...]
    left_out: tuple[str, ...]
    p_values: Mapping[str, float]
    """By arm: the smallest level at which it would be removed."""
    num_seeds: int


def confidence_set(
    costs: Mapping[str, Sequence[float]],
    *,
    undecided: Sequence[tuple[str, str]] = (),
    behind: Sequence[tuple[str, str]] = (),
) -> ConfidenceSet | None:
    """The set from each arm's cost by seed, the same seeds in the same order; None with too few seeds or arms.

    None also if two arms differ by the same amount on every seed, which leaves the bootstrap nothing to draw. Less cost is
    better. `undecided` are pairs with the verdict "cannot tell"; `behind` are pairs whose first arm a verdict puts behind the
    second.
    """
    names = list(costs)
    num_seeds = min((len(values) for values in costs.values()), default=0)
    if len(names) < 2 or num_seeds < MIN_SEEDS:
        return None
    table = np.array([costs[name] for name in names], dtype=np.float64).T
    apart = table[:, :, None] - table[:, None, :]
    if np.any(np.ptp(apart, axis=0)[~np.eye(len(names), dtype=bool)] <= 1e-9 * np.abs(table).max()):
        return None
    p_values = _p_values(table)
    not_removed = {name for name, p in zip(names, p_values, strict=True) if p > ALPHA}
    beaten = {loser for loser, winner in behind if winner in not_removed}
    foremost = not_removed - beaten
    undecided_too = {name for pair in undecided if not foremost.isdisjoint(pair) for name in pair} - beaten
    inside = [name for name in names if name in foremost | undecided_too]
    return ConfidenceSet(
        arms=tuple(inside),
        left_out=tuple(name for name in names if name not in inside),
        p_values=dict(zip(names, p_values, strict=True)),
        num_seeds=num_seeds,
    )


def _p_values(table: Any) -> list[float]:
    from arch.bootstrap import MCS  # half a second and pandas

    found = MCS(
        table, ALPHA, reps=_NUM_RESAMPLES, block_size=1, method="max", bootstrap="stationary", seed=_SEED
    )
    found.compute()
    by_position = found.pvalues["Pvalue"]
    return [float(by_position.loc[position]) for position in range(table.shape[1])]
