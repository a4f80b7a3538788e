"""The rows of a GPU: one command, on a machine with torch, transformers and peft, without a network.

    python -m benchmarks.gpu --budget 540 --into results.json
    python -m benchmarks.gpu --device cpu --smoke --into results.json       does it work at all, without a GPU

Weights are random, from a `config.json` in `shapes/`; rows are random tokens in the lengths of instruction data. What
such a model learns is nothing, but a step costs what it would. Both sides share one frozen base, so that the time goes
into steps. The file is written again after every row. Rows come in the order of their worth; one that the budget or a
library does not allow is named with the reason.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.bare import install_wheels, make_engine_importable
from benchmarks.results import Row, write_results

#: Of the budget, kept back for writing and leaving.
RESERVE_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One row: how many configurations, in which precision, how many rows a forward pass."""

    id: str
    num_arms: int
    batch_size: int
    quantization: str = "bf16"

    @property
    def weight(self) -> int:
        """Tokens of a step over all arms, in rows: how rows compare in what they cost."""
        return self.num_arms * (self.batch_size + 4)  # a step has a fixed cost, worth some rows


#: In the order of their worth.
ROWS = (
    Asked(id="gpu-5-arms-batch-1", num_arms=5, batch_size=1),
    Asked(id="gpu-5-arms-batch-4", num_arms=5, batch_size=4),
    Asked(id="gpu-16-arms-batch-1", num_arms=16, batch_size=1),
    Asked(id="gpu-5-arms-batch-16", num_arms=5, batch_size=16),
    Asked(id="gpu-5-arms-batch-4-nf4", num_arms=5, batch_size=4, quantization="4bit"),
)


@dataclass(kw_only=True)
class Budget:
    """Seconds that may be spent, on a clock that is given."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        self._start = self.clock()

    @property
    def left(self) -> float:
        """Seconds left, the reserve taken off."""
        return self.seconds - RESERVE_SECONDS - (self.clock() - self._start)


@dataclass(kw_only=True)
class Report:
    """What is there so far, on disk after every addition."""

    path: Path
    head: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def save(self) -> None:
        """Write the file."""
        write_results(self.path, self.head, rows=self.rows, memory=self.memory, skipped=self.skipped)

    def skip(self, row_id: str, reason: str) -> None:
        """Put on record that a row was left out, and why."""
        print(f"{row_id}: left out: {reason}", flush=True)
        self.skipped.append({"id": row_id, "reason": reason})
        self.save()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the budget allows."""
    chosen = _parser().parse_args(arguments)
    budget = Budget(seconds=chosen.budget)
    if chosen.wheels is not None:
        install_wheels(chosen.wheels)
    make_engine_importable()
    from benchmarks.gpu_rows import device_name

    now = datetime.now(UTC)
    head = machine.head(now=now, device_name=device_name(chosen.device)) | {"smoke": chosen.smoke}
    if chosen.commit:
        head["commit"] = {"name": chosen.commit, "is_changed": None}
    report = Report(path=chosen.into, head=head)
    report.save()
    wanted = [asked for asked in ROWS if chosen.rows is None or asked.id in chosen.rows]
    _measure_rows(wanted, chosen=chosen, budget=budget, report=report)
    if chosen.memory:
        _measure_memory(chosen, budget=budget, report=report)
    return 0


def _measure_rows(
    wanted: Sequence[Asked], *, chosen: argparse.Namespace, budget: Budget, report: Report
) -> None:
    """Row after row; the cost of one predicts that of the next."""
    from benchmarks.gpu_rows import Bases, Scale, speed_row
    from lorastudy.errors import StudyError

    scale = Scale.smoke() if chosen.smoke else Scale()
    bases = Bases()
    seconds_per_weight = 0.0
    for asked in wanted:
        if asked.quantization == "4bit" and not machine_has("bitsandbytes"):
            report.skip(asked.id, "bitsandbytes is not installed")
            continue
        needed = seconds_per_weight * asked.weight
        if budget.left <= needed:
            report.skip(asked.id, f"about {needed:.0f} s needed, {budget.left:.0f} s left")
            continue
        start = budget.left
        try:
            row = speed_row(
                asked, shape=chosen.shape, device=chosen.device, scale=scale, budget=budget, bases=bases
            )
        except (
            RuntimeError,
            StudyError,
        ) as error:  # no memory, no kernel, no support: other rows still count
            report.skip(asked.id, f"{type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        # One round suffices for a row, and rounds are most of it.
        num_rounds = max(sample.round for sample in row.samples) + 1
        seconds_per_weight = (start - budget.left) / asked.weight / num_rounds * 1.5
        report.rows.append(row)
        report.save()
        print(f"{asked.id}: {row.to_json()['ratios']['baseline']['step_seconds']}", flush=True)


def _measure_memory(chosen: argparse.Namespace, *, budget: Budget, report: Report) -> None:
    """Case after case, as far as the budget goes; of a base that does not fit, the others still count."""
    from benchmarks.gpu_memory import MemoryBench, memory_cases

    bench = MemoryBench(device=chosen.device, is_tiny=chosen.smoke)
    for case in memory_cases()[:: 8 if chosen.smoke else 1]:
        needed = bench.seconds_needed(case)
        if case.quantization != "bf16" and not machine_has("bitsandbytes"):
            report.skip(case.id, "bitsandbytes is not installed")
        elif budget.left < needed:
            report.skip(case.id, f"about {needed:.0f} s needed, {budget.left:.0f} s left")
        else:
            try:
                report.memory.append(bench.measure(case))
            except RuntimeError as error:
                report.skip(case.id, f"{type(error).__name__}: {str(error).splitlines()[0]}")
            report.save()


def machine_has(library: str) -> bool:
    """Whether the library can be imported."""
    return find_spec(library) is not None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--budget", type=float, default=540.0, help="seconds that all of it may take")
    parser.add_argument("--into", type=Path, required=True, help="the results file to write")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--shape", default="phi-2", help="a folder of benchmarks/shapes, or one with a config.json"
    )
    parser.add_argument(
        "--rows", nargs="*", choices=[row.id for row in ROWS], help="only these; none where none is named"
    )
    parser.add_argument("--memory", action="store_true", help="measure memory after the rows")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what the machine lacks (pydantic)")
    parser.add_argument("--commit", help="what is measured, where the machine has no repository")
    parser.add_argument("--smoke", action="store_true", help="a few thousand parameters, a few steps")
    return parser


if __name__ == "__main__":
    sys.exit(main())
