"""The mean of paired differences over seeds and items, and how far it may be off for new seeds and new items.

With d(s, i) the difference of two arms on item i with seed s, and w(i) the item's weight (its tokens), the estimate
is the weighted mean over items, averaged over seeds. Its variance has a part that more seeds take away, a part that
only more items take away, and a part that belongs to single cells:

    d(s, i) = true difference + seed(s) + item(i) + cell(s, i)

As in two-way clustering (Cameron, Gelbach and Miller 2011), the variance between seed means and that between item
means are added, and what both contain, that of the cells, is taken off once:

    V = V(seeds) + I,    I = V(items) - V(cells), or 0 where that is negative

    V(seeds) = sum_s (dbar(s) - dbar)**2 / (n (n - 1))
    V(items) = m / (m - 1) sum_i (w(i) (dbar(i) - dbar) / W)**2                      W = sum_i w(i)
    V(cells) = m / (m - 1) sum_si (w(i) r(s, i) / W)**2 / (n (n - 1))                r: what both means leave over

With equal weights these are the mean squares of a two-way analysis of variance over n m. Items enter as the ratio
estimator that a token-weighted mean is.

**Rows that belong together.** Rows of one prompt, or near copies of one, are not new evidence: what one arm does better on
the first it does better on the rest. Where groups of rows are known, a group takes the place of the item i: its terms
w(i) (dbar(i) - dbar) and w(i) r(s, i) are added up before they are squared, and m is the number of groups. That is the
cluster-robust variance, whatever the correlation within a group (Liang and Zeger 1986). Rows alone in their group change
nothing. With clusters of five that nobody takes into account, equal arms are told apart in up to 40 % of studies.

The interval takes t with Satterthwaite's degrees of freedom, near n - 1 where
seeds are the noise and near m - 1 where items are:

    (k V(seeds) + I)**2 / ((k V(seeds))**2 / (n - 1) + I**2 / (m - 1))

with k = (n + 3) / (n - 1), which is Satterthwaite's own 1 for many seeds. A few seeds that happen to agree make both the
variance and their share of it too small, so that a mean which is off by luck also claims degrees that it does not have; at
the small levels that Holm asks for, k = 1 then rejects too often. `docs/log.md` tells of the alternatives, a bootstrap
among them.

The interval is exact for no noise and near for most: for few seeds the t distribution wants roughly symmetric noise between
seeds, for few items roughly symmetric weighted differences. `docs/science.md` says how far it is off where they are not.

Arrays end in the axes (seeds, items); whatever stands before them is a batch of studies.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special  # not `stats`, which takes half a second to import

from lorastudy.stats.verdicts import ALPHA, Floats


@dataclass(frozen=True, kw_only=True)
class TwoWay:
    """An estimated mean difference with the parts of its variance, for one study or a batch of them.

    Without items (`num_items` is None) only the seeds' part is known, and what follows is about these items.
    """

    mean: Floats
    seed_variance: Floats
    """V(seeds): of the mean, that is divided by the number of seeds already."""
    item_variance: Floats
    """V(items)."""
    cell_variance: Floats
    """V(cells)."""
    num_seeds: int
    num_items: int | None
    num_groups: int | None
    """Of items that are independent of each other; as many as items where each stands alone."""

    @property
    def variance(self) -> Floats:
        """Of the mean difference, over new seeds and new items."""
        return self.seed_variance + self.items_alone

    @property
    def items_alone(self) -> Floats:
        """I: what only more items take away, whatever the seeds."""
        left: Floats = np.maximum(self.item_variance - self.cell_variance, 0.0)
        return left

    @property
    def standard_error(self) -> Floats:
        """The square root of the variance."""
        return np.sqrt(self.variance)

    @property
    def degrees_of_freedom(self) -> Floats:
        """Satterthwaite's with the seeds' part raised, at least 1."""
        return satterthwaite(
            seeds=self.seed_variance,
            items=self.items_alone,
            num_seeds=self.num_seeds,
            num_groups=self.num_groups,
        )

    def interval(self, *, alpha: float = ALPHA) -> tuple[Floats, Floats]:
        """The two-sided interval of confidence 1 - alpha."""
        half = special.stdtrit(self.degrees_of_freedom, 1 - alpha / 2) * self.standard_error
        return self.mean - half, self.mean + half

    def p_value(self) -> Floats:
        """Two-sided, that the true difference is 0."""
        p: Floats = 2 * special.stdtr(self.degrees_of_freedom, -np.abs(self.mean) / self.standard_error)
        return p

    def p_below(self, bound: npt.ArrayLike) -> Floats:
        """One-sided, that the true difference is at least the bound: small where the mean lies well below it."""
        t = (self.mean - np.asarray(bound)) / self.standard_error
        p: Floats = special.stdtr(self.degrees_of_freedom, t)
        return p


def two_way(differences: Floats, weights: Floats, *, groups: npt.ArrayLike | None = None) -> TwoWay:
    """The estimate from differences by seed and item, and the weight of each item; at least two of both.

    `groups` numbers the group of each item, the same in a whole batch of studies; at least two of them too.
    """
    num_seeds, num_items = differences.shape[-2:]
    shares = weights / weights.sum(axis=-1, keepdims=True)
    by_seed = (differences * shares[..., None, :]).sum(axis=-1)
    by_item = differences.mean(axis=-2)
    mean = by_seed.mean(axis=-1)
    left_over = differences - by_seed[..., :, None] - by_item[..., None, :] + mean[..., None, None]
    item_parts = _by_group(shares * (by_item - mean[..., None]), groups)
    cell_parts = _by_group(shares[..., None, :] * left_over, groups)
    num_groups = item_parts.shape[-1]
    correction = num_groups / (num_groups - 1)
    return TwoWay(
        mean=mean,
        seed_variance=by_seed.var(axis=-1, ddof=1) / num_seeds,
        item_variance=correction * (item_parts**2).sum(axis=-1),
        cell_variance=correction * (cell_parts**2).sum(axis=(-1, -2)) / (num_seeds * (num_seeds - 1)),
        num_seeds=num_seeds,
        num_items=num_items,
        num_groups=num_groups,
    )


def _by_group(values: Floats, groups: npt.ArrayLike | None) -> Floats:
    """Sums over the items of each group."""
    if groups is None:
        return values
    numbers = np.asarray(groups)
    order = np.argsort(numbers, kind="stable")
    begins = np.flatnonzero(np.diff(numbers[order], prepend=numbers[order][0] - 1))
    sums: Floats = np.add.reduceat(values[..., order], begins, axis=-1)
    return sums


def seeds_only(differences: npt.ArrayLike) -> TwoWay:
    """The estimate from one difference for each seed: the ordinary t interval, about these items only."""
    values = np.asarray(differences, dtype=np.float64)
    num_seeds = values.shape[-1]
    absent = np.zeros(values.shape[:-1])
    return TwoWay(
        mean=values.mean(axis=-1),
        seed_variance=values.var(axis=-1, ddof=1) / num_seeds,
        item_variance=absent,
        cell_variance=absent,
        num_seeds=num_seeds,
        num_items=None,
        num_groups=None,
    )


def satterthwaite(
    *, seeds: Floats, items: Floats, num_seeds: npt.ArrayLike, num_groups: int | None
) -> Floats:
    """Degrees of freedom of the sum of two estimated parts, at least 1; the seeds' part counts k times.

    `num_groups` is the number of independent items.
    """
    n = np.asarray(num_seeds)
    raised = seeds * (n + 3) / (n - 1)
    spread = raised**2 / (n - 1) + (0.0 if num_groups is None else items**2 / (num_groups - 1))
    degrees: Floats = np.maximum(1.0, (raised + items) ** 2 / np.maximum(spread, np.finfo(float).tiny))
    return degrees
