"""Programs, timed from the start of the process to its end; and our side of a comparison: a suite through the product's command."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.machine import ROOT, load_average
from benchmarks.results import OURS, Quality, Sample, largest_relative
from lorastudy.executors.process import ALLOCATOR_ENVIRONMENT, CUDA_ENVIRONMENT, THREADS_ENVIRONMENT
from lorastudy.protocol.jobs import LOG_NAME, SERVING
from lorastudy.protocol.records import (
    ArmProfile,
    Environment,
    Outcome,
    Pack,
    PackProfile,
    PackStep,
    RecordReader,
    Score,
)
from lorastudy.protocol.run_folder import attempt_name
from lorastudy.suite.question import rung_step

#: What the product gives its workers. A baseline gets what the user's shell has, and in a second series this too.
TUNING = {**ALLOCATOR_ENVIRONMENT, **CUDA_ENVIRONMENT, **THREADS_ENVIRONMENT}

_FILES = ("--database", "results/experiments.db", "--runs-dir", "results/runs", "--output-dir", "output")


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


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """What the records of all packs say. `losses` by configuration and split: `r8_s0/eval`."""

    train_seconds: float
    load_seconds: float
    eval_seconds: float
    step_seconds: float
    num_tokens: int
    num_parameters: int
    num_packs: int
    num_threads: int
    engines: tuple[str, ...]
    losses: dict[str, float]


def timed_suite(suite: Path, *, number: int) -> tuple[Sample, SuiteRun]:
    """Run `lorastudy suite` with a fresh store; the sample of that round, and what its records say."""
    before = load_average()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = run_timed(["-m", "lorastudy.cli.main", "suite", str(suite), *_FILES], folder=folder)
        run = read_runs(folder / "results" / "runs")
    sample = Sample(
        side=OURS,
        round=number,
        train_seconds=run.train_seconds,
        wall_seconds=done.wall_seconds,
        step_seconds=run.step_seconds,
        load_average=before,
        losses=run.losses,
        detail={
            "load_seconds": run.load_seconds,
            "eval_seconds": run.eval_seconds,
            "num_packs": run.num_packs,
            "num_threads": run.num_threads,
            "engines": list(run.engines),
        },
    )
    return sample, run


def read_runs(runs: Path) -> SuiteRun:
    """All packs' records together.

    Raises:
        RuntimeError: an experiment did not complete, so there is nothing to compare.
    """
    read = [_read(pack_file.parent) for pack_file in sorted(runs.glob("*/*/pack.json"))]
    together = partial(_together, read, workers=_workers(runs))
    arms = [arm for each in read for arm in each.arms]
    num_steps = len({step.step for each in read for step in each.steps})
    return SuiteRun(
        train_seconds=together(lambda each: sum(step.seconds for step in each.steps)),
        load_seconds=together(lambda each: each.profile.load_seconds if each.profile else 0.0),
        eval_seconds=together(lambda each: each.profile.eval_seconds if each.profile else 0.0),
        step_seconds=together(_if_all_took_the_median) / num_steps,
        num_tokens=sum(step.num_tokens for each in read for step in each.steps),
        num_parameters=arms[0].num_total_parameters - arms[0].num_trainable_parameters,
        num_packs=len(read),
        num_threads=read[0].num_threads,
        engines=tuple(sorted({each.profile.engine for each in read if each.profile})),
        losses={name: loss for each in read for name, loss in each.losses.items()},
    )


@dataclass(kw_only=True)
class _Served:
    """What the records of one folder say; `steps` are those that were taken for it, none that was carried over."""

    folder: Path
    begun: float
    steps: list[PackStep] = field(default_factory=list)
    arms: list[ArmProfile] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    profile: PackProfile | None = None
    num_threads: int = 0


def _read(folder: Path) -> _Served:
    pack = Pack.read(folder)
    names = {each.id: name_of(each.settings.lora_rank, each.seed) for each in pack.experiments}
    served = _Served(folder=folder, begun=pack.begun)
    for record in RecordReader(folder / "records.jsonl").read_new():
        match record:
            case Environment():
                served.num_threads = record.num_threads
            case PackProfile():
                served.profile = record
            case ArmProfile():
                served.arms.append(record)
            case PackStep() if record.step > rung_step(pack.begun, num_steps=record.num_steps):
                served.steps.append(record)
            case Score(metric="loss") if not record.split.endswith("_before"):
                served.losses[f"{names[record.experiment_id]}/{record.split}"] = record.value
            case Outcome() if record.status not in {"completed", "paused"}:
                raise RuntimeError(f"{names[record.experiment_id]}: {record.status}: {record.message}")
            case _:
                pass
    return served


def _workers(runs: Path) -> dict[str, Path]:
    """By the name of an attempt the log of the worker that served it."""
    return {
        line.removeprefix(SERVING): log
        for log in runs.glob(f"*/*/{LOG_NAME}")
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.startswith(SERVING)
    }


def _together(
    served: Sequence[_Served], seconds_of: Callable[[_Served], float], *, workers: Mapping[str, Path]
) -> float:
    """How long packs took: one after another in a worker, as long as the slowest of several, leg after leg."""
    legs: dict[bool, dict[Path, float]] = defaultdict(lambda: defaultdict(float))
    for each in served:
        legs[each.begun > 0][workers[attempt_name(each.folder)]] += seconds_of(each)
    return sum(max(by_worker.values()) for by_worker in legs.values())


def _if_all_took_the_median(served: _Served) -> float:
    return len(served.steps) * statistics.median(step.seconds for step in served.steps)


def name_of(rank: int, seed: int) -> str:
    """How a configuration is called on both sides."""
    return f"r{rank}_s{seed}"
