"""The rows of a GPU: one command, on a machine with torch, transformers and peft, without a network.

    python -m benchmarks.gpu --budget 540 --into results.json
    python -m benchmarks.gpu --device cpu --smoke --into results.json       does it work at all, without a GPU

Weights are random, from a `config.json` in `shapes/`; rows are random tokens in the lengths of instruction data. What
such a model learns is nothing, but a step costs what it would. Both sides share one frozen base, so that the time goes
into steps. The file is written again after every row. Rows come in the order of their worth; one that the budget or a
library does not allow is named with the reason.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.job import Budget, GpuRequest
from benchmarks.results import Row, write_results

#: The most valuable first.
ROWS = (
    GpuRequest(id="gpu-5-arms-batch-1", num_arms=5, batch_size=1),
    GpuRequest(id="gpu-5-arms-batch-4", num_arms=5, batch_size=4),
    GpuRequest(id="gpu-16-arms-batch-1", num_arms=16, batch_size=1),
    GpuRequest(id="gpu-5-arms-batch-16", num_arms=5, batch_size=16),
    GpuRequest(id="gpu-5-arms-batch-4-nf4", num_arms=5, batch_size=4, quantization="4bit"),
)

#: The libraries that a machine without the product must have, besides torch.
NEEDED = ("pydantic", "peft", "transformers", "safetensors")


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
    prepare_machine(wheels=chosen.wheels)
    from benchmarks.gpu_rows import device_name

    now = datetime.now(UTC)
    head = machine.head(now=now, device_name=device_name(chosen.device)) | {"smoke": chosen.smoke}
    if chosen.commit:
        head["commit"] = {"name": chosen.commit, "is_changed": None}
    report = Report(path=chosen.into, head=head)
    report.save()
    wanted = [request for request in ROWS if chosen.rows is None or request.id in chosen.rows]
    _measure_rows(wanted, chosen=chosen, budget=budget, report=report)
    if chosen.memory:
        _measure_memory(chosen, budget=budget, report=report)
    return 0


def _measure_rows(
    wanted: Sequence[GpuRequest], *, chosen: argparse.Namespace, budget: Budget, report: Report
) -> None:
    """Row after row; the cost of one predicts that of the next."""
    from benchmarks.gpu_rows import Bases, Scale, speed_row
    from lorastudy.errors import StudyError

    scale = Scale.smoke() if chosen.smoke else Scale()
    bases = Bases()
    seconds_per_weight = 0.0
    for request in wanted:
        if request.quantization == "4bit" and not machine_has("bitsandbytes"):
            report.skip(request.id, "bitsandbytes is not installed")
            continue
        needed = seconds_per_weight * request.weight
        if budget.left <= needed:
            report.skip(request.id, f"about {needed:.0f} s needed, {budget.left:.0f} s left")
            continue
        start = budget.left
        try:
            row = speed_row(
                request, shape=chosen.shape, device=chosen.device, scale=scale, budget=budget, bases=bases
            )
        except (
            RuntimeError,
            StudyError,
        ) as error:  # no memory, no kernel, no support: other rows still count
            report.skip(request.id, f"{type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        # One round suffices for a row, and rounds are most of it.
        num_rounds = max(sample.round for sample in row.samples) + 1
        seconds_per_weight = (start - budget.left) / request.weight / num_rounds * 1.5
        report.rows.append(row)
        report.save()
        print(f"{request.id}: {row.to_json()['ratios']['baseline']['step_seconds']}", flush=True)


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


def prepare_machine(*, wheels: Path | None) -> None:
    """Make the engine importable, and set what a worker sets before torch is imported. Install wheels first, if any."""
    if wheels is not None:
        install_wheels(wheels)
    make_engine_importable()
    from lorastudy.executors.process import CUDA_ENVIRONMENT

    for name, value in CUDA_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def install_wheels(folder: Path) -> None:
    """Unpack the wheels of a folder for this process alone, asking no index."""
    target = tempfile.mkdtemp(prefix="benchmark-wheels-")
    wheels = [str(path) for path in sorted(folder.glob("*.whl"))]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--target",
            target,
            *wheels,
        ],
        check=True,
    )
    sys.path.insert(0, target)


def make_engine_importable() -> None:
    """Have the engines imported from this repository; bitsandbytes is needed for rows in 4-bit and 8-bit alone.

    Raises:
        SystemExit: a library is missing; says which, and how to bring it.
    """
    sys.path.insert(0, str(machine.ROOT / "src"))
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"missing here: {', '.join(missing)}. Where there is a network: pip download --only-binary=:all: "
            f"-d wheels {' '.join(missing)}; then give --wheels wheels"
        )


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
