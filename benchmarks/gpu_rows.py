"""One row of the GPU table: packed against sequential, in one process, on one frozen base."""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch

from benchmarks import sequential
from benchmarks.job import Budget, GpuRequest, Job, Run
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
from benchmarks.results import BASELINE, OURS, Quality, Row, Sample, by_step, largest_relative
from lorastudy.engine.batch import assemble
from lorastudy.engine.environment import is_out_of_memory
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.meter import num_parameters
from lorastudy.engine.numerics import numerics
from lorastudy.engine.packed import PackedEngine

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


class Bases:
    """The base model of the last row, kept while rows of one precision follow each other."""

    def __init__(self) -> None:
        self._kept: tuple[str, BaseModel] | None = None

    def get(self, job: Job, *, config: Any) -> BaseModel:
        """The base in the job's precision, of random weights."""
        if self._kept is None or self._kept[0] != job.quantization:
            self._kept = None  # the old one goes before the new one comes
            self._kept = (job.quantization, base_of(job, config=config))
        return self._kept[1]


def speed_row(
    request: GpuRequest, *, shape: str, device: str, scale: Scale, budget: Budget, bases: Bases
) -> Row:  # fmt: skip
    """Measure one row: rounds in turn until there are enough or the budget would not bear another.

    Raises:
        RuntimeError: not even one arm at a time fits.
    """
    job = job_of(request, shape=shape, device=device, scale=scale)
    base = bases.get(job, config=scaled_config(shape, scale=scale))
    peak = peak_flops(job.dtype, device=device, size=64 if scale.is_tiny else SIZES[device])
    arms_per_pack = _warm_up(job, base=base)
    sides: dict[str, Callable[[int], Sample]] = {
        OURS: lambda number: _ours(number, job=job, base=base, arms_per_pack=arms_per_pack),
        BASELINE: lambda number: _theirs(number, job=job, base=base),
    }
    samples: list[Sample] = []
    for number in range(scale.num_rounds):
        start = time.perf_counter()
        samples += [side(number) for side in sides.values()]
        if budget.left < 1.5 * (time.perf_counter() - start):
            break
    repeats = (sides[OURS](samples[-1].round),)
    theirs = next(sample for sample in samples if sample.side == BASELINE)
    return Row(
        id=request.id,
        setting={
            "shape": shape,
            "num_arms": request.num_arms,
            "arms_per_pack": arms_per_pack,
            "quantization": request.quantization,
            "batch_size": request.batch_size,
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
        quality=_quality(job, base=base, theirs=theirs, arms_per_pack=arms_per_pack),
    )


def job_of(request: GpuRequest, *, shape: str, device: str, scale: Scale) -> Job:
    """The work of a row: its arms, and rows of random tokens in the lengths of Alpaca's."""
    config = scaled_config(shape, scale=scale)
    quantization: Literal["bf16", "4bit"] = "4bit" if request.quantization == "4bit" else "bf16"
    return Job(
        model=shape,
        random_weights=True,
        device=device,
        quantization=quantization,
        targets=_targets(config),
        batch_size=request.batch_size,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        runs=runs_of(request.num_arms),
        train=rows_like_alpaca(
            request.batch_size * scale.num_steps, vocabulary=config.vocab_size, longest=scale.longest, seed=0
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


def scaled_config(shape: str, *, scale: Scale) -> Any:
    """The configuration of a shape, or the tiny one of its architecture."""
    return tiny(config_of(shape)) if scale.is_tiny else config_of(shape)


def _targets(config: Any) -> tuple[str, ...]:
    """The attention's four projections, under this family's names."""
    return ("q_proj", "k_proj", "v_proj", "dense" if config.model_type == "phi" else "o_proj")


def base_of(job: Job, *, config: Any) -> BaseModel:
    """A base of random weights in the job's precision."""
    dtype, device = getattr(torch, job.dtype), torch.device(job.device)
    model = random_model(config, dtype=dtype, device=device)
    if job.quantization == "4bit":
        quantise(model, quantization=job.quantization, dtype=dtype)
    return as_base(model, name=job.model, device=device, dtype=dtype)


def _warm_up(job: Job, *, base: BaseModel) -> int:
    """Both sides once on the largest batch, since kernels are loaded and chosen at their first use.

    Returns how many arms go into a pack: all, or, where memory runs out, half as many and half again, as the product
    does it.
    """
    largest = max(job.batches(), key=lambda rows: sum(len(row.input_ids) for row in rows))
    short = replace(job, train=(*largest, *largest))
    sequential.run_one(short.runs[0], job=short, base=base.model)
    arms_per_pack = len(job.runs)
    while True:
        try:
            _ours(0, job=short, base=base, arms_per_pack=arms_per_pack)
        except RuntimeError as error:
            if arms_per_pack == 1 or not is_out_of_memory(error):
                raise
        else:
            return arms_per_pack
        arms_per_pack = math.ceil(arms_per_pack / 2)


def packs_of(job: Job, *, arms_per_pack: int) -> list[Job]:
    """The job in parts of at most that many arms."""
    starts = range(0, len(job.runs), arms_per_pack)
    return [replace(job, runs=job.runs[start : start + arms_per_pack]) for start in starts]


def _ours(number: int, *, job: Job, base: BaseModel, arms_per_pack: int) -> Sample:
    """All packs, one after another."""
    _forget_peak(job.device)
    seconds = [_train_pack(pack, base=base) for pack in packs_of(job, arms_per_pack=arms_per_pack)]
    return Sample(
        side=OURS,
        round=number,
        train_seconds=sum(sum(each) for each in seconds),
        step_seconds=sum(statistics.median(each[1:] or each) for each in seconds),
        detail={"step_seconds": seconds, "peak_memory_bytes": _peak(job.device)},
    )


def _train_pack(job: Job, *, base: BaseModel) -> list[float]:
    """Seconds of each step; the first one has the making of the adapters in it."""
    steps = [[assemble([token_row(row) for row in rows], device=base.device)] for rows in job.batches()]
    arms = arms_of(job, base=base)
    times = [time.perf_counter()]

    def on_step(_: object) -> None:
        sequential.synchronise(job.device)
        times.append(time.perf_counter())

    engine = PackedEngine(base, arms)
    try:
        with numerics(base.device, deterministic=True):  # as in a worker
            engine.train(steps, on_step=on_step)
    finally:
        engine.close()
    return [end - start for start, end in itertools.pairwise(times)]


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


def _quality(job: Job, *, base: BaseModel, theirs: Sample, arms_per_pack: int) -> Quality:
    """The training loss of every step, from the weights that PEFT drew."""
    starts = {}
    for run in job.runs:
        model = sequential.peft_model(run, job=job, base=base.model)
        starts[run.name] = first_weights(model)
        model.unload()
    base.model.eval().requires_grad_(requires_grad=False)
    ours = {
        run["name"]: run["step_losses"]
        for pack in packs_of(job, arms_per_pack=arms_per_pack)
        for run in train_from(starts, base=base, job=pack)
    }
    return Quality(
        compared="the training loss of every step, from the baseline's first weights",
        tolerance=TOLERANCE,
        largest_difference=largest_relative(by_step(ours), by_step(theirs.detail["step_losses"])),
    )


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None
