"""Scores that a later pass gives to stored adapters: which adapters by which metrics, and what comes back.

A pack with a `Scoring` trains nothing. Its worker loads the adapters and measures the metrics. The scores belong to the
runs that trained the adapters.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from lorastudy.suite.metrics import MetricDefinition


@dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """An adapter to score: the attempt that trained it, and its folder relative to that of the pack."""

    attempt: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The metrics to measure, and the adapter of each experiment of the pack, by id."""

    metrics: tuple[MetricDefinition, ...]
    adapters: Mapping[str, StoredAdapter]

    def seen_from(self, folder: Path) -> Self:
        """The same with the adapters' folders relative to the folder of the pack."""
        adapters = {
            key: replace(adapter, folder=os.path.relpath(adapter.folder, folder))
            for key, adapter in self.adapters.items()
        }
        return replace(self, adapters=adapters)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The value that `to_json` wrote."""
        return cls(
            metrics=tuple(MetricDefinition.from_json(metric) for metric in values["metrics"]),
            adapters={key: StoredAdapter(**adapter) for key, adapter in values["adapters"].items()},
        )


@dataclass(frozen=True, kw_only=True)
class FailedRow:
    """A row that a metric gave no number for. `where` is the row's place in its file."""

    where: str
    message: str


@dataclass(frozen=True, kw_only=True)
class AddedScore:
    """One metric of a stored adapter on one split, with its value for every row.

    `attempt` is that of the run that trained the adapter. `value` is the mean of the rows that have a number, weighted
    by `weights` (all ones if `weights` is None); None if no row has one. `metric` is `MetricDefinition.key`. A score of
    another `version` replaces an earlier one.
    """

    experiment_id: str
    attempt: int
    split: str
    metric: str
    version: int
    unit: str
    value: float | None
    items: tuple[float | None, ...]
    weights: tuple[int, ...] | None = None
    failed_rows: tuple[FailedRow, ...] = ()
    source_sha256: str | None = None
    """The hash of the file, for a function of the user's own."""
