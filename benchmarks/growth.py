"""How cost grows: with arms in a pack, tokens in a step, tokens in a row, experiments in the store.

    python -m benchmarks.growth        prints one JSON object: by quantity, points of (size, seconds)

That program times the seconds to store a study and to report it, as its number of experiments grows. No model is trained: every
experiment comes with the records that a worker writes: steps, scores with a value for each held-out row, a profile, an outcome.
`growth_engine` is the other program. `growth` runs both.
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.processes import TUNING, Say, run_timed
from lorastudy.protocol.records import (
    ArmProfile,
    ArmStep,
    DataSummary,
    Environment,
    Outcome,
    PackProfile,
    PackStep,
    Record,
    Score,
)
from lorastudy.report import write_report
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings

PROGRAMS: Mapping[str, Mapping[str, str]] = {
    "benchmarks.growth_engine": TUNING,  # as the worker that trains has it
    "benchmarks.growth": {},
}

NUM_EXPERIMENTS = (10, 30, 100, 300, 1000)
NUM_SEEDS, NUM_STEPS, NUM_ITEMS, ARMS_PER_PACK = 5, 20, 100, 10


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every size once; print the points."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth")
    parser.add_argument("--sizes", type=int, help="only that many of the smallest sizes, for a trial")
    chosen = parser.parse_args(arguments)
    sizes = NUM_EXPERIMENTS[: chosen.sizes]
    # The first study pays for imports and fonts, which is not growth.
    timed(sizes[0])
    seconds = {size: timed(size) for size in sizes}
    print(
        json.dumps(
            {
                "store": [{"size": size, "seconds": [stored]} for size, (stored, _) in seconds.items()],
                "report": [{"size": size, "seconds": [reported]} for size, (_, reported) in seconds.items()],
            }
        )
    )
    return 0


def timed(num_experiments: int) -> tuple[float, float]:
    """(seconds to store, seconds to report) a study of that many experiments."""
    experiments = study(num_experiments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ExperimentTracker(folder / "experiments.db", writable=True) as tracker:
            start = time.perf_counter()
            store(experiments, tracker=tracker)
            stored = time.perf_counter()
            write_report(tracker, suite_name="growth", output=folder / "RESULTS.md")
            reported = time.perf_counter()
    return stored - start, reported - stored


def study(num_experiments: int) -> list[Experiment]:
    """Ranks from 1 up, each with the same seeds."""
    return [
        Experiment(
            name=f"r{rank}_s{seed}",
            arm=f"r{rank}",
            experiment_type="rank_ablation",
            seed=seed,
            settings=Settings(lora_rank=rank, lora_alpha="2r", max_steps=NUM_STEPS),
            sources=Sources(base_model="base", dataset="data"),
        )
        for rank in range(1, num_experiments // NUM_SEEDS + 1)
        for seed in range(NUM_SEEDS)
    ]


def store(experiments: Sequence[Experiment], *, tracker: ExperimentTracker) -> None:
    """What the runner does with the records of a suite, pack after pack."""
    tracker.register("growth", experiments)
    for start in range(0, len(experiments), ARMS_PER_PACK):
        pack = experiments[start : start + ARMS_PER_PACK]
        pack_id = f"pack-{start}"
        with tracker.together():
            for experiment in pack:
                tracker.start_run(
                    experiment.id, attempt=1, pack_id=pack_id, engine="packed", run_folder=f"runs/{pack_id}"
                )
        for record in records(pack):
            tracker.take(record, pack_id=pack_id, attempt=1)


def records(pack: Sequence[Experiment]) -> Iterator[Record]:
    """What a worker says of a pack; losses fall with rank, with noise."""
    draw = random.Random(pack[0].id)
    yield Environment(
        python="3", torch="2", transformers="5", peft="0", bitsandbytes="0", lorastudy="0", device="cpu",
        device_name="a processor", num_threads=2,
    )  # fmt: skip
    yield DataSummary(
        split="train", format="alpaca", num_rows=1000, num_refused_rows=0, num_truncated_rows=0,
        num_tokens=250_000, num_completion_tokens=120_000,
    )  # fmt: skip
    for step in range(1, NUM_STEPS + 1):
        arms = tuple(
            ArmStep(experiment_id=each.id, loss=2 / step + draw.random(), learning_rate=1e-4, grad_norm=1.0)
            for each in pack
        )
        yield PackStep(
            step=step,
            num_steps=NUM_STEPS,
            num_tokens=4000,
            num_completion_tokens=2000,
            seconds=0.1,
            arms=arms,
        )
    for experiment in pack:
        items = [1 + 1 / experiment.settings.lora_rank + draw.gauss(0, 0.1) for _ in range(NUM_ITEMS)]
        loss = sum(items) / NUM_ITEMS
        for metric, value in (("loss", loss), ("perplexity", math.exp(loss)), ("token_accuracy", 0.5)):
            yield Score(
                experiment_id=experiment.id, split="eval", metric=metric, version=1, unit="", value=value,
                items=tuple(items), weights=(10,) * NUM_ITEMS,
            )  # fmt: skip
        yield ArmProfile(
            experiment_id=experiment.id, num_trainable_parameters=1000 * experiment.settings.lora_rank,
            num_total_parameters=10_000_000, adapter_bytes=4000, memory_kind="cpu_tensors",
            peak_memory_bytes=2**28, step_seconds=0.1, tokens_per_second=1e4,
        )  # fmt: skip
    yield PackProfile(
        engine="packed", num_arms=len(pack), memory_kind="cpu_resident", peak_memory_bytes=2**29,
        median_step_seconds=0.1, tokens_per_second=1e4, load_seconds=1.0, train_seconds=2.0, eval_seconds=1.0,
    )  # fmt: skip
    for experiment in pack:
        yield Outcome(experiment_id=experiment.id, status="completed", step=NUM_STEPS)


if __name__ == "__main__":
    sys.exit(main())
