"""The first hours on a GPU in two commands of ten minutes each: is it right, and is it fast?

    python -m benchmarks.gpu_first right --into first-right.json     versions, kernels, gradients, bits, a profile
    python -m benchmarks.gpu_first fast --into first-fast.json       quantised steps, out of memory, speed, memory
    python -m benchmarks.gpu_first right --device cpu --smoke ...    does it work at all, without a GPU

The file is written again after every step. A step that fails is named with its error, and the next one begins. A step for
which no time is left is named too. `gpu_checks.py` has the steps.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine
from benchmarks.gpu import prepare_machine
from benchmarks.job import Budget

if TYPE_CHECKING:
    from benchmarks.gpu_checks import Bench

#: The steps of each command, the most valuable first, with the seconds that one takes at most. They are guesses: no GPU
#: has run them.
STEPS: dict[str, tuple[tuple[str, float], ...]] = {
    "right": (
        ("versions", 10.0), ("attention", 20.0), ("gradients", 60.0), ("same_bits", 60.0), ("launch_cost", 10.0),
        ("profile", 60.0),
    ),
    "fast": (("quantised", 90.0), ("out_of_memory", 60.0), ("speed", 60.0), ("memory", 30.0)),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the steps of a command."""
    chosen = _parser().parse_args(arguments)
    budget = Budget(seconds=chosen.budget)
    prepare_machine(wheels=chosen.wheels)
    from benchmarks import gpu_checks
    from benchmarks.gpu_rows import Scale, device_name

    bench = gpu_checks.Bench(
        device=chosen.device,
        shape=chosen.shape,
        scale=Scale.smoke() if chosen.smoke else Scale(),
        into=chosen.into,
        budget=budget,
    )
    body = machine.head(now=datetime.now(UTC), device_name=device_name(chosen.device))
    body |= {"command": chosen.command, "smoke": chosen.smoke, "steps": {}}
    for name, seconds in STEPS[chosen.command]:
        step: Callable[[Bench], dict[str, Any]] = getattr(gpu_checks, name)
        body["steps"][name] = taken(step, bench, seconds=0.0 if chosen.smoke else seconds)
        chosen.into.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {json.dumps(body['steps'][name])[:300]}", flush=True)
    return 0


def taken(step: "Callable[[Bench], dict[str, Any]]", bench: "Bench", *, seconds: float) -> dict[str, Any]:
    """What a step found, with its seconds; or its error; or that too little time was left."""
    from lorastudy.errors import FOREIGN_ERRORS, StudyError

    if bench.budget.left < seconds:
        return {"left_out": f"about {seconds:.0f} s needed, {bench.budget.left:.0f} s left"}
    start = time.perf_counter()
    found: dict[str, Any]
    try:
        found = {"found": step(bench)}
    except (*FOREIGN_ERRORS, StudyError, SystemExit) as error:  # the next step still counts
        found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {**found, "seconds": round(time.perf_counter() - start, 3)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_first", description=__doc__)
    parser.add_argument("command", choices=list(STEPS))
    parser.add_argument("--into", type=Path, required=True, help="the results file to write")
    parser.add_argument("--budget", type=float, default=580.0, help="seconds that all of it may take")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--shape", default="phi-2", help="a folder of benchmarks/shapes, or one with a config.json"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what the machine lacks (pydantic)")
    parser.add_argument("--smoke", action="store_true", help="a few thousand parameters, a few steps")
    return parser


if __name__ == "__main__":
    sys.exit(main())
