"""Scores by item, and the differences of two arms by seed and item."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorastudy.stats.study import CHOOSING_SPLIT
from lorastudy.stats.verdicts import Floats
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.question import rung_of


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """A score's value for each held-out item, and the items' weights; None if all weigh the same."""

    values: tuple[float, ...]
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


def with_groups(
    items: Mapping[str, tuple[tuple[float, ...], tuple[int, ...] | None]],
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
    rows = split.removesuffix("_before") if rung_of(split) is None else CHOOSING_SPLIT
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

    None if a run has no items, or if `common_weights` finds none.
    """
    scores = [score for side in sides for score in side]
    known = [score for score in scores if score is not None]
    weights = common_weights(known) if len(known) == len(scores) else None
    if weights is None:
        return None
    values = np.array([score.values for score in known]).reshape(len(sides), -1, len(weights))
    return PairedItems(
        differences=np.tensordot(np.array(factors), values, axes=1), weights=weights, groups=known[0].groups
    )


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
