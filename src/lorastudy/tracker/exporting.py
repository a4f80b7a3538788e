"""The store as one JSON file, for those who would rather not write SQL."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lorastudy
from lorastudy.tracker.views import ExperimentResult, ImportedResult, SuiteSummary

FORMAT_VERSION = 1


def export(
    path: Path,
    *,
    suites: Sequence[SuiteSummary],
    experiments: Sequence[ExperimentResult],
    imported: Sequence[ImportedResult] = (),
) -> None:
    """Write suites and experiments with their current runs; equal stores give equal bytes.

    `scores` is a list of `{"split", "metric", "value", "unit", "version", "num_items"}`. The values of single
    items and steps stay in the store. Results of other tools stand apart under `imported`, where there are any.
    """
    body: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "lorastudy": lorastudy.__version__,
        "suites": [dataclasses.asdict(suite) for suite in suites],
        "experiments": [_plain(experiment) for experiment in experiments],
    }
    if imported:
        body["imported"] = [{"result_id": result.id, **dataclasses.asdict(result)} for result in imported]
    path.parent.mkdir(parents=True, exist_ok=True)
    # written whole beside it and then renamed, so that an export that is cut short leaves the old one
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(
        json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    partial.replace(path)


def _plain(experiment: ExperimentResult) -> dict[str, Any]:
    values = dataclasses.asdict(experiment)
    values["scores"] = [
        {"split": split, "metric": metric, **score} for (split, metric), score in values["scores"].items()
    ]
    return values
