"""How cost grows: with arms in a pack, tokens in a step, tokens in a row, experiments in the store."""

import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.processes import TUNING, Say, run_timed

PROGRAMS: Mapping[str, Mapping[str, str]] = {
    "benchmarks.growth_engine": TUNING,  # as the worker that trains has it
    "benchmarks.growth_store": {},
}


def growth(*, say: Say, num_sizes: int | None = None) -> dict[str, Any]:
    """By what grows: points, and the straight line through them."""
    found: dict[str, Any] = {}
    for program, extra in PROGRAMS.items():
        say(f"growth: {program}")
        sizes = [] if num_sizes is None else ["--sizes", str(num_sizes)]
        with tempfile.TemporaryDirectory() as folder:
            done = run_timed(["-m", program, *sizes], folder=Path(folder), extra=extra)
        for name, points in json.loads(done.output).items():
            found[name] = {"points": points, "fit": straight_line(points)}
    return found


def straight_line(points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Least squares through the medians: `seconds = intercept + slope * size`, with R^2.

    A large size weighs much more in it than a small one, so beside it stands the exponent between the two largest
    sizes: seconds grow with size to that power. 1 is linear, below 1 a fixed cost is still being shared out, above 1
    cost outgrows size.
    """
    sizes = [point["size"] for point in points]
    seconds = [statistics.median(point["seconds"]) for point in points]
    line = stats.linregress(sizes, seconds)
    exponent = math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])
    return {
        "intercept": float(line.intercept),
        "slope": float(line.slope),
        "r_squared": float(line.rvalue**2),
        "last_exponent": exponent,
    }
