r"""Grids of learning rates, trained through the product: what the search for a rate is replayed over.

    python -m benchmarks.rate_grids lab
    python -m benchmarks.rate_grids rows --model <folder of a causal LM> --data <Alpaca rows>

Every rank at every rate with every seed, on rates in steps of 1.5, packed; the loss on the held-out rows at some shares of
the steps. Each grid is one entry of `benchmarks/results/rate_grids.json`; one that is there is not made again.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.racing_runs import LAB, Grid, experiments_of, trained
from lorastudy.engine.environment import environment
from lorastudy.engine.loading import BaseCache, default_device
from lorastudy.suite.base_model import read_config

RESULTS = Path(__file__).parent / "results" / "rate_grids.json"
#: Where the held-out rows are scored: the rungs of successive halving by three, and more.
SHARES = (1 / 9, 1 / 3, 2 / 3, 1.0)
STEP = 1.5

Losses = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RateGrid:
    """The recorded held-out losses of one grid, by (share, rank, rate, seed); NaN from where a run diverged."""

    name: str
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    shares: tuple[float, ...]
    losses: Losses
    base_loss: float
    about: Mapping[str, Any]


def rates_from(lowest: float, *, num_rates: int) -> tuple[float, ...]:
    """Rates in steps of 1.5, to three digits."""
    return tuple(float(f"{lowest * STEP**number:.3g}") for number in range(num_rates))


_LAB = {**LAB, "max_steps": 120, "per_device_train_batch_size": 16}
_ROWS = {
    "max_steps": 30, "per_device_train_batch_size": 4, "max_seq_length": 128, "eval_fraction": 0.1,
    "test_fraction": 0.1, "max_eval_samples": 40, "warmup_ratio": 0.05, "lr_scheduler_type": "linear",
    "lora_alpha": 32.0, "target_modules": "qkvo", "quantization": "fp32", "max_generation_samples": 0,
}  # fmt: skip
GRIDS: Mapping[str, tuple[Grid, ...]] = {
    "lab": tuple(
        Grid(
            name=f"lab_{targets}",
            settings={**_LAB, "target_modules": targets},
            ranks=(1, 2, 4, 8, 16),
            rates=rates_from(1e-3, num_rates=12),
            seeds=(0, 1, 2, 3),
        )
        for targets in ("qkvo", "mlp")
    ),
    "rows": (
        Grid(
            name="rows_qkvo",
            settings=_ROWS,
            ranks=(4, 8, 16, 32),
            rates=rates_from(5e-4, num_rates=10),
            seeds=(0, 1, 2, 3),
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Record what is not recorded yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rate_grids")
    parser.add_argument("what", choices=tuple(GRIDS))
    parser.add_argument("--model", help="for `rows`")
    parser.add_argument("--data", help="for `rows`")
    parser.add_argument("--only", help="the name of one grid")
    parser.add_argument("--into", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    sources = {} if chosen.what == "lab" else {"base_model": chosen.model, "dataset_path": chosen.data}
    for grid in GRIDS[chosen.what]:
        if chosen.only in {None, grid.name}:
            _record(grid, sources=sources, into=chosen.into)
    return 0


def read_grids(path: Path = RESULTS) -> list[RateGrid]:
    """The grids of a file that this program wrote."""
    return [
        RateGrid(
            name=name,
            ranks=tuple(entry["ranks"]),
            rates=tuple(entry["rates"]),
            seeds=tuple(entry["seeds"]),
            shares=tuple(entry["shares"]),
            losses=np.array(entry["losses"], dtype=np.float64),
            base_loss=entry["base_loss"],
            about=entry,
        )
        for name, entry in _entries(path).items()
    ]


def held_out_means(
    grid: Grid, *, sources: Mapping[str, Any], seed: int, cache: BaseCache
) -> tuple[Losses, float]:
    """The mean held-out loss by (share, arm) with one seed, all arms in one pack; and the base model's own."""
    found = trained(
        experiments_of(grid, settings=dict(sources), seed=seed),
        cache=cache,
        folder=Path(),
        shares=SHARES,
    )
    weights = found["weights"].astype(np.float64)
    weights /= weights.sum()
    return found["losses"].astype(np.float64) @ weights, float(found["before"] @ weights)


def _record(grid: Grid, *, sources: Mapping[str, Any], into: Path) -> None:
    """Train the seeds that the file does not have yet; written after each, so nothing is lost."""
    cache = BaseCache()
    for seed in grid.seeds:
        entry = _entries(into).get(grid.name) or _new_entry(grid, sources=sources)
        if seed in entry["seeds"]:
            continue
        began = time.monotonic()
        losses, base_loss = held_out_means(grid, sources=sources, seed=seed, cache=cache)
        by_rate = losses.reshape(len(SHARES), len(grid.ranks), len(grid.rates))
        earlier = np.array(entry["losses"], dtype=np.float64)
        joined = (
            by_rate[..., None]
            if not entry["seeds"]
            else np.concatenate([earlier, by_rate[..., None]], axis=-1)
        )
        entry |= {
            "base_loss": round(base_loss, 6),
            "seeds": [*entry["seeds"], seed],
            "seconds": round(entry["seconds"] + time.monotonic() - began, 1),
            "losses": _plain(joined),
        }
        _write(into, {**_entries(into), grid.name: entry})
        print(f"{grid.name}, seed {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def _new_entry(grid: Grid, *, sources: Mapping[str, Any]) -> dict[str, Any]:
    names = {key: Path(str(value)).name for key, value in sources.items()}
    config = read_config(str({**grid.settings, **sources}["base_model"]))
    assert config is not None
    return {
        "settings": {**grid.settings, **names},
        "config": {key: config[key] for key in ("model_type", "hidden_size")},
        "ranks": grid.ranks,
        "rates": grid.rates,
        "shares": [round(share, 4) for share in SHARES],
        "seeds": [],
        "seconds": 0.0,
        "environment": vars(environment(default_device())),
        "losses": [],
    }


def _plain(losses: Losses) -> Any:
    """Five decimals, None where a run diverged."""
    if losses.ndim:
        return [_plain(part) for part in losses]
    return round(float(losses), 5) if np.isfinite(losses) else None


def _entries(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(path: Path, entries: Mapping[str, Any]) -> None:
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
