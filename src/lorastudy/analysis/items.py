"""Scores item by item, and the differences of two arms laid out by seed and item."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorastudy.analysis.significance import Floats
from lorastudy.analysis.splits import stored_split
from lorastudy.analysis.study import Study
from lorastudy.analysis.summary import Metric
from lorastudy.tracker import ExperimentTracker


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """A score's value for each held-out item, and the items' weights; None where all count the same."""

    values: tuple[float, ...]
    weights: tuple[int, ...] | None = None


#: By (experiment id, split, metric). What is not in it was stored without items, or not at all.
ItemTable = Mapping[tuple[str, str, str], ItemScores]


@dataclass(frozen=True, kw_only=True)
class PairedItems:
    """Differences by (seed, item), and the weight of each item."""

    differences: Floats
    weights: Floats


def stored_items(tracker: ExperimentTracker, study: Study, *, metrics: Sequence[Metric]) -> ItemTable:
    """Scores item by item of these metrics, of the completed runs."""
    table: dict[tuple[str, str, str], ItemScores] = {}
    ids = [result.experiment_id for result in study.completed]
    for metric in metrics:
        split = stored_split(metric.split, study)
        found = tracker.get_all_items(ids, split=split, metric=metric.name)
        for experiment_id, (values, weights) in found.items():
            table[experiment_id, split, metric.name] = ItemScores(values=values, weights=weights)
    return table


def paired_items(
    ours: Sequence[ItemScores | None], theirs: Sequence[ItemScores | None]
) -> PairedItems | None:
    """The differences of two arms over their common seeds, in the seeds' order."""
    return combined_items([ours, theirs], factors=(1.0, -1.0))


def combined_items(
    sides: Sequence[Sequence[ItemScores | None]], *, factors: Sequence[float]
) -> PairedItems | None:
    """The sum of factor times score over the sides, by seed and item; each side in the order of the same seeds.

    None where a run has no items, or where `common_weights` finds none.
    """
    scores = [score for side in sides for score in side]
    known = [score for score in scores if score is not None]
    weights = common_weights(known) if len(known) == len(scores) else None
    if weights is None:
        return None
    values = np.array([score.values for score in known]).reshape(len(sides), -1, len(weights))
    return PairedItems(differences=np.tensordot(np.array(factors), values, axes=1), weights=weights)


def common_weights(scores: Sequence[ItemScores]) -> Floats | None:
    """The weights of the items that all these runs were scored on.

    None where not all have the same ones (as many, of the same weights): then items cannot be told apart from seeds. With
    a single item nothing can be said about new ones, so None too.
    """
    if len({(len(score.values), score.weights) for score in scores}) != 1:
        return None
    num_items, weights = len(scores[0].values), scores[0].weights
    if num_items < 2:
        return None
    return np.ones(num_items) if weights is None else np.array(weights, dtype=np.float64)
