"""What one seed per pack costs: a suite whose seeds share packs against the same suite with a pack for each seed.

    python -m benchmarks.seeds_per_pack        some minutes; writes benchmarks/results/seeds_per_pack.json

Where a seed draws the order of the rows, its arms see other batches than those of another seed, so a pack holds one seed.
With `data_seed` all seeds have one order and train together. Both suites are run by the product's own command, by turns,
each with a fresh store; they train the same arms for the same number of steps.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks import machine
from benchmarks.processes import timed_suite
from lorastudy import lab

RESULTS = Path(__file__).parent / "results" / "seeds_per_pack.json"
NUM_STEPS = 40
#: What each side sets: one order of the rows for all seeds, or one for each.
SIDES: dict[str, dict[str, Any]] = {"all seeds": {"data_seed": 0}, "one seed": {}}
_LEFT_OUT = {
    "data_seed",
    "description",
    "max_generation_samples",
    "max_new_tokens",
    "forgetting_dataset_path",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both, by turns, and write what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds_per_pack")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--into", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    suite = {
        key: value for key, value in YAML(typ="safe").load(lab.rank_study()).items() if key not in _LEFT_OUT
    }
    suite["max_steps"] = NUM_STEPS
    num_runs = len(suite["experiments"]) * len(suite["seeds"])
    rounds = [
        measured(suite | own, side=side, number=number)
        for number in range(chosen.rounds)
        for side, own in SIDES.items()
    ]
    results = {
        **machine.head(now=datetime.now(UTC)),
        "num_runs": num_runs,
        "num_steps": NUM_STEPS,
        "rounds": rounds,
        "sides": {side: summary(rounds, side=side, num_run_steps=num_runs * NUM_STEPS) for side in SIDES},
    }
    chosen.into.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(suite: dict[str, Any], *, side: str, number: int) -> dict[str, Any]:
    """One run of one suite: seconds of training, of the whole command, and of processors."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suite.json"
        path.write_text(json.dumps(suite), encoding="utf-8")
        sample, run = timed_suite(path, number=number)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {
        "side": side,
        "round": number,
        "num_packs": run.num_packs,
        "num_threads": run.num_threads,
        "train_seconds": run.train_seconds,
        "load_seconds": run.load_seconds,
        "eval_seconds": run.eval_seconds,
        "wall_seconds": sample.wall_seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "load_average": sample.load_average,
    }
    print(found, flush=True)
    return found


def summary(rounds: Sequence[dict[str, Any]], *, side: str, num_run_steps: int) -> dict[str, Any]:
    """Medians of one side; `run_steps_per_second` are steps of a run, over all runs, in a second of training."""
    own = [each for each in rounds if each["side"] == side]
    keys = ("train_seconds", "load_seconds", "eval_seconds", "wall_seconds", "cpu_seconds")
    medians = {key: statistics.median(each[key] for each in own) for key in keys}
    return {
        "num_packs": own[0]["num_packs"],
        **medians,
        "run_steps_per_second": num_run_steps / medians["train_seconds"],
    }


if __name__ == "__main__":
    sys.exit(main())
