"""The table of memory prediction errors, from the result files of `benchmarks/memory_error.py`."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorastudy.report.document import Cell, Table, TableColumn
from lorastudy.report.numbers import percent

PATTERN = "memory-error-*.json"
NONE_MEASURED = (
    "How far these predictions are from measured memory is not known yet: no result of `benchmarks/memory_error.py` "
    "lies in `benchmarks/results/`."
)


def error_summary(root: Path) -> str:
    """A sentence for each device that was measured, or that none was."""
    by_device: dict[str, list[dict[str, Any]]] = {}
    for path in _files(root):
        file = json.loads(path.read_text(encoding="utf-8"))
        environment = file["environment"]
        name = f"a {environment['device']} ({environment['device_name']})"
        by_device.setdefault(name, []).extend(file["results"])
    return "\n".join(_sentence(name, results) for name, results in by_device.items()) or NONE_MEASURED


def error_table(root: Path) -> Table | None:
    """Median and largest absolute error of the peak and of its parts, for each device, model and precision."""
    rows = []
    for path in _files(root):
        file = json.loads(path.read_text(encoding="utf-8"))
        keys = sorted({(each["model"], each["quantization"]) for each in file["results"]})
        for model, quantization in keys:
            of_these = [
                e for e in file["results"] if (e["model"], e["quantization"]) == (model, quantization)
            ]
            rows.append(
                (
                    Cell(file["environment"]["device"]),
                    Cell(model),
                    Cell(quantization),
                    Cell(str(len(of_these))),
                    *(Cell(_both(_errors(of_these, part))) for part in ("peak", "base", "resident", "step")),
                )
            )
    if not rows:
        return None
    titles = (
        "Device",
        "Model",
        "Precision",
        "Configurations",
        "Peak",
        "Base model",
        "Adapters and optimizer",
        "Step",
    )
    return Table(columns=tuple(TableColumn(t, numeric=t not in titles[:3]) for t in titles), rows=tuple(rows))


def _files(root: Path) -> list[Path]:
    return sorted((root / "benchmarks" / "results").glob(PATTERN))


def _sentence(device: str, results: Sequence[dict[str, Any]]) -> str:
    errors = _errors(results, "peak")
    return (
        f"Over {len(errors)} configurations on {device} the predicted peak is off by "
        f"{percent(statistics.median(errors), decimals=2)} in the median and by {percent(max(errors), decimals=2)} at "
        "worst, in absolute value. The table shows median and worst for each part."
    )


def _errors(results: Sequence[dict[str, Any]], part: str) -> list[float]:
    return [abs(each["predicted"][part] / each["measured"][part] - 1) for each in results]


def _both(errors: Sequence[float]) -> str:
    return f"{percent(statistics.median(errors), decimals=2)} / {percent(max(errors), decimals=2)}"
