"""The full runs that `racing_runs` recorded, read again: a file for each seed, as one value for each name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorastudy.stats.verdicts import Floats


@dataclass(frozen=True, kw_only=True)
class Runs:
    """All full runs of a grid. Arms are ranks by rates, in that order."""

    name: str
    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    shares: tuple[float, ...]
    losses: Floats
    """By (share, arm, seed, item) on the held-out rows; NaN from where a run diverged."""
    weights: Floats
    base_loss: float
    test: Floats
    """By (arm, seed, item) on the test rows, at the end."""
    test_weights: Floats
    about: Mapping[str, Any]


def files_by_name(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by the name of their runs, in order of seed."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.npz"), key=lambda path: (len(path.name), path.name)):
        found.setdefault(path.stem.rpartition("-")[0], []).append(path)
    return found


def read_runs(paths: Sequence[Path]) -> Runs:
    """The runs that `racing_runs` recorded, one file for each seed."""
    files = [dict(np.load(path)) for path in paths]
    about = [json.loads(str(file["about"])) for file in files]
    first = files[0]
    weights, test_weights = (first[key].astype(np.float64) for key in ("weights", "test_weights"))
    return Runs(
        name=about[0]["name"],
        ranks=tuple(about[0]["ranks"]),
        rates=tuple(about[0]["rates"]),
        shares=tuple(about[0]["shares"]),
        losses=np.stack([file["losses"] for file in files], axis=2).astype(np.float64),
        weights=weights,
        base_loss=float(first["before"].astype(np.float64) @ weights / weights.sum()),
        test=np.stack([file["test"] for file in files], axis=1).astype(np.float64),
        test_weights=test_weights,
        about=about[0]
        | {
            "seconds": sum(one["seconds"] for one in about),
            "num_seeds": len(files),
            "seeds": [one["seed"] for one in about],
        },
    )


def with_more_rows(runs: Runs, *, times: int) -> Runs:
    """The runs with every held-out row counted so many times; what is reported on the test rows stays."""
    return replace(runs, losses=np.tile(runs.losses, (1, 1, 1, times)), weights=np.tile(runs.weights, times))


def losses_at(runs: Runs, rung: float) -> Floats:
    """The held-out losses by (arm, seed, item) after a share of the steps; between two scores, the later one."""
    index = next(i for i, share in enumerate(runs.shares) if share >= rung - 1e-9)
    found: Floats = runs.losses[index]
    return found


def described(runs: Runs) -> dict[str, Any]:
    """What was recorded, with the mean loss of every arm on the way and the seconds it took."""
    shares = runs.weights / runs.weights.sum()
    curves: npt.NDArray[np.float64] = (runs.losses @ shares).mean(axis=-1)
    return {
        **{key: value for key, value in runs.about.items() if key != "seed"},
        "base_loss": runs.base_loss,
        "num_items": len(runs.weights),
        "num_test_items": len(runs.test_weights),
        "curves": [[round(float(v), 4) if np.isfinite(v) else None for v in arm] for arm in curves.T],
    }
