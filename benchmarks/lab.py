"""The row of the lab's suite: the whole process, against the same suite as Trainer + PEFT runs.

Both sides train every experiment on the same tokens in the same order and score it on the same sets: held-out
loss, loss on old facts, greedy answers. Ours also measures what each arm costs alone and fills a store, and has to
do it in the time that is compared.
"""

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.machine import load_average
from benchmarks.processes import (
    TUNING,
    Say,
    SuiteRun,
    agreement,
    interleaved,
    matmul_peak,
    run_timed,
    timed_suite,
)
from benchmarks.results import (
    BASELINE,
    BASELINE_TUNED,
    OURS,
    Quality,
    Row,
    Sample,
    by_step,
    largest_relative,
)
from lorastudy import lab

#: The steps whose losses are compared from equal first weights, as in the parity tests, and by how much they may differ.
#: Later steps say little: at this suite's rate the rounding of rank 16 grows tenfold in ten steps, so that losses which agree
#: to 1e-6 after 20 steps are a tenth apart after 80, while those of rank 1 agree to 1e-6 to the end.
NUM_COMPARED_STEPS, TOLERANCE = 20, 1e-5


def lab_row(*, num_rounds: int, say: Say, **changes: Any) -> Row:
    """Measure the shipped suite; `changes` are keys of it to be set otherwise (fewer steps, for a trial)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suite = folder / "suite.json"
        # One order of the rows for all seeds, as the baseline's job has: what both sides train is then the same.
        setting = YAML(typ="safe").load(lab.demo_suite()) | {"data_seed": 0} | changes
        suite.write_text(json.dumps(setting), encoding="utf-8")
        job = folder / "job.json"
        run_timed(["-m", "benchmarks.baseline_jobs", "lab", str(suite), str(job)], folder=folder)
        peak = matmul_peak("float32")
        runs: list[SuiteRun] = []
        sides = {
            OURS: partial(_ours, suite=suite, runs=runs),
            BASELINE: partial(_theirs, job=job, side=BASELINE),
            BASELINE_TUNED: partial(_theirs, job=job, side=BASELINE_TUNED),
        }
        say("lab: both sides from equal first weights, not timed")
        parity = run_timed(["-m", "benchmarks.parity", str(job)], folder=folder)
        samples, repeats = interleaved(sides, num_rounds=num_rounds, say=say, once=(BASELINE_TUNED,))
    theirs = next(sample for sample in samples if sample.side == BASELINE)
    return Row(
        id="lab",
        setting={key: value for key, value in setting.items() if key != "description"},
        samples=samples,
        repeats=repeats,
        num_tokens=runs[0].num_tokens,
        num_parameters=runs[0].num_parameters,
        peak_flops=max(peak, matmul_peak("float32")),
        quality=_quality(parity.output, ours=samples[0], theirs=theirs),
    )


def _quality(printed: str, *, ours: Sample, theirs: Sample) -> Quality:
    replayed = {run["name"]: run["step_losses"] for run in json.loads(printed)["runs"]}
    at_the_end = agreement(printed, ours=ours, theirs=theirs, tolerance=TOLERANCE)
    return Quality(
        compared=f"training losses of the first {NUM_COMPARED_STEPS} steps, from the baseline's first weights",
        tolerance=TOLERANCE,
        largest_difference=largest_relative(
            by_step(replayed, num_steps=NUM_COMPARED_STEPS),
            by_step(theirs.detail["step_losses"], num_steps=NUM_COMPARED_STEPS),
        ),
        at_the_end=at_the_end.largest_difference,
        own_start=at_the_end.own_start,
    )


def _ours(number: int, *, suite: Path, runs: list[SuiteRun]) -> Sample:
    sample, run = timed_suite(suite, number=number)
    runs.append(run)
    return sample


def _theirs(number: int, *, job: Path, side: str) -> Sample:
    before = load_average()
    done = run_timed(
        ["-m", "benchmarks.sequential", str(job)],
        folder=job.parent,
        extra=TUNING if side == BASELINE_TUNED else None,
    )
    printed = json.loads(done.output.strip().splitlines()[-1])
    runs = printed["runs"]
    return Sample(
        side=side,
        round=number,
        train_seconds=sum(run["train_seconds"] for run in runs),
        wall_seconds=done.wall_seconds,
        step_seconds=sum(run["step_seconds"] for run in runs),
        load_average=before,
        losses={f"{run['name']}/{split}": loss for run in runs for split, loss in run["losses"].items()},
        detail={
            "num_threads": printed["num_threads"],
            "load_seconds": sum(run["load_seconds"] for run in runs),
            "eval_seconds": sum(run["eval_seconds"] for run in runs),
            "step_losses": {run["name"]: run["step_losses"][:NUM_COMPARED_STEPS] for run in runs},
        },
    )
