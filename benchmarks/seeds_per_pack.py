"""What an order of the rows for each seed costs: one order for all seeds, own orders in one pack, and a pack for each seed.

    python -m benchmarks.seeds_per_pack        some minutes; writes benchmarks/results/seeds_per_pack.json
    python -m benchmarks.seeds_per_pack --base-model FOLDER --dataset FILE        also on this model and these rows

Where a seed draws the order of the rows, its arms see other batches than those of another seed. They train in one pack all
the same, each on its own rows. With `data_seed` all seeds have one order.

Training steps alone are timed, in seconds of the processor and in one process: some steps of each kind, by turns.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks import machine
from benchmarks.processes import TUNING, run_timed
from lorastudy import lab

RESULTS = Path(__file__).parent / "results" / "seeds_per_pack.json"
#: What is compared.
ONE_ORDER, OWN_ORDERS, APART = (
    "one order for all seeds",
    "own orders, one pack",
    "own orders, a pack for each seed",
)
SIDES = (ONE_ORDER, OWN_ORDERS, APART)
_LEFT_OUT = {
    "data_seed",
    "description",
    "max_generation_samples",
    "max_new_tokens",
    "forgetting_dataset_path",
}
#: Training steps in a round, after one that warms up.
_NUM_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A suite without what the sides set."""

    name: str
    suite: dict[str, Any]


def settings(base_model: Path | None, dataset: Path | None) -> list[Setting]:
    """The lab's rank study, and a smaller one on a model and rows of yours."""
    demo = YAML(typ="safe").load(lab.rank_study())
    of_lab = {key: value for key, value in demo.items() if key not in _LEFT_OUT} | {"max_steps": 20}
    found = [Setting(name="lab", suite=of_lab)]
    if base_model is not None and dataset is not None:
        suite = {
            "suite_name": "seeds_per_pack",
            "base_model": str(base_model.resolve()),
            "dataset_path": str(dataset.resolve()),
            "max_eval_samples": 8,
            "max_steps": 6,
            "max_seq_length": 512,
            "per_device_train_batch_size": 4,
            "target_modules": "qkvo",
            "quantization": "fp32",
            "max_generation_samples": 0,
            "seeds": [0, 1, 2],
            "experiments": [{"name": f"rank_{rank}", "lora_rank": rank} for rank in (8, 32)],
        }
        found.append(Setting(name=base_model.name, suite=suite))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all sides of every setting, by turns, and write what came out."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds_per_pack")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--into", type=Path, default=RESULTS)
    parser.add_argument("--base-model", type=Path)
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--steps-of", help="print the training steps of this setting alone, as JSON")
    chosen = parser.parse_args(arguments)
    found = settings(chosen.base_model, chosen.dataset)
    if chosen.steps_of is not None:
        (suite,) = (each.suite for each in found if each.name == chosen.steps_of)
        print(json.dumps(training_steps(suite, num_rounds=chosen.rounds)))
        return 0
    given = (
        []
        if chosen.base_model is None
        else [f"--base-model={chosen.base_model.resolve()}", f"--dataset={chosen.dataset.resolve()}"]
    )
    steps = []
    for setting in found:
        command = [
            "-m",
            "benchmarks.seeds_per_pack",
            f"--steps-of={setting.name}",
            f"--rounds={chosen.rounds}",
        ]
        done = run_timed([*command, *given], folder=Path.cwd(), extra=TUNING)
        steps.append({**about(setting), "rounds": json.loads(done.output.splitlines()[-1])})
        print(steps[-1], flush=True)
    results = {
        **machine.head(now=datetime.now(UTC)),
        "steps": [{**each, "sides": step_summary(each["rounds"])} for each in steps],
    }
    chosen.into.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def about(setting: Setting) -> dict[str, Any]:
    """The size of a setting."""
    suite = setting.suite
    return {
        "name": setting.name,
        "num_ranks": len(suite["experiments"]),
        "num_seeds": len(suite["seeds"]),
        "num_steps": suite["max_steps"],
        "batch_size": suite["per_device_train_batch_size"],
    }


def training_steps(suite: dict[str, Any], *, num_rounds: int) -> list[dict[str, float]]:
    """Tokens that each side trains in a second of the processor, for each round."""
    from benchmarks.pack_steps import StepBench

    with StepBench.of(suite) as bench:
        return [
            {
                ONE_ORDER: bench.tokens_per_second(bench.together(one_order=True, num_steps=_NUM_STEPS)),
                OWN_ORDERS: bench.tokens_per_second(bench.together(one_order=False, num_steps=_NUM_STEPS)),
                APART: bench.tokens_per_second(bench.apart(num_steps=_NUM_STEPS)),
            }
            for _ in range(num_rounds)
        ]


def step_summary(rounds: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Medians of each side, and the medians over the rounds of its ratio to the two others."""
    return {
        side: {
            "tokens_per_second": statistics.median(each[side] for each in rounds),
            "to_one_order": statistics.median(each[side] / each[ONE_ORDER] for each in rounds),
            "to_apart": statistics.median(each[side] / each[APART] for each in rounds),
        }
        for side in SIDES
    }


if __name__ == "__main__":
    sys.exit(main())
