"""The rows of whole suites: the lab's, and ranks of a real model on Alpaca data, each against a sequential baseline.

**The lab.** The whole process, against the same suite as Trainer + PEFT runs. Both sides train every experiment on the same tokens
in the same order and score it on the same sets: held-out loss, loss on old facts, greedy answers. Ours also measures what each arm
costs alone and fills a store, and has to do it in the time that is compared.

**Alpaca.** Against any script with the options of a sequential baseline. Both sides train the same ranks on the same rows in the
same order (`baseline_jobs`), with the same steps, rate, targets and alpha; ours through `lorastudy suite`. The baseline runs as a
user would start it, and once more with the settings of allocator and threads that our worker gets, so that what those alone are
worth can be told apart.
"""

import json
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.job import DTYPES, AlpacaRequest
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

#: Largest relative difference in held-out loss from equal first weights. fp32: Adam's epsilon of 1e-8 turns rounding
#: noise in small gradients into steps. bf16: the two sides round in different places, 2^-9 each time (tests/parity).
TOLERANCES = {"fp32": 1e-4, "bf16": 2e-3}


def lab_row(*, num_rounds: int, say: Say, **changes: Any) -> Row:
    """Measure the shipped suite; `changes` are keys of it to be set otherwise (fewer steps, for a trial)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suite = folder / "suite.json"
        # One order of the rows for all seeds, as the baseline's job has: what both sides train is then the same.
        setting = YAML(typ="safe").load(lab.rank_study()) | {"data_seed": 0} | changes
        suite.write_text(json.dumps(setting), encoding="utf-8")
        job = folder / "job.json"
        run_timed(["-m", "benchmarks.baseline_jobs", "lab", str(suite), str(job)], folder=folder)
        peak = matmul_peak("float32")
        runs: list[SuiteRun] = []
        sides = {
            OURS: partial(_lab_suite, suite=suite, runs=runs),
            BASELINE: partial(_lab_baseline, job=job, side=BASELINE),
            BASELINE_TUNED: partial(_lab_baseline, job=job, side=BASELINE_TUNED),
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


def _lab_suite(number: int, *, suite: Path, runs: list[SuiteRun]) -> Sample:
    sample, run = timed_suite(suite, number=number)
    runs.append(run)
    return sample


def _lab_baseline(number: int, *, job: Path, side: str) -> Sample:
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


def alpaca_row(
    row_id: str, request: AlpacaRequest, *, baseline: Path, num_rounds: int, say: Say
) -> Row:  # fmt: skip
    """Measure one precision."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_timed(
            ["-m", "benchmarks.baseline_jobs", "alpaca", str(request.write(folder / "request.json"))],
            folder=folder,
        )
        suite = folder / "suite.json"
        suite.write_text(json.dumps(suite_of(request, folder=folder)), encoding="utf-8")
        peak = matmul_peak(DTYPES[request.quantization])
        runs: list[SuiteRun] = []
        sides = {
            OURS: partial(_alpaca_suite, suite=suite, runs=runs),
            BASELINE: partial(
                _alpaca_baseline, script=baseline, request=request, folder=folder, side=BASELINE
            ),
            BASELINE_TUNED: partial(
                _alpaca_baseline, script=baseline, request=request, folder=folder, side=BASELINE_TUNED
            ),
        }
        # Before the timed rounds, also because it brings libraries and weights into the file cache.
        say(f"{row_id}: both sides from equal first weights, not timed")
        parity = run_timed(["-m", "benchmarks.parity", str(folder / "job.json")], folder=folder)
        samples, repeats = interleaved(sides, num_rounds=num_rounds, say=say, once=(BASELINE_TUNED,))
    theirs = next(sample for sample in samples if sample.side == BASELINE)
    return Row(
        id=row_id,
        setting=asdict(request) | {"model": Path(request.model).name, "data": Path(request.data).name},
        samples=samples,
        repeats=repeats,
        num_tokens=runs[0].num_tokens,
        num_parameters=runs[0].num_parameters,
        peak_flops=max(peak, matmul_peak(DTYPES[request.quantization])),
        quality=agreement(
            parity.output, theirs=theirs, ours=samples[0], tolerance=TOLERANCES[request.quantization]
        ),
    )


def suite_of(request: AlpacaRequest, *, folder: Path) -> dict[str, object]:
    """The suite that trains the same; JSON is YAML too."""
    return {
        "suite_name": "benchmark",
        "experiment_type": "rank_ablation",
        "base_model": request.model,
        "dataset_path": str(folder / "train.json"),
        "eval_dataset_path": str(folder / "held_out.json"),
        "quantization": request.quantization,
        "max_steps": request.steps,
        "per_device_train_batch_size": request.batch_size,
        "max_seq_length": request.max_length,
        "learning_rate": request.learning_rate,
        "lr_scheduler_type": "constant",
        "lora_alpha": request.alpha,
        "target_modules": list(request.targets),
        "max_generation_samples": 0,
        "seeds": [request.seed],
        "data_seed": 0,  # of which `baseline_jobs` knows the order
        "factors": {"lora_rank": list(request.ranks)},
    }


def baseline_arguments(request: AlpacaRequest) -> list[str]:
    """The options of a sequential baseline for the same work."""
    return [
        *("--model", request.model, "--data", request.data, "--device", "cpu"),
        *("--num-train", str(request.num_train), "--num-eval", str(request.num_eval)),
        *("--ranks", *map(str, request.ranks), "--alpha", str(request.alpha), "--targets", *request.targets),
        *("--steps", str(request.steps), "--batch-size", str(request.batch_size)),
        *("--max-length", str(request.max_length), "--learning-rate", str(request.learning_rate)),
        *("--seed", str(request.seed), "--dtype", DTYPES[request.quantization]),
    ]


def _alpaca_suite(number: int, *, suite: Path, runs: list[SuiteRun]) -> Sample:
    sample, run = timed_suite(suite, number=number)
    runs.append(run)
    return sample


def _alpaca_baseline(number: int, *, script: Path, request: AlpacaRequest, folder: Path, side: str) -> Sample:
    before = load_average()
    done = run_timed(
        [str(script.resolve()), *baseline_arguments(request)],
        folder=folder,
        extra=TUNING if side == BASELINE_TUNED else None,
    )
    printed = json.loads(done.output.strip().splitlines()[-1])
    return Sample(
        side=side,
        round=number,
        train_seconds=printed["train_seconds"],
        wall_seconds=done.wall_seconds,
        load_average=before,
        losses={f"r{run['rank']}_s{request.seed}/eval": run["heldout_loss"] for run in printed["runs"]},
        detail={
            "num_threads": printed["num_threads"],
            "load_seconds": sum(run["load_seconds"] for run in printed["runs"]),
            "eval_seconds": sum(run["eval_seconds"] for run in printed["runs"]),
            "step_losses": {f"r{run['rank']}_s{request.seed}": run["step_loss"] for run in printed["runs"]},
        },
    )
