"""Shares of items: what one accuracy says about the true one, and whether two of them differ.

For results that come without their items. Two arms that were scored on the same items are paired, and with the items known
their difference would be more precise than here, where they count as two independent samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lorastudy.stats.best import AgainstBest, bounds_against_the_best

ALPHA = 0.05
#: Shares are of hundreds of items, so their variance counts as known and quantiles take many degrees of freedom.
_MANY_DEGREES = 10_000


@dataclass(frozen=True, kw_only=True)
class Share:
    """A number of right answers out of a number of items."""

    num_right: int
    num_items: int

    @property
    def value(self) -> float:
        """The share."""
        return self.num_right / self.num_items

    @property
    def standard_error(self) -> float:
        """sqrt(p (1 - p) / n): for new items of the same kind, with the adapter as it was trained."""
        return float((self.value * (1 - self.value) / self.num_items) ** 0.5)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval, which keeps its coverage at shares near 0 and 1."""
        from statsmodels.stats.proportion import proportion_confint

        low, high = proportion_confint(self.num_right, self.num_items, alpha=ALPHA, method="wilson")
        return (max(0.0, float(low)), min(1.0, float(high)))


@dataclass(frozen=True, kw_only=True)
class ShareDifference:
    """One share minus another, as if of independent items."""

    difference: float
    interval: tuple[float, float]
    """Newcombe's 95 % interval, made of the two Wilson intervals."""
    p: float
    """Two-sided, of the z test with the pooled share."""

    @property
    def is_shown(self) -> bool:
        """Whether the two differ by more than the noise of their items, at the 5 % level for this pair alone."""
        return self.p < ALPHA


def share_of(value: float, num_items: int) -> Share:
    """The share whose value is this mean of right and wrong answers."""
    return Share(num_right=round(value * num_items), num_items=num_items)


def difference(one: Share, other: Share) -> ShareDifference:
    """`one` minus `other`."""
    from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest

    counts, totals = [one.num_right, other.num_right], [one.num_items, other.num_items]
    pooled = sum(counts) / sum(totals)
    # with nothing right, or nothing wrong, on both sides there is no variance to divide by, and no difference
    p = 1.0 if pooled in {0.0, 1.0} else float(proportions_ztest(counts, totals)[1])
    low, high = confint_proportions_2indep(
        counts[0], totals[0], counts[1], totals[1], method="newcomb", compare="diff", alpha=ALPHA
    )
    return ShareDifference(difference=one.value - other.value, interval=(float(low), float(high)), p=p)


def shares_against_the_best(shares: Mapping[str, Share], *, cost_sign: int) -> dict[str, AgainstBest]:
    """Each share's cost less the lowest cost of the others, with simultaneous 95 % bounds (Hsu; see `best`).

    The difference of two shares has the standard error sqrt(p (1 - p) / n + q (1 - q) / m), with Agresti and Caffo's two
    added right and two added wrong answers, which keep it valid near 0 and 1. The bounds hold together, whichever share is the
    best. Among 63 equal shares of 1,319 items, comparing each by itself with the highest one calls 22 different.
    """
    names = list(shares)
    if len(names) < 2:
        return {}
    items = np.array([share.num_items for share in shares.values()]) + 2.0
    right = np.array([share.num_right for share in shares.values()]) + 1.0
    variances = (right / items) * (1 - right / items) / items
    costs = np.array([share.value for share in shares.values()]) * cost_sign
    lower, upper = bounds_against_the_best(
        costs[:, None] - costs[None, :],
        np.sqrt(variances[:, None] + variances[None, :]),
        degrees=_MANY_DEGREES,
        alpha=ALPHA,
    )
    return {
        name: AgainstBest(arm=name, lower=float(lower[index]), upper=float(upper[index]))
        for index, name in enumerate(names)
    }
