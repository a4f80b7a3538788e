"""A small study to injure: experiments, how they are run with the scripted worker, and what its store says in the end."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorastudy.executors import LocalExecutor
from lorastudy.running.phase_runner import RunOptions
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings
from planned import run_experiments

SUITE = "torture"
DATABASE = "results/experiments.db"
SCRIPTED_WORKER = Path(__file__).with_name("scripted_worker.py")
SOURCE = Path(__file__).resolve().parents[2] / "src"
#: What differs from attempt to attempt although it means the same; a pack also costs what its company does.
OF_THE_ATTEMPT = (
    "attempt", "started_at", "finished_at", "run_folder", "pack_id", "pack_profile", "train_seconds"
)  # fmt: skip


def experiments(*, num_packs: int = 2, num_arms: int = 2, first_data_seed: int = 0) -> list[Experiment]:
    """Those of one pack have rows of one greatest length, and one order of them; the packs have different ones."""
    length = Settings().max_seq_length
    return [
        Experiment(
            name=f"r{rank}_d{pack}", arm=f"r{rank}", experiment_type="rank_ablation", seed=0,
            settings=Settings(lora_rank=rank, data_seed=pack, max_seq_length=length + pack),
            sources=Sources(base_model="base", dataset="rows"),
        )
        for pack in range(first_data_seed, first_data_seed + num_packs)
        for rank in range(1, num_arms + 1)
    ]  # fmt: skip


def run_study(folder: Path, wanted: Sequence[Experiment]) -> None:
    """Run what is missing of the study in this folder, in this process; its workers are processes of their own."""
    with ExperimentTracker(folder / DATABASE, writable=True) as tracker:
        run_experiments(
            wanted,
            suite_name=SUITE,
            tracker=tracker,
            executor=LocalExecutor(worker=(str(SCRIPTED_WORKER),)),
            options=RunOptions(runs=folder / "results" / "runs", output=folder / "output"),
        )


def environment(**more: str) -> dict[str, str]:
    """For a process that imports this source, whatever else is installed."""
    return {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", **more}


def python(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A Python process that imports this source, and what it said."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
    )


def content(database: Path) -> dict[str, Any]:
    """All that the store says of the study's experiments, but for what differs from attempt to attempt.

    Raises:
        StoreError: the store says that it is damaged.
    """
    with ExperimentTracker(database) as tracker:
        return {
            result.experiment_id: {
                **_without(dataclasses.asdict(result)),
                "scores": {"/".join(key): dataclasses.asdict(score) for key, score in result.scores.items()},
                "items": {
                    "/".join(key): tracker.get_items(result.experiment_id, split=key[0], metric=key[1])
                    for key in result.scores
                },
                "steps": [dataclasses.asdict(step) for step in tracker.get_steps(result.experiment_id)],
                "generations": [
                    dataclasses.asdict(one) for one in tracker.get_generations(result.experiment_id)
                ],
            }
            for result in tracker.get_all_experiments()
        }


def text(found: Mapping[str, Any]) -> str:
    """Contents as text, which compares a NaN as equal to itself."""
    return json.dumps(found, sort_keys=True)


def _without(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in OF_THE_ATTEMPT}
