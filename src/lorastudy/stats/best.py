"""Which arm is the best, and which are close to it: Hsu's multiple comparisons with the best, on paired seeds.

Comparing every arm with the one that looks best calls too many of them worse, because luck helped that one to look best. Hsu
(Annals of Statistics 12, 1984; *Multiple Comparisons*, 1996, chapter 4) bounds for every arm i at once

    cost(i) - lowest cost of the others

With D(i, j) the mean paired difference of two costs and w(i, j) its half width, the constrained bounds are

    upper(i) = max(0, max over j of D(i, j) + w(i, j))          0: i is shown to be the best
    lower(i) = min(0, max over j of D(i, j) - w(i, j))          0: i is shown not to be better than every other

All of them hold together with 95 % confidence, whichever arm is the best and however many there are. They fail only if the
differences of the true best arm from the others lie above their one-sided limits, and w makes that rare: w is d standard
errors, with d the one-sided quantile of Dunnett's statistic for k - 1 arms against one.

**An arm that is not the best is called behind.** Hsu's lower bound of 0 says less: that the arm is not better than every
other, which equal arms are not either. So the lower bounds use Tukey's quantile, which holds for all pairs together: if all
arms are equal, one of them is called behind in 5 of 100 studies. Dunnett's quantile calls one behind in 80 of 100 tables of 63.
If one arm is shown to be the best, all others are behind it.

**A common standard error.** Differences of arms on one seed share the seed, so their variance is that of the cells of an
(arm x seed) layout: the variance between seeds, averaged over pairs, is twice the error mean square of that layout, with
(k - 1)(n - 1) degrees of freedom. A pair that is noisier than average uses its own variance, so that a noisy arm is not shown
to be the best because of its noise. The part that only more items reduce is added (`twoway`).

Seeds are shared pair by pair: an arm that lost a run widens only its own limits. Below `MIN_SEEDS` seeds nothing is shown, as
in verdicts. After one lost run of six, a pair has five seeds, which suffice for one-sided bounds.

**The arms that may be the best** are a model confidence set (Hansen, Lunde and Nason 2011), which the report shows beside the
bounds. `arch.bootstrap.MCS` over seeds: each seed is one observation of every arm's cost, drawn anew with replacement and without
blocks, since seeds have no order. Arms are removed from the worst on, until the bootstrap shows no difference among those that
are left. The set contains the best arm in about the share of studies that its confidence names.

With few seeds the set is too small. A bootstrap of n seeds underestimates their spread, so the true best falls out of the
set too often; `docs/science.md` shows how often. Below `MIN_SEEDS` there is no set. The set is about these items only: it does
not include the noise between items. Verdicts include both and do not rest on the set; they overrule it. An arm that a verdict
puts behind another one of the set is removed, and an arm that a verdict cannot distinguish from one of the set stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy import special

from lorastudy.stats.twoway import TwoWay, satterthwaite
from lorastudy.stats.verdicts import ALPHA, MIN_SEEDS_ONE_SIDED, Floats
from lorastudy.suite.question import MIN_SEEDS

#: Nodes of the two integrals of Dunnett's distribution; twice as many change its quantiles by less than 1e-5.
_NUM_NODES = 80

_NUM_RESAMPLES = 1000
_SEED = 20111


@dataclass(frozen=True, kw_only=True)
class AgainstBest:
    """One arm's cost less the lowest cost of the others, with simultaneous 95 % bounds; below 0 is better."""

    arm: str
    lower: float
    upper: float

    @property
    def is_best(self) -> bool:
        """Whether no other arm can be better."""
        return self.upper <= 0

    @property
    def is_behind(self) -> bool:
        """Whether another arm is shown to be better."""
        return self.lower >= 0 and not self.is_best

    def is_within(self, margin: float | None) -> bool:
        """Whether the arm is shown to be worse than the best by less than the margin, if at all."""
        return self.is_best or (margin is not None and self.upper < margin)


def against_the_best(
    pairs: Mapping[tuple[str, str], TwoWay], *, arms: Sequence[str], num_seeds: int, alpha: float = ALPHA
) -> Mapping[str, AgainstBest]:
    """Every arm's bounds, from the estimated difference in cost (first minus second) of each pair, each given once.

    `num_seeds` is the study's number of seeds. A pair that is missing, or has too few seeds, counts as undecided. Empty if every
    pair does.
    """
    fewest = MIN_SEEDS if num_seeds < MIN_SEEDS else MIN_SEEDS_ONE_SIDED
    usable = {pair: one for pair, one in pairs.items() if one.num_seeds >= fewest}
    if not usable:
        return {}
    position = {arm: index for index, arm in enumerate(arms)}
    differences = np.full((len(arms), len(arms)), np.nan)
    errors, degrees = _standard_errors(list(usable.values()), num_arms=len(arms))
    table = np.full_like(differences, np.nan)
    for (one, other), estimate, error in zip(usable, usable.values(), errors, strict=True):
        i, j = position[one], position[other]
        differences[i, j], differences[j, i] = estimate.mean, -estimate.mean
        table[i, j] = table[j, i] = error
    lower, upper = bounds_against_the_best(differences, table, degrees=degrees, alpha=alpha)
    return {
        arm: AgainstBest(arm=arm, lower=float(lower[index]), upper=float(upper[index]))
        for arm, index in position.items()
    }


def bounds_against_the_best(
    differences: Floats, standard_errors: Floats, *, degrees: float, alpha: float = ALPHA
) -> tuple[Floats, Floats]:
    """Lower and upper bounds from tables (arms, arms) of differences in cost, row minus column, and their standard errors.

    NaN marks an undecided pair.
    """
    num_arms = differences.shape[-1]
    one_sided = dunnett_quantile(num_arms - 1, degrees=degrees, alpha=alpha) * standard_errors
    all_pairs = tukey_quantile(num_arms, degrees=degrees, alpha=alpha) * standard_errors
    lower, _ = constrained_bounds(differences, all_pairs)
    _, upper = constrained_bounds(differences, one_sided)
    is_best = upper <= 0
    return (np.where(is_best, lower, 0.0) if is_best.any() else lower), upper


def constrained_bounds(differences: Floats, half_widths: Floats) -> tuple[Floats, Floats]:
    """Hsu's bounds from tables (..., arms, arms) of differences in cost, row minus column; NaN marks an undecided pair."""
    num_arms = differences.shape[-1]
    apart = ~np.eye(num_arms, dtype=np.bool_)
    highest = np.where(np.isnan(differences), np.inf, differences + half_widths)
    lowest = np.where(np.isnan(differences), -np.inf, differences - half_widths)
    upper = np.where(apart, highest, -np.inf).max(axis=-1)
    lower = np.where(apart, lowest, -np.inf).max(axis=-1)
    return np.minimum(lower, 0.0), np.maximum(upper, 0.0)


def _standard_errors(estimates: Sequence[TwoWay], *, num_arms: int) -> tuple[Floats, float]:
    """The standard error of each pair, from the common variance or its own if that is larger; and the degrees of freedom."""
    num_seeds = np.array([one.num_seeds for one in estimates])
    own_seeds = np.array([float(one.seed_variance) for one in estimates])
    own_items = np.array([float(one.items_alone) for one in estimates])
    common = (own_seeds * num_seeds).mean() / num_seeds + own_items.mean()
    fewest = int(num_seeds.min())
    groups = [one.num_groups for one in estimates if one.num_groups is not None]
    degrees = satterthwaite(
        seeds=np.array((own_seeds * num_seeds).mean() / fewest),
        items=np.array(own_items.mean()),
        num_seeds=(num_arms - 1) * (fewest - 1) + 1,
        num_groups=min(groups) if groups else None,
    )
    errors: Floats = np.sqrt(np.maximum(common, own_seeds + own_items))
    return errors, float(degrees)


def dunnett_quantile(num_others: int, *, degrees: float, alpha: float = ALPHA) -> float:
    """The d below which all `num_others` differences from one arm stay with probability 1 - alpha.

    T(j) = (Z(j) - Z(0)) / sqrt(2) / S, equally correlated by 1/2. Equal to Dunnett's tables (1955), some of
    which a test holds; for one other arm it is the t quantile.
    """
    return _quantile("dunnett", num_others, degrees=max(1, int(degrees)), alpha=alpha)


def tukey_quantile(num_arms: int, *, degrees: float, alpha: float = ALPHA) -> float:
    """The q, in standard errors, within which all differences between `num_arms` equal arms stay with probability 1 - alpha.

    The studentised range divided by the root of 2. Equal to `scipy.stats.studentized_range`, in a hundredth of its time.
    """
    return _quantile("tukey", num_arms, degrees=max(1, int(degrees)), alpha=alpha)


@lru_cache(maxsize=2048)
def _quantile(of: Literal["dunnett", "tukey"], count: int, *, degrees: int, alpha: float) -> float:
    points, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
    shares = (points + 1) / 2
    # Z over eight standard deviations, S by its quantiles
    shared, density = 8 * points, 8 * weights * np.exp(-((8 * points) ** 2) / 2) / np.sqrt(2 * np.pi)
    spreads = np.sqrt(2 * special.gammaincinv(degrees / 2, shares) / degrees)

    def probability(bound: float) -> float:
        reach = bound * np.sqrt(2) * spreads[:, None]
        if of == "dunnett":
            below = special.ndtr(reach + shared[None, :]) ** count
        else:
            below = count * (special.ndtr(shared[None, :]) - special.ndtr(shared[None, :] - reach)) ** (
                count - 1
            )
        return float((weights / 2) @ below @ density)

    num_tests = count if of == "dunnett" else count * (count - 1)
    low, high = 0.0, float(special.stdtrit(degrees, 1 - alpha / num_tests)) + 1e-6  # Bonferroni's is above it
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < 1 - alpha else (low, middle)
    return high


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
