"""The store as one JSON or CSV file that you can pass on, for use without SQL."""

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorastudy.protocol.files import replacing
from lorastudy.store.views import ExperimentResult, ImportedResult, SuiteSummary
from lorastudy.suite.safe_text import Privacy
from lorastudy.version import __version__

FORMAT_VERSION = 1

#: Characters that a spreadsheet takes for the start of a formula, in narrow and wide form, at the start of a cell. A
#: cell may begin at the start of the text, and after a cell separator of another locale: where that is ";", a comma's
#: quotes protect nothing.
_FORMULA_START = re.compile(r"(?:^|(?<=[;\t\r\n]))(?=[ ]*[=+\-@|%\t\r\uff1d\uff0b\uff0d\uff20])")
_FAILURE_KEYS = ("failure_message", "traceback")


def export_json(
    path: Path,
    *,
    suites: Sequence[SuiteSummary],
    experiments: Sequence[ExperimentResult],
    imported: Sequence[ImportedResult] = (),
    privacy: Privacy,
) -> None:
    """Write suites and experiments with their current runs. Equal stores give equal bytes.

    `scores` is a list of `{"split", "metric", "value", "unit", "version", "num_items", "step", "train_seconds"}`. The
    last two say when the adapter was scored; they are null at the end of the training and before it. `failed_rows`, if
    a metric failed for some, is a list of `{"split", "metric", "num_rows", "version", "rows"}`. `trivial` is a list such
    as `scores`, with the predictor. The values of single items and steps are not exported. Results of other tools are
    apart, under `imported`, if there are any.
    """
    body: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "lorastudy": __version__,
        "suites": [_hidden(dataclasses.asdict(suite), privacy) for suite in suites],
        "experiments": [_with_listed_scores(experiment, privacy) for experiment in experiments],
    }
    if imported:
        body["imported"] = [
            {"result_id": result.id, **_hidden(dataclasses.asdict(result), privacy)} for result in imported
        ]
    _write(path, json.dumps(body, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def export_csv(path: Path, *, experiments: Sequence[ExperimentResult], privacy: Privacy) -> None:
    """Write one line for each experiment. A missing value is an empty cell.

    Columns have the names of the JSON file, by their path: `settings.lora_rank`, `scores.eval.loss`. Text that a
    spreadsheet would run as a formula gets an apostrophe in front.
    """
    rows = [dict(_cells(experiment, privacy)) for experiment in experiments]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerows(rows)
    _write(path, file.getvalue())


def defused(value: Any) -> Any:
    """Text that no spreadsheet runs as a formula; any other value unchanged."""
    return _FORMULA_START.sub("'", value) if isinstance(value, str) else value


def _with_listed_scores(experiment: ExperimentResult, privacy: Privacy) -> dict[str, Any]:
    values = _plain(experiment, privacy)
    values["scores"] = [
        {"split": split, "metric": metric, **score} for (split, metric), score in values["scores"].items()
    ]
    failed_rows = values.pop("failed_rows")
    if failed_rows:
        values["failed_rows"] = [
            {"split": split, "metric": metric, **failed} for (split, metric), failed in failed_rows.items()
        ]
    return values


def row_of(experiment: ExperimentResult) -> dict[str, Any]:
    """All values of an experiment by the columns of the CSV file, unchanged; None if absent."""
    values = dataclasses.asdict(experiment)
    for score in values["trivial"]:
        del score["items"], score["weights"]
    return dict(_columns(values))


def _cells(experiment: ExperimentResult, privacy: Privacy) -> Iterator[tuple[str, Any]]:
    for key, value in _columns(_plain(experiment, privacy)):
        yield key, "" if value is None else str(value) if isinstance(value, bool) else defused(value)


def _columns(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    scores, trivial, failed = (values.pop(name) for name in ("scores", "trivial", "failed_rows"))
    data = {summary.pop("split"): summary for summary in values.pop("data")}
    yield from _flat({**values, "data": data})
    for (split, metric), score in scores.items():
        yield f"scores.{split}.{metric}", score["value"]
    for (split, metric), of_score in failed.items():
        yield f"num_failed_rows.{split}.{metric}", len(of_score["rows"])
    for score in trivial:
        yield f"trivial.{score['split']}.{score['predictor']}.{score['metric']}", score["value"]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by their path. A list becomes text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield prefix + key, " ".join(map(str, value))
        else:
            yield prefix + key, value


def _plain(experiment: ExperimentResult, privacy: Privacy) -> dict[str, Any]:
    values = dataclasses.asdict(experiment)
    for key in _FAILURE_KEYS:
        values[key] = None if values[key] is None else privacy.hidden_failure(values[key])
    for score in values["trivial"]:
        score["num_items"] = len(score.pop("items"))
        del score["weights"]
    return {key: value if key in _FAILURE_KEYS else _hidden(value, privacy) for key, value in values.items()}


def _hidden(value: Any, privacy: Privacy) -> Any:
    if isinstance(value, str):
        return privacy.hidden(value)
    if isinstance(value, Mapping):
        return {key: _hidden(item, privacy) for key, item in value.items()}
    return [_hidden(item, privacy) for item in value] if isinstance(value, list | tuple) else value


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", newline="")
