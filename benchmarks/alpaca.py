"""The rows of a real model on Alpaca data, against any script with the options of a sequential baseline.

Both sides train the same ranks on the same rows in the same order (`baseline_jobs`), with the same steps, rate,
targets and alpha; ours through `lorastudy suite`. The baseline runs as a user would start it, and once more with the
settings of allocator and threads that our worker gets, so that what those alone are worth can be told apart.
"""

import json
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

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
from benchmarks.results import BASELINE, BASELINE_TUNED, OURS, Row, Sample

#: Largest relative difference in held-out loss from equal first weights. fp32: Adam's epsilon of 1e-8 turns rounding
#: noise in small gradients into steps. bf16: the two sides round in different places, 2^-9 each time (tests/parity).
TOLERANCES = {"fp32": 1e-4, "bf16": 2e-3}


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
            OURS: partial(_ours, suite=suite, runs=runs),
            BASELINE: partial(_theirs, script=baseline, request=request, folder=folder, side=BASELINE),
            BASELINE_TUNED: partial(
                _theirs, script=baseline, request=request, folder=folder, side=BASELINE_TUNED
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


def _ours(number: int, *, suite: Path, runs: list[SuiteRun]) -> Sample:
    sample, run = timed_suite(suite, number=number)
    runs.append(run)
    return sample


def _theirs(number: int, *, script: Path, request: AlpacaRequest, folder: Path, side: str) -> Sample:
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
