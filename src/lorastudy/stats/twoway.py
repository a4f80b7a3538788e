"""Differences of two arms by seed and item, their mean, and how far it may be off for new seeds and new items.

With d(s, i) the difference of two arms on item i with seed s, and w(i) the item's weight (its tokens), the estimate is the
weighted mean over items, averaged over seeds. Its variance has a component that more seeds reduce, one that only more items
reduce, and one of single cells:

    d(s, i) = true difference + seed(s) + item(i) + cell(s, i)

As in two-way clustering (Cameron, Gelbach and Miller 2011), the variance between seed means and that between item means are
added, and the variance of the cells, which both contain, is subtracted once:

    V = V(seeds) + I,    I = V(items) - V(cells), or 0 if that is negative

    V(seeds) = sum_s (dbar(s) - dbar)**2 / (n (n - 1))
    V(items) = m / (m - 1) sum_i (w(i) (dbar(i) - dbar) / W)**2                      W = sum_i w(i)
    V(cells) = m / (m - 1) sum_si (w(i) r(s, i) / W)**2 / (n (n - 1))                r: residual of both means

With equal weights these are the mean squares of a two-way analysis of variance divided by n m. Items enter as in the ratio
estimator that a token-weighted mean is.

**Groups of rows.** Rows of one prompt, or near copies of one, are not independent evidence: an arm that does better on the first
does better on the rest. If groups of rows are known, a group takes the place of the item i: its terms w(i) (dbar(i) - dbar) and
w(i) r(s, i) are summed before they are squared, and m is the number of groups. That is the cluster-robust variance, whatever the
correlation within a group (Liang and Zeger 1986). Groups of one row change nothing. If clusters of five are ignored, equal arms
differ "significantly" in up to 40 % of studies.

The interval uses t with Satterthwaite's degrees of freedom, near n - 1 if seeds are the noise and near m - 1 if items are:

    (k V(seeds) + I)**2 / ((k V(seeds))**2 / (n - 1) + I**2 / (m - 1))

with k = (n + 3) / (n - 1); for many seeds that is 1, Satterthwaite's own value. If a few seeds agree by luck, both the variance
and the seeds' part of it are too small, and a mean that is off by luck claims degrees of freedom that it does not have. At the
small levels that Holm uses, k = 1 then rejects too often. `docs/log.md` describes the alternatives, a bootstrap among them.

The interval is not exact, but close for most noise: with few seeds the t distribution needs roughly symmetric noise between
seeds, with few items roughly symmetric weighted differences. `docs/science.md` shows how far it is off otherwise.

Arrays end in the axes (seeds, items); leading axes are a batch of studies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special  # not `stats`, which takes half a second to import

from lorastudy.stats.study import CHOOSING_SPLIT
from lorastudy.stats.verdicts import ALPHA, Floats
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.eval_points import is_on_the_way


@dataclass(frozen=True, kw_only=True)
class TwoWay:
    """An estimated mean difference with the components of its variance, for one study or a batch of them.

    Without items (`num_items` is None) only the seeds' component is known, and the interval covers these items only.
    """

    mean: Floats
    seed_variance: Floats
    """V(seeds), of the mean: already divided by the number of seeds."""
    item_variance: Floats
    """V(items)."""
    cell_variance: Floats
    """V(cells)."""
    num_seeds: int
    num_items: int | None
    num_groups: int | None
    """Number of independent groups of items; the number of items if each stands alone."""

    @property
    def variance(self) -> Floats:
        """Variance of the mean difference for new seeds and new items."""
        return self.seed_variance + self.items_alone

    @property
    def items_alone(self) -> Floats:
        """I: the component that only more items reduce."""
        left: Floats = np.maximum(self.item_variance - self.cell_variance, 0.0)
        return left

    @property
    def standard_error(self) -> Floats:
        """The square root of the variance."""
        return np.sqrt(self.variance)

    @property
    def degrees_of_freedom(self) -> Floats:
        """Satterthwaite's, with the seeds' component raised by k; at least 1."""
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
        """Two-sided p that the true difference is 0."""
        p: Floats = 2 * special.stdtr(self.degrees_of_freedom, -np.abs(self.mean) / self.standard_error)
        return p

    def p_below(self, bound: npt.ArrayLike) -> Floats:
        """One-sided p that the true difference is at least the bound: small if the mean lies well below it."""
        t = (self.mean - np.asarray(bound)) / self.standard_error
        p: Floats = special.stdtr(self.degrees_of_freedom, t)
        return p


def two_way(differences: Floats, weights: Floats, *, groups: npt.ArrayLike | None = None) -> TwoWay:
    """The estimate from differences by seed and item, and the weight of each item; at least two seeds and two items.

    `groups` gives the group number of each item, the same for a whole batch of studies; at least two groups.
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
    """The estimate from one difference for each seed: the ordinary t interval, for these items only."""
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
    """Degrees of freedom of the sum of two estimated components, at least 1; the seeds' component counts k times.

    `num_groups` is the number of independent items.
    """
    n = np.asarray(num_seeds)
    raised = seeds * (n + 3) / (n - 1)
    spread = raised**2 / (n - 1) + (0.0 if num_groups is None else items**2 / (num_groups - 1))
    degrees: Floats = np.maximum(1.0, (raised + items) ** 2 / np.maximum(spread, np.finfo(float).tiny))
    return degrees


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """A score's value for each held-out item, and the items' weights; None if all weigh the same.

    An item for which the metric failed has no value. A pair of arms is compared on the items that all its runs have.
    """

    values: tuple[float | None, ...]
    weights: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    """A group number for each item: items of one group are not independent evidence. None if every item stands alone."""


#: By (experiment id, split, metric). A key that is missing was stored without items, or not at all.
ItemTable = Mapping[tuple[str, str, str], ItemScores]


@dataclass(frozen=True, kw_only=True)
class PairedItems:
    """Differences by (seed, item), and the weight and the group of each item."""

    differences: Floats
    weights: Floats
    groups: tuple[int, ...] | None = None
    has_gaps: bool = False
    """Whether items were left out that some run has no value for."""

    @property
    def by_seed(self) -> list[float]:
        """The weighted mean over the items, for each seed."""
        means: list[float] = (self.differences @ self.weights / self.weights.sum()).tolist()
        return means


def with_groups(
    items: Mapping[str, tuple[tuple[float | None, ...], tuple[int, ...] | None]],
    results: Sequence[ExperimentResult],
    *,
    split: str,
) -> dict[str, ItemScores]:
    """Scores by item, for each experiment, from stored values and weights and the groups that the runs recorded."""
    groups = {result.experiment_id: groups_of(result, split=split) for result in results}
    return {
        experiment_id: ItemScores(
            values=values, weights=weights, groups=_of_the_first(groups[experiment_id], len(values))
        )
        for experiment_id, (values, weights) in items.items()
    }


def groups_of(result: ExperimentResult, *, split: str) -> tuple[int, ...] | None:
    """Which rows of a split share a prompt. Scores before and during training are on the same rows as those after it."""
    rows = CHOOSING_SPLIT if is_on_the_way(split) else split.removesuffix("_before")
    return next((summary.groups for summary in result.data if summary.split == rows), None)


def _of_the_first(groups: tuple[int, ...] | None, num_items: int) -> tuple[int, ...] | None:
    """The groups of the rows that exact match scores, which are the first ones. None if no two of them share a prompt."""
    if groups is None or len(groups) < num_items:
        return None
    scored = groups[:num_items]
    return None if len(set(scored)) == num_items else scored


def paired_items(
    ours: Sequence[ItemScores | None], theirs: Sequence[ItemScores | None]
) -> PairedItems | None:
    """The differences of two arms over their common seeds, in order of seed."""
    return combined_items([ours, theirs], factors=(1.0, -1.0))


def combined_items(
    sides: Sequence[Sequence[ItemScores | None]], *, factors: Sequence[float]
) -> PairedItems | None:
    """The sum over the sides of factor x score, by seed and item; every side lists the same seeds in the same order.

    Items that a run has no value for are left out. None if a run has no items, if `common_weights` finds none, or if fewer
    than two items remain; `has_gaps` tells the last case from the others.
    """
    scores = [score for side in sides for score in side]
    known = [score for score in scores if score is not None]
    weights = common_weights(known) if len(known) == len(scores) else None
    if weights is None:
        return None
    values = np.array([score.values for score in known], dtype=np.float64)  # None becomes NaN
    whole: npt.NDArray[np.bool_] = np.asarray(~np.isnan(values).any(axis=0))
    differences = np.tensordot(np.array(factors), values.reshape(len(sides), -1, len(weights)), axes=1)
    groups = known[0].groups
    if whole.all():
        return PairedItems(differences=differences, weights=weights, groups=groups)
    if groups is not None:
        groups = tuple(np.array(groups)[whole].tolist())
    if whole.sum() < 2 or (groups is not None and len(set(groups)) < 2):
        return None
    return PairedItems(
        differences=differences[..., whole], weights=weights[whole], groups=groups, has_gaps=True
    )


def has_gaps(sides: Sequence[Sequence[ItemScores | None]]) -> bool:
    """Whether some run has no value for some item, so that the means of two runs may be over different items."""
    return any(None in score.values for side in sides for score in side if score is not None)


def common_weights(scores: Sequence[ItemScores]) -> Floats | None:
    """The weights of the items that all these runs were scored on.

    None if the items of the runs differ in number, weights or groups: then items cannot be separated from seeds. None also for
    a single item or a single group of items, which say nothing about new items.
    """
    if len({(len(score.values), score.weights, score.groups) for score in scores}) != 1:
        return None
    num_items, weights, groups = len(scores[0].values), scores[0].weights, scores[0].groups
    if num_items < 2 or (groups is not None and len(set(groups)) < 2):
        return None
    return np.ones(num_items) if weights is None else np.array(weights, dtype=np.float64)
