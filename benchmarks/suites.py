"""Our side: a suite through the product's own command, in a folder of its own, and what its records say."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import load_average
from benchmarks.processes import run_timed
from benchmarks.results import OURS, Sample
from lorastudy.executors.process import LOG_NAME
from lorastudy.record_lines import RecordReader
from lorastudy.records import ArmProfile, Environment, Outcome, Pack, PackProfile, PackStep, Score

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
    profiles: list[PackProfile] = []
    arms: list[ArmProfile] = []
    num_tokens = num_threads = 0
    losses: dict[str, float] = {}
    for pack_file in sorted(runs.glob("*/*/pack.json")):
        pack = Pack.read(pack_file.parent)
        names = {each.id: name_of(each.settings.lora_rank, each.seed) for each in pack.experiments}
        for record in RecordReader(pack_file.parent / "records.jsonl").read_new():
            match record:
                case Environment():
                    num_threads = record.num_threads
                case PackProfile():
                    profiles.append(record)
                case ArmProfile():
                    arms.append(record)
                case PackStep():
                    num_tokens += record.num_tokens
                case Score(metric="loss") if not record.split.endswith("_before"):
                    losses[f"{names[record.experiment_id]}/{record.split}"] = record.value
                case Outcome() if record.status != "completed":
                    raise RuntimeError(f"{names[record.experiment_id]}: {record.status}: {record.message}")
                case _:
                    pass
    together = _together(num_workers=len(list(runs.glob(f"*/*/{LOG_NAME}"))), num_packs=len(profiles))
    return SuiteRun(
        train_seconds=together(profile.train_seconds for profile in profiles),
        load_seconds=together(profile.load_seconds for profile in profiles),
        eval_seconds=together(profile.eval_seconds for profile in profiles),
        step_seconds=together(profile.median_step_seconds or 0.0 for profile in profiles),
        num_tokens=num_tokens,
        num_parameters=arms[0].num_total_parameters - arms[0].num_trainable_parameters,
        num_packs=len(profiles),
        num_threads=num_threads,
        engines=tuple(sorted({profile.engine for profile in profiles})),
        losses=losses,
    )


def _together(*, num_workers: int, num_packs: int) -> Callable[[Iterable[float]], float]:
    """How long packs take together: one after another in one worker, or as long as the slowest, each in its own.

    Raises:
        RuntimeError: neither is so, and the records do not say which worker served which pack.
    """
    if num_workers == 1:
        return sum
    if num_workers == num_packs:
        return max
    raise RuntimeError(
        f"{num_packs} packs in {num_workers} workers: how long they took together is not on record"
    )


def name_of(rank: int, seed: int) -> str:
    """How a configuration is called on both sides."""
    return f"r{rank}_s{seed}"
