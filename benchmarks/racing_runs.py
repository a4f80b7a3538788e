r"""Full runs, scored on the way: what a race is replayed over.

    python -m benchmarks.racing_runs lab FOLDER
    python -m benchmarks.racing_runs lab FOLDER --name labnew --seeds 8 9 10 11 12 13 14
    python -m benchmarks.racing_runs lab FOLDER --name skill --seeds 0 1 2 3 4 5 \
        --set '{"dataset_path": "lab:skill", "eval_dataset_path": "lab:skill_eval", "max_seq_length": 32}'
    python -m benchmarks.racing_runs rows FOLDER --model <folder of a causal LM> --data <Alpaca rows>

Every rank at every learning rate with every seed, trained to the end by the packed engine and scored on the held-out
rows at some shares of the steps, on the test rows at the end. A file for each seed, `<name>-<seed>.npz`; one that is
there is not made again.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorastudy.data.sources import dataset_fingerprint
from lorastudy.engine.arms import Engine
from lorastudy.engine.environment import environment
from lorastudy.engine.loading import BaseCache, default_device
from lorastudy.evaluation.evaluator import CompletionLoss
from lorastudy.protocol.records import Pack
from lorastudy.suite.base_model import base_model_fingerprint
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import rung_step
from lorastudy.suite.suite import expand
from lorastudy.suite.suite_file import suite_from_values
from lorastudy.train.outcomes import PackRun
from lorastudy.train.train_pack import LoadedPack, load

#: Where the held-out rows are scored.
SHARES = (0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.625, 0.75, 1.0)

LAB: dict[str, Any] = {
    "base_model": "lab", "dataset_path": "lab:facts", "eval_dataset_path": "lab:facts_eval", "test_fraction": 0.5,
    "max_steps": 160, "per_device_train_batch_size": 32, "max_seq_length": 16, "warmup_ratio": 0.05,
    "lr_scheduler_type": "linear", "lora_alpha": "2r", "target_modules": "qkvo", "quantization": "fp32",
    "max_generation_samples": 0,
}  # fmt: skip
ROWS: dict[str, Any] = {
    "max_steps": 40, "per_device_train_batch_size": 4, "max_seq_length": 96, "eval_fraction": 0.1,
    "test_fraction": 0.1, "max_eval_samples": 32, "warmup_ratio": 0.05, "lr_scheduler_type": "linear",
    "lora_alpha": "2r", "target_modules": "qkvo", "quantization": "bf16", "max_generation_samples": 0,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is crossed."""

    name: str
    settings: dict[str, Any]
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    changes: dict[str, Any] = field(default_factory=dict)


LAB_GRID = Grid(
    name="lab",
    settings=LAB,
    ranks=(1, 4, 16),
    rates=(0.003, 0.006, 0.012, 0.024),
    seeds=tuple(range(8)),
)
ROWS_GRID = Grid(
    name="rows", settings=ROWS, ranks=(4, 32), rates=(1e-3, 2e-3, 5e-3, 1e-2), seeds=tuple(range(6))
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.racing_runs")
    parser.add_argument("what", choices=("lab", "rows"))
    parser.add_argument("into", type=Path)
    parser.add_argument("--model", help="for `rows`")
    parser.add_argument("--data", help="for `rows`")
    parser.add_argument("--set", type=json.loads, default={}, help="settings to be changed, as JSON")
    parser.add_argument("--name", help="of the files, where settings or seeds are changed")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the grid's own")
    chosen = parser.parse_args(arguments)
    grid = LAB_GRID if chosen.what == "lab" else ROWS_GRID
    grid = replace(grid, seeds=tuple(chosen.seeds or grid.seeds))
    sources = {} if chosen.what == "lab" else {"base_model": chosen.model, "dataset_path": chosen.data}
    record(grid, settings=sources | chosen.set, name=chosen.name or grid.name, into=chosen.into)
    return 0


def record(grid: Grid, *, settings: dict[str, Any], name: str, into: Path) -> None:
    """Train every seed of the grid that has no file yet, all its arms in one pack."""
    into.mkdir(parents=True, exist_ok=True)
    cache = BaseCache()
    for seed in grid.seeds:
        path = into / f"{name}-{seed}.npz"
        if path.exists():
            continue
        began = time.monotonic()
        experiments = experiments_of(grid, settings=settings, seed=seed)
        found = trained(experiments, cache=cache, folder=into, shares=SHARES)
        about = {
            "name": name,
            "settings": grid.settings | {key: Path(str(v)).name if key in _PATHS else v for key, v in settings.items()},
            "ranks": grid.ranks,
            "rates": grid.rates,
            "seed": seed,
            "shares": SHARES,
            "seconds": time.monotonic() - began,
            "environment": vars(environment(default_device())),
        }  # fmt: skip
        arrays: dict[str, Any] = {"about": np.array(json.dumps(about)), **found}
        np.savez_compressed(path, **arrays)
        print(f"{path}: {about['seconds']:.0f} s", file=sys.stderr, flush=True)


_PATHS = frozenset({"base_model", "dataset_path"})


def experiments_of(grid: Grid, *, settings: dict[str, Any], seed: int) -> tuple[Experiment, ...]:
    """Ranks by rates, in that order, with one seed."""
    values = grid.settings | settings
    values |= {
        "seeds": [seed],
        "factors": {"lora_rank": list(grid.ranks), "learning_rate": list(grid.rates)},
    }
    suite = suite_from_values(values, where="racing_runs")
    return expand(suite, fingerprint_dataset=dataset_fingerprint, fingerprint_base=base_model_fingerprint)


def trained(
    experiments: Sequence[Experiment], *, cache: BaseCache, folder: Path, shares: Sequence[float]
) -> dict[str, npt.NDArray[np.float32]]:
    """Losses by (share, arm, item) on the held-out rows and by (arm, item) on the test rows; NaN where it diverged."""
    pack = Pack(id="racing", attempt=1, engine="packed", experiments=tuple(experiments))
    run = PackRun(pack=pack, folder=folder, emit=lambda _: None)
    loaded = load(run, experiments[0].settings, cache=cache, device=default_device())
    assert loaded is not None
    engine = loaded.make_engine(loaded.arms)
    ids = [experiment.id for experiment in experiments]
    try:
        weights, before = _scores(engine, loaded, split="eval", ids=ids)
        losses = []
        for share in shares:
            stop = rung_step(share, num_steps=loaded.batch_plan.num_steps)
            engine.train(
                loaded.batch_plan.steps(start=engine.num_steps_done, stop=stop), on_step=run_diverged(run)
            )
            losses.append(_without(run.ended, _scores(engine, loaded, split="eval", ids=ids)[1], ids=ids))
        test_weights, test = _scores(engine, loaded, split="test", ids=ids)
    finally:
        engine.close()
    return {
        "losses": np.stack(losses),
        "weights": weights,
        "before": before[0],
        "test": _without(run.ended, test, ids=ids),
        "test_weights": test_weights,
    }


def run_diverged(run: PackRun) -> Any:
    """What takes note of the arms that diverge."""
    return lambda result: run.ended.update(result.diverged)


def _scores(
    engine: Engine, loaded: LoadedPack, *, split: str, ids: Sequence[str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The items' weights, and the losses by (arm, item)."""
    tokens = dict(loaded.data.scored())[split]
    scores = CompletionLoss().evaluate(engine, tokens.rows, base=loaded.base, split=split)
    by_id = {score.experiment_id: score for score in scores if score.metric == "loss"}
    weights = np.array(by_id[ids[0]].weights, dtype=np.float32)
    return weights, np.array([by_id[key].items for key in ids], dtype=np.float32)


def _without(
    diverged: set[str], losses: npt.NDArray[np.float32], *, ids: Sequence[str]
) -> npt.NDArray[np.float32]:
    losses[[key in diverged for key in ids]] = np.nan
    return losses


if __name__ == "__main__":
    sys.exit(main())
