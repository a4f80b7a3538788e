"""What the columns of a table mean: given in a small YAML file, on the command line, or in both.

columns: {lora_rank: rank, learning_rate: lr, seed: seed}     our word: the table's column
constants: {base_model: org/model}                            the same for every row
metrics:                                                      the first is the primary one
  accuracy: {column: test_acc, direction: higher, unit: share, num_items: 1319}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lorastudy.errors import StudyError
from lorastudy.lint.rates import METHOD_KEY
from lorastudy.suite.levels import FOREIGN_NAMES
from lorastudy.suite.problems import Problems
from lorastudy.suite.settings import Settings
from lorastudy.suite.wording import did_you_mean
from lorastudy.suite.yaml_reading import plain, read_yaml

#: Words besides the settings. `method` says what is no LoRA: `full` for full fine-tuning.
LABELS = ("arm", "seed", METHOD_KEY, "dataset", "environment")
COSTS = (
    "num_trainable_parameters", "num_total_parameters", "adapter_bytes", "peak_memory_bytes", "train_seconds",
    "step_seconds",
)  # fmt: skip
KNOWN = (*LABELS, *COSTS, *Settings.model_fields)


class MetricColumn(BaseModel):
    """One metric: where it stands, which direction is good, and over how many items it is a mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str
    direction: Literal["higher", "lower"]
    unit: str = ""
    num_items: int | str | None = None
    """A number, or the column that holds it."""


class TableMapping(BaseModel):
    """What the columns of a table mean."""

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
    """The mapping of the file, with what flags say put over it.

    `columns` are `key=column`, `constants` are `key=value`, `metrics` are `column:direction[:num_items]`.

    Raises:
        StudyError: a word that is not known, or no metric.
    """
    where = "--column" if file is None else str(file)
    base = TableMapping() if file is None else _checked(_document(file), where=where)
    flags = _checked(
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


def _checked(body: Mapping[str, Any], *, where: str) -> TableMapping:
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
