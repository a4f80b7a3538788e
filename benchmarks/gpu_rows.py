"""One row of the GPU table: packed against sequential, in one process, on one frozen base."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from benchmarks import sequential
from benchmarks.job import Job, Run
from benchmarks.parity import arms_of, first_weights, token_row, train_from
from benchmarks.peak import SIZES, peak_flops
from benchmarks.random_base import (
    as_base,
    config_of,
    length_summary,
    quantise,
    random_model,
    rows_like_alpaca,
    tiny,
)
from benchmarks.results import BASELINE, OURS, Quality, Row, Sample, largest_relative
from lorastudy.engine.batch import assemble
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.meter import num_parameters
from lorastudy.engine.packed import PackedEngine

if TYPE_CHECKING:
    from benchmarks.gpu import Asked, Budget

RANKS = (4, 8, 16, 32, 64)
ALPHA, LEARNING_RATE = 16.0, 2e-4
#: bf16 rounds in different places on the two sides, 2^-9 each time (tests/parity).
TOLERANCE = 1e-2


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured: optimizer steps of a run, rounds, tokens of the longest row."""

    num_steps: int = 20
    num_rounds: int = 3
    longest: int = 512
    is_tiny: bool = False

    @classmethod
    def smoke(cls) -> Self:
        """Just enough to go through every line."""
        return cls(num_steps=3, num_rounds=1, longest=32, is_tiny=True)


def device_name(device: str) -> str:
    """The accelerator's name, or the processor's.

    Raises:
        SystemExit: there is no such device.
    """
    if device == "cpu":
        from benchmarks.machine import processor

        return str(processor()["model"])
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device; --device cpu --smoke tries the script without one")
    return torch.cuda.get_device_name()


def speed_row(asked: "Asked", *, shape: str, device: str, scale: Scale, budget: "Budget") -> Row:
    """Measure one row: rounds in turn until there are enough or the budget would not bear another."""
    job = _job(asked, shape=shape, device=device, scale=scale)
    base = _base(job, config=_config(shape, scale=scale))
    sides: dict[str, Callable[[int], Sample]] = {
        OURS: lambda number: _ours(number, job=job, base=base),
        BASELINE: lambda number: _theirs(number, job=job, base=base),
    }
    _warm_up(job, base=base)
    peak = peak_flops(job.dtype, device=device, size=64 if scale.is_tiny else SIZES[device])
    samples: list[Sample] = []
    for number in range(scale.num_rounds):
        start = time.perf_counter()
        samples += [side(number) for side in sides.values()]
        if budget.left < 1.5 * (time.perf_counter() - start):
            break
    repeats = (sides[OURS](samples[-1].round),)
    return Row(
        id=asked.id,
        setting={
            "shape": shape,
            "num_arms": asked.num_arms,
            "quantization": asked.quantization,
            "batch_size": asked.batch_size,
            "num_steps": job.num_steps,
            "ranks": [run.rank for run in job.runs],
            "targets": list(job.targets),
            "row_lengths": dict(length_summary(job.train)),
        },
        samples=tuple(samples),
        repeats=repeats,
        num_tokens=job.num_tokens * len(job.runs),
        num_parameters=num_parameters(base),
        peak_flops=peak,
        quality=_quality(job, base=base, theirs=next(s for s in samples if s.side == BASELINE)),
    )


def _job(asked: "Asked", *, shape: str, device: str, scale: Scale) -> Job:
    config = _config(shape, scale=scale)
    quantization: Literal["bf16", "4bit"] = "4bit" if asked.quantization == "4bit" else "bf16"
    return Job(
        model=shape,
        random_weights=True,
        device=device,
        quantization=quantization,
        targets=_targets(config),
        batch_size=asked.batch_size,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        runs=runs_of(asked.num_arms),
        train=rows_like_alpaca(
            asked.batch_size * scale.num_steps, vocabulary=config.vocab_size, longest=scale.longest, seed=0
        ),
        scored={},
    )


def runs_of(num_arms: int) -> tuple[Run, ...]:
    """The ranks, with seed after seed until there are enough."""
    return tuple(
        Run(name=f"r{RANKS[n % len(RANKS)]}_s{n // len(RANKS)}", rank=RANKS[n % len(RANKS)], alpha=ALPHA,
            seed=n // len(RANKS))
        for n in range(num_arms)
    )  # fmt: skip


def _config(shape: str, *, scale: Scale) -> Any:
    return tiny(config_of(shape)) if scale.is_tiny else config_of(shape)


def _targets(config: Any) -> tuple[str, ...]:
    """The attention's four projections, under this family's names."""
    return ("q_proj", "k_proj", "v_proj", "dense" if config.model_type == "phi" else "o_proj")


def _base(job: Job, *, config: Any) -> BaseModel:
    dtype, device = getattr(torch, job.dtype), torch.device(job.device)
    model = random_model(config, dtype=dtype, device=device)
    if job.quantization == "4bit":
        quantise(model, quantization=job.quantization, dtype=dtype)
    return as_base(model, name=job.model, device=device, dtype=dtype)


def _warm_up(job: Job, *, base: BaseModel) -> None:
    """Both sides once, briefly: kernels are loaded and chosen at their first use."""
    short = replace(job, train=job.train[: 2 * job.batch_size])
    _ours(0, job=short, base=base)
    sequential.run_one(short.runs[0], job=short, base=base.model)


def _ours(number: int, *, job: Job, base: BaseModel) -> Sample:
    _forget_peak(job.device)
    steps = [[assemble([token_row(row) for row in rows], device=base.device)] for rows in job.batches()]
    arms = arms_of(job, base=base)
    ends: list[float] = []

    def on_step(_: object) -> None:
        sequential.synchronise(job.device)
        ends.append(time.perf_counter())

    start = time.perf_counter()
    engine = PackedEngine(base, arms)
    try:
        engine.train(steps, on_step=on_step)
        seconds = ends[-1] - start
    finally:
        engine.close()
    each = _between([start, *ends])
    return Sample(
        side=OURS,
        round=number,
        train_seconds=seconds,
        step_seconds=_warm_median(each),
        detail={"step_seconds": each, "peak_memory_bytes": _peak(job.device)},
    )


def _theirs(number: int, *, job: Job, base: BaseModel) -> Sample:
    runs = [sequential.run_one(run, job=job, base=base.model) for run in job.runs]
    base.model.eval().requires_grad_(requires_grad=False)
    return Sample(
        side=BASELINE,
        round=number,
        train_seconds=sum(run["train_seconds"] for run in runs),
        step_seconds=sum(run["step_seconds"] for run in runs),
        detail={
            "step_seconds": [run["step_seconds"] for run in runs],
            "step_losses": {run["name"]: run["step_losses"] for run in runs},
            "peak_memory_bytes": max((run["peak_memory_bytes"] or 0 for run in runs), default=0) or None,
        },
    )


def _quality(job: Job, *, base: BaseModel, theirs: Sample) -> Quality:
    """The training loss of every step, from the weights that PEFT drew."""
    starts = {}
    for run in job.runs:
        model = sequential.peft_model(run, job=job, base=base.model)
        starts[run.name] = first_weights(model)
        model.unload()
    base.model.eval().requires_grad_(requires_grad=False)
    ours = {
        f"{run['name']}/step_{step}": loss
        for run in train_from(starts, base=base, job=job)
        for step, loss in enumerate(run["step_losses"])
    }
    expected = {
        f"{name}/step_{step}": loss
        for name, losses in theirs.detail["step_losses"].items()
        for step, loss in enumerate(losses)
    }
    return Quality(
        compared="the training loss of every step, from the baseline's first weights",
        tolerance=TOLERANCE,
        largest_difference=largest_relative(ours, expected),
    )


def _between(times: Sequence[float]) -> list[float]:
    return [end - start for start, end in itertools.pairwise(times)]


def _warm_median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds[1:] or seconds)


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None
