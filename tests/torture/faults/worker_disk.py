"""The same as in the row `disk` for the worker that trains: its records, its checkpoints, its adapters, its log.

A checkpoint that cannot be written costs a study nothing but the checkpoint; anything else that cannot be written ends the
worker and the suite with one message, and what was trained up to the last checkpoint is not trained again.
"""

from pathlib import Path

from torture.faults import disk
from torture.harness import FaultResult, Row

ROW = Row(
    fault="ENOSPC and EIO at the k-th change that a worker makes to its files while it trains",
    must="nothing lost, one message, the same command goes on",
    short=1,
    default=100_000,  # every k, with both
    kept=100_000,
    in_memory=True,
)


def run(*, amount: int, seed: int, folder: Path, until: str | None = None) -> FaultResult:
    """Every change of the worker alone."""
    return disk.inject(ROW, worker="real", amount=amount, seed=seed, folder=folder, until=until)


unavailable = disk.unavailable
