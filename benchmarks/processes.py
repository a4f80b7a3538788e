"""Programs, timed as a user meets them: from the start of the process to its end."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.results import OURS, Quality, Sample, largest_relative
from lorastudy.executors.process import ALLOCATOR_ENVIRONMENT, THREADS_ENVIRONMENT

#: What the product gives its workers. A baseline gets what the user's shell has, and in a second series this too.
TUNING = {**ALLOCATOR_ENVIRONMENT, **THREADS_ENVIRONMENT}


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a program printed, and how long it took as a whole."""

    wall_seconds: float
    output: str


def plain_environment(
    environment: Mapping[str, str], *, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment without any of our tuning, then `extra`; this repository's packages come first."""
    kept = {key: value for key, value in environment.items() if key not in TUNING}
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **offline, "PYTHONPATH": os.pathsep.join(paths), **(extra or {})}


def run_timed(arguments: Sequence[str], *, folder: Path, extra: Mapping[str, str] | None = None) -> Finished:
    """Run Python with these arguments in the folder; its output must not be lost when it fails.

    Raises:
        RuntimeError: it ended with another code than 0; holds the end of what it said.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=plain_environment(os.environ, extra=extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        said = (done.stderr or done.stdout)[-3000:]
        raise RuntimeError(f"{' '.join(arguments)} ended with {done.returncode}:\n{said}")
    return Finished(wall_seconds=seconds, output=done.stdout)


Say = Callable[[str], None]
"""Tells whoever waits what is going on."""
Side = Callable[[int], Sample]
"""One timed run in the round of that number."""


def interleaved(
    sides: Mapping[str, Side], *, num_rounds: int, say: Say, once: Collection[str] = ()
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """(samples, repeats): every side once a round, in turn; then ours once more in the last round, for A/A.

    Sides named in `once` run in the first round alone: what they cost is worth one look, not three.
    """
    samples = []
    for number in range(num_rounds):
        for name, side in sides.items():
            if number and name in once:
                continue
            samples.append(_told(side(number), say=say))
            assert samples[-1].side == name
    repeats = (_told(sides[OURS](num_rounds - 1), say=say),) if num_rounds else ()
    return tuple(samples), repeats


def _told(sample: Sample, *, say: Say) -> Sample:
    whole = "" if sample.wall_seconds is None else f", {sample.wall_seconds:.1f} s the whole process"
    say(f"round {sample.round + 1}: {sample.side}: {sample.train_seconds:.1f} s training{whole}")
    return sample


def matmul_peak(dtype: str) -> float:
    """Operations a second of a large matrix product in that precision, in a process of its own."""
    done = run_timed(["-m", "benchmarks.peak", "--dtypes", dtype], folder=ROOT, extra=TUNING)
    return float(json.loads(done.output)[dtype])


def agreement(printed: str, *, ours: Sample, theirs: Sample, tolerance: float) -> Quality:
    """How far held-out losses lie apart: from equal first weights (what counts), and in the timed runs."""
    replayed = {
        f"{run['name']}/{split}": loss
        for run in json.loads(printed)["runs"]
        for split, loss in run["losses"].items()
    }
    return Quality(
        compared="held-out losses after all steps, from the baseline's first weights",
        tolerance=tolerance,
        largest_difference=largest_relative(replayed, theirs.losses),
        own_start=largest_relative(ours.losses, theirs.losses),
    )
