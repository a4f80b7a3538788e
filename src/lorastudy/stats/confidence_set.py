"""The arms among which the best cannot be told: a model confidence set (Hansen, Lunde and Nason 2011).

`arch.bootstrap.MCS` over seeds: each seed is an observation of every arm's cost at once, drawn anew with replacement,
without blocks, since seeds have no order. Arms are taken out from the worst until no difference is left that the
bootstrap tells from none. The best arm stays in the set in about the share of studies that its confidence names.

**What few seeds do to it.** A bootstrap of n seeds underestimates their spread, so with few seeds the set is too small
and the true best falls out of it too often; `docs/science.md` shows how often. Below `MIN_SEEDS` there is
no set. It is about these items: the noise between items is not in it. Verdicts, which know of both, do not rest on it;
it gives way to them. An arm that a verdict puts behind another in the set is not the best and is left out, and one that a
verdict does not tell from one in the set stays in it.
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
class TiedSet:
    """The arms that cannot be told from the best, with 95 % confidence, and the rest."""

    arms: tuple[str, ...]
    left_out: tuple[str, ...]
    p_values: Mapping[str, float]
    """By arm: the smallest level at which it would be taken out."""
    num_seeds: int


def tied_with_the_best(
    costs: Mapping[str, Sequence[float]],
    *,
    undecided: Sequence[tuple[str, str]] = (),
    behind: Sequence[tuple[str, str]] = (),
) -> TiedSet | None:
    """The set from each arm's cost by seed, the same seeds in the same order; None with too few seeds or arms.

    None too where two arms differ by the same on every seed, which leaves the bootstrap nothing to draw. Cost is what
    should be low: a metric of which more is better comes in negated. `undecided` are pairs of arms of which the
    verdict is that it cannot tell, `behind` those of which it puts the first behind the second.
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
    untold = {name for name, p in zip(names, p_values, strict=True) if p > ALPHA}
    beaten = {loser for loser, winner in behind if winner in untold}
    foremost = untold - beaten
    undecided_too = {name for pair in undecided if not foremost.isdisjoint(pair) for name in pair} - beaten
    inside = [name for name in names if name in foremost | undecided_too]
    return TiedSet(
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
