"""Rows of a CSV or Parquet table (or JSON lines) as results, by a mapping of the table's columns.

The mapping gives the columns their meaning. It is a small YAML file, flags on the command line, or both:

    columns: {lora_rank: rank, learning_rate: lr, seed: seed}     our word: the table's column
    constants: {base_model: org/model}                            the same for every row
    metrics:                                                      the first is the primary one
      accuracy: {column: test_acc, direction: higher, unit: share, num_items: 1319}
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lorastudy.data.sources import Row, read_rows
from lorastudy.errors import DataError, StudyError
from lorastudy.imports import refuse
from lorastudy.lint.rates import METHOD_KEY
from lorastudy.store.views import ImportedResult, ImportedScore
from lorastudy.suite.levels import FOREIGN_NAMES
from lorastudy.suite.names import label
from lorastudy.suite.settings import TARGET_PRESETS, Settings
from lorastudy.suite.wording import checked, did_you_mean, shown
from lorastudy.suite.yaml_reading import Problems, plain, read_yaml, resolve_scalar

#: Words besides the settings. `method` names a method other than LoRA: `full` for full fine-tuning.
LABELS = ("arm", "seed", METHOD_KEY, "dataset", "environment")

COSTS = (
    "num_trainable_parameters", "num_total_parameters", "adapter_bytes", "peak_memory_bytes", "train_seconds",
    "step_seconds",
)  # fmt: skip

KNOWN = tuple(dict.fromkeys((*LABELS, *COSTS, *Settings.model_fields)))

_SOURCES = ("base_model", "dataset", "environment")

#: Cells of the primary metric that mean a diverged run. An empty cell means the same.
_DIVERGED = frozenset({"diverged", "nan", "inf", "+inf", "-inf", "infinity", "-infinity", ""})

#: Usual names of a base model's column. If it is not mapped, results of several models would be pooled.
_BASE_MODEL_COLUMNS = frozenset({"base_model", "model", "model_name", "model_id", "base_model_name_or_path"})

#: Columns in which Optuna, Ray and Weights & Biases record how a run ended, and their values for an unfinished run.
_STATE_COLUMNS = frozenset({"state", "status", "trial_state"})

_UNFINISHED = frozenset(
    ["pruned", "fail", "failed", "running", "waiting", "paused", "pending", "error", "killed", "crashed"]
)


class MetricColumn(BaseModel):
    """One metric: its column, its good direction, and the number of items that it averages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str
    direction: Literal["higher", "lower"]
    unit: str = ""
    num_items: int | str | None = None
    """A number, or the name of the column that holds it."""


class TableMapping(BaseModel):
    """The meaning of a table's columns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: dict[str, str] = {}
    constants: dict[str, Any] = {}
    metrics: dict[str, MetricColumn] = {}
    tool: str = "table"


def read_mapping(
    file: Path | None,
    *,
    columns: Sequence[str] = (),
    constants: Sequence[str] = (),
    metrics: Sequence[str] = (),
) -> TableMapping:
    """The mapping in the file. Flags override it.

    `columns` are `key=column`, `constants` are `key=value`, `metrics` are `column:direction[:num_items]`.

    Raises:
        StudyError: a word is unknown, or there is no metric.
    """
    where = "--column" if file is None else str(file)
    base = TableMapping() if file is None else _checked_mapping(_document(file), where=where)
    flags = _checked_mapping(
        {
            "columns": dict(_pair(pair, flag="--column") for pair in columns),
            "constants": dict(_pair(pair, flag="--set") for pair in constants),
            "metrics": dict(_metric(text) for text in metrics),
        },
        where="flags",
    )
    mapping = TableMapping(
        columns={**base.columns, **flags.columns},
        constants={**base.constants, **flags.constants},
        metrics={**base.metrics, **flags.metrics},
        tool=base.tool,
    )
    for key in (*mapping.columns, *mapping.constants):
        if key not in KNOWN:
            near = (
                f" (did you mean {FOREIGN_NAMES[key]}?)" if key in FOREIGN_NAMES else did_you_mean(key, KNOWN)
            )
            raise StudyError(f"{where}: {key}: is not a word that a result is described with{near}")
    if not mapping.metrics:
        raise StudyError(
            "no metric is named; say which column holds one and which direction is good: --metric test_acc:higher:1319"
        )
    return mapping


def _document(file: Path) -> dict[str, Any]:
    problems = Problems()
    node = read_yaml(file, problems)
    problems.raise_if_any()
    value = None if node is None else plain(node)
    if not isinstance(value, Mapping):
        raise StudyError(f"{file}: must be a mapping with columns and metrics")
    return dict(value)


def _checked_mapping(body: Mapping[str, Any], *, where: str) -> TableMapping:
    try:
        return TableMapping.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise StudyError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error


def _pair(text: str, *, flag: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key or not value:
        raise StudyError(f"{flag} {text}: write it as key=value, such as {flag} lora_rank=rank")
    return key, value


def _metric(text: str) -> tuple[str, dict[str, Any]]:
    column, *rest = text.split(":")
    if not column or not 1 <= len(rest) <= 2 or rest[0] not in {"higher", "lower"}:
        raise StudyError(
            f"--metric {text}: write it as column:higher or column:lower, with :items where it is a share of items"
        )
    values: dict[str, Any] = {"column": column, "direction": rest[0]}
    if len(rest) == 2:
        values |= {"num_items": int(rest[1]) if rest[1].isdigit() else rest[1], "unit": "share"}
    return column, values


@dataclass(frozen=True, kw_only=True)
class ReadTable:
    """A table's results, and its columns that are unused because they are not mapped."""

    results: tuple[ImportedResult, ...]
    unused_columns: tuple[str, ...]


def read_table(file: Path, *, suite_name: str, mapping: TableMapping) -> ReadTable:
    """One result for each row, in their order.

    An empty cell is an absent value. Only in the first metric it means a diverged run, as NaN and infinity do. Without
    a column for `arm`, the settings that differ between rows name the arm.

    Raises:
        DataError: a column is missing, or the base model's column is not mapped; else every bad row, with its line.
    """
    rows = read_rows(str(file))
    _check_columns(file, rows[0], mapping=mapping)
    unused = tuple(str(column) for column in rows[0].values if column not in _used_columns(mapping))
    _check_base_model(file, unused, mapping=mapping)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    results: list[ImportedResult] = []
    problems: list[str] = []
    for row in rows:
        try:
            results.append(_result(row, file, suite_name=suite_name, mapping=mapping, digest=digest))
        except ValueError as error:
            problems.append(f"{row.where}: {error}")
    refuse(problems)
    named = _named(results)
    refuse(_twice(named, unused=unused))
    return ReadTable(results=tuple(named), unused_columns=unused)


def _used_columns(mapping: TableMapping) -> list[str]:
    used = [*mapping.columns.values()]
    for metric in mapping.metrics.values():
        used += [metric.column, *([metric.num_items] if isinstance(metric.num_items, str) else [])]
    return used


def _check_base_model(file: Path, unused: Sequence[str], *, mapping: TableMapping) -> None:
    named = next((column for column in unused if column.casefold() in _BASE_MODEL_COLUMNS), None)
    if named is not None and not {"base_model"} & {*mapping.columns, *mapping.constants}:
        raise DataError(
            f"{file}: the column {named!r} looks like the base model and is not mapped, so results of several models would "
            f"stand in one ranking; say --column base_model={named}"
        )


def _check_columns(file: Path, row: Row, *, mapping: TableMapping) -> None:
    for column in _used_columns(mapping):
        if column not in row.values:
            near = did_you_mean(column, map(str, row.values)) or f"; it has {', '.join(map(str, row.values))}"
            raise DataError(f"{file}: has no column {column!r}{near}")


def _result(row: Row, file: Path, *, suite_name: str, mapping: TableMapping, digest: str) -> ImportedResult:
    given = {
        **mapping.constants,
        **{key: row.values[column] for key, column in mapping.columns.items()},
    }
    values = {key: _value(key, given[key]) for key in KNOWN if given.get(key) not in (None, "")}
    settings = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if key in Settings.model_fields or key == METHOD_KEY
    }
    _refuse_unfinished(row)
    primary = next(iter(mapping.metrics.values()))
    is_diverged = _is_diverged(row.values[primary.column])
    scores = [
        None if is_diverged and metric is primary else _score(name, metric, row=row)
        for name, metric in mapping.metrics.items()
    ]
    measured = tuple(score for score in scores if score is not None)
    return ImportedResult(
        suite_name=suite_name,
        arm=str(values.get("arm", "")),
        seed=values.get("seed"),
        settings=settings,
        sources={key: str(values[key]) for key in _SOURCES if key in values},
        scores=measured,
        costs={key: values[key] for key in COSTS if key in values},
        tool=mapping.tool,
        file=file.name,
        file_sha256=digest,
        location=row.where.replace(str(file), file.name, 1),
        is_diverged=is_diverged,
    )


def _refuse_unfinished(row: Row) -> None:
    """Refuse a pruned or unfinished run: its score belongs to some step on the way and is not a result.

    Raises:
        ValueError: the row is such a run; it names the column and its value.
    """
    for column, cell in row.values.items():
        if str(column).casefold() in _STATE_COLUMNS and str(cell).strip().casefold() in _UNFINISHED:
            raise ValueError(
                f"{column} is {shown(cell)}: a run that did not finish has no final score; leave such rows out"
            )


def _is_diverged(cell: Any) -> bool:
    if isinstance(cell, float):
        return not math.isfinite(cell)
    return cell is None or (isinstance(cell, str) and cell.strip().casefold() in _DIVERGED)


def _value(key: str, given: Any) -> Any:
    """A cell as the key's type.

    Raises:
        ValueError: the cell does not fit; it names the key and what it takes.
    """
    value = resolve_scalar(given.strip()) if isinstance(given, str) else given
    if key in Settings.model_fields and key not in LABELS:
        try:
            return checked(Settings, key, value=_modules(value) if key == "target_modules" else value)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    if key == "seed":
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"seed: must be a whole number of at least 0, not {shown(given)}")
        return value
    return _number(value, what=key) if key in COSTS else str(given).strip()


def _modules(value: Any) -> Any:
    """`q_proj,v_proj` as a list of names; a preset unchanged."""
    if not isinstance(value, str) or value in TARGET_PRESETS:
        return value
    return [name.strip() for name in value.replace(";", ",").split(",") if name.strip()]


def _score(name: str, metric: MetricColumn, *, row: Row) -> ImportedScore | None:
    """The metric's value; None if its cell is empty."""
    given = row.values[metric.column]
    if given is None or given == "":
        return None
    value = _number(resolve_scalar(given.strip()) if isinstance(given, str) else given, what=metric.column)
    num_items = metric.num_items
    if isinstance(num_items, str):
        cell = row.values[num_items]
        number = _number(resolve_scalar(cell) if isinstance(cell, str) else cell, what=num_items)
        num_items = round(number)
    if num_items is not None and num_items < 1:
        raise ValueError(f"{name}: a mean over {num_items} items is none")
    if metric.unit == "share" and not 0 <= value <= 1:
        raise ValueError(f"{metric.column}: must be a share from 0 to 1, not {shown(given)}")
    return ImportedScore(
        metric=name,
        value=value,
        unit=metric.unit,
        lower_is_better=metric.direction == "lower",
        num_items=num_items,
    )


def _number(value: Any, *, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what}: must be a number, not {shown(value)}")
    return float(value)


def _named(results: Sequence[ImportedResult]) -> list[ImportedResult]:
    """Every result with a name for its arm: the given one, or the settings that differ between rows."""
    keys = list(dict.fromkeys(key for result in results for key in result.settings))
    varied = [key for key in keys if len({repr(result.settings.get(key)) for result in results}) > 1]

    def name(settings: Mapping[str, Any]) -> str:
        parts = [label(key, _hashable(settings[key])) for key in varied if key in settings]
        return "_".join(parts) or "arm"

    return [replace(result, arm=result.arm or name(result.settings)) for result in results]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _twice(results: Sequence[ImportedResult], *, unused: Sequence[str]) -> list[str]:
    """The rows that repeat an arm and seed. One of two such rows is a mistake, and the table does not show which.

    Without a seed, the second row may come from the same run (an iteration, or a pruned and a completed trial), and
    rows of one run are not replicates.
    """
    first: dict[tuple[str, str, int | None], ImportedResult] = {}
    problems = []
    for result in results:
        key = (result.arm, repr(sorted(result.settings.items(), key=lambda item: item[0])), result.seed)
        other = first.setdefault(key, result)
        if other is result:
            continue
        if result.seed is not None:
            why = f"arm {result.arm} with seed {result.seed} stands at {other.location} already"
        else:
            columns = f"; columns that are not mapped: {', '.join(unused)}" if unused else ""
            why = (
                f"arm {result.arm} stands at {other.location} already, and no seed tells the two apart: rows of one run "
                f"(iterations, pruned trials) are no repeats. Keep the last row of each run, or map the seed{columns}"
            )
        problems.append(f"{result.location}: {why}")
    return problems
