"""Our side: a suite through the product's own command, in a folder of its own, and what its records say."""

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.machine import load_average
from benchmarks.processes import run_timed
from benchmarks.results import OURS, Sample
from lorastudy.executors.process import LOG_NAME
from lorastudy.protocol.jobs import SERVING
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

_FILES = ("--database", "results/experiments.db", "--runs-dir", "results/runs", "--output-dir", "output")


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
