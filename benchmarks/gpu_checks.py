"""The steps of `benchmarks.gpu_first`. Each returns what it found as plain JSON values, and may fail alone."""

import copy
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks import gpu
from benchmarks.gpu_rows import Bases, Scale, job_of, packs_of, scaled_config
from benchmarks.job import Budget, GpuRequest, Job
from benchmarks.parity import arms_of, token_row
from benchmarks.random_base import as_base, quantise, random_model
from benchmarks.sequential import synchronise
from lorastudy.engine.arms import EngineState, StepResult
from lorastudy.engine.batch import Batch, assemble
from lorastudy.engine.environment import is_out_of_memory
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.numerics import numerics
from lorastudy.engine.packed import PackedEngine
from lorastudy.engine.reference import ReferenceEngine
from lorastudy.executors.process import CUDA_ENVIRONMENT

#: Rows of a profile that are kept.
TOP = 30
#: Operations that are launched to time one launch.
NUM_LAUNCHES = 10_000


@dataclass(kw_only=True)
class Bench:
    """What the steps share: the device, the model's shape and size, the time, and the last base."""

    device: str
    shape: str
    scale: Scale
    into: Path
    budget: Budget
    bases: Bases = field(default_factory=Bases)

    @property
    def torch_device(self) -> torch.device:
        """The device as torch has it."""
        return torch.device(self.device)

    def job(self, *, num_arms: int = 5) -> Job:
        """Arms of the ranks 4 to 64 in bf16 at micro-batch 1, on rows like Alpaca's."""
        request = GpuRequest(id="first", num_arms=num_arms, batch_size=1)
        return job_of(request, shape=self.shape, device=self.device, scale=self.scale)

    def base(self, job: Job) -> BaseModel:
        """The base of the job, of random weights."""
        return self.bases.get(job, config=scaled_config(self.shape, scale=self.scale))


# --- is it right? -----------------------------------------------------------------------------------------


def versions(bench: Bench) -> dict[str, Any]:
    """Versions, the device, and what torch found in the environment."""
    found: dict[str, Any] = {
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "environment": {name: os.environ.get(name) for name in (*CUDA_ENVIRONMENT, "CUDA_VISIBLE_DEVICES")},
    }
    if bench.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": properties.name,
            "capability": [properties.major, properties.minor],
            "memory_bytes": properties.total_memory,
            "num_multiprocessors": properties.multi_processor_count,
            "num_devices": torch.cuda.device_count(),
            "allocator": torch.cuda.get_allocator_backend(),
        }
    return found


def attention(bench: Bench) -> dict[str, Any]:
    """The kernel that attention takes, by precision and channels of a head, and whether its gradients repeat."""
    found = {}
    length = bench.scale.longest
    for dtype, channels in itertools.product((torch.bfloat16, torch.float16, torch.float32), (64, 80, 128)):
        with numerics(bench.torch_device, deterministic=True):
            q, k, v = (
                _drawn(2, 4, length, channels, dtype=dtype, bench=bench, seed=seed) for seed in range(3)
            )
            choice = SDPBackend(torch._fused_sdp_choice(q, k, v, is_causal=True)).name
            grads = [_attention_gradient(q, k, v) for _ in range(2)]
        found[f"{str(dtype).removeprefix('torch.')}, {channels} channels"] = {
            "kernel": choice,
            "repeats": torch.equal(*grads),
        }
    return found


def _drawn(*shape: int, dtype: torch.dtype, bench: Bench, seed: int) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(device=bench.torch_device, dtype=dtype).requires_grad_()


def _attention_gradient(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    (grad,) = torch.autograd.grad(out.float().square().sum(), k)
    return grad


def gradients(bench: Bench) -> dict[str, Any]:
    """Losses and gradient norms of the pack and of PEFT in bf16, against PEFT in fp64: the largest relative differences.

    Two layers of the shape, so that the model fits in fp64. The two in bf16 should be about as far from fp64.
    """
    config = copy.deepcopy(scaled_config(bench.shape, scale=bench.scale))
    config.num_hidden_layers = 2
    job = bench.job()
    job = replace(job, train=job.train[:3])
    model = random_model(config, dtype=torch.bfloat16, device=bench.torch_device)
    base = as_base(model, name=job.model, device=bench.torch_device, dtype=torch.bfloat16)
    exact_base = as_base(
        copy.deepcopy(model).double(), name=job.model, device=bench.torch_device, dtype=torch.float64
    )
    exact = _steps(ReferenceEngine, exact_base, job)[1]
    return {
        name: _largest_differences(_steps(kind, base, job)[1], exact)
        for name, kind in (("packed", PackedEngine), ("peft", ReferenceEngine))
    }


def _largest_differences(found: Sequence[StepResult], exact: Sequence[StepResult]) -> dict[str, float]:
    ours, theirs = (
        {(result.step, arm.experiment_id): arm for result in results for arm in result.arms}
        for results in (found, exact)
    )
    assert ours.keys() == theirs.keys()
    return {
        name: max(abs(getattr(ours[key], name) / getattr(theirs[key], name) - 1) for key in ours)
        for name in ("loss", "grad_norm")
    }


def same_bits(bench: Bench) -> dict[str, Any]:
    """Whether a second run and a resumed one reach the same bits, with deterministic algorithms and without."""
    job = bench.job()
    base = bench.base(job)
    half = job.num_steps // 2
    found: dict[str, Any] = {}
    for deterministic in (True, False):
        first, again = (_steps(PackedEngine, base, job, deterministic=deterministic)[0] for _ in range(2))
        middle = _steps(PackedEngine, base, job, deterministic=deterministic, stop=half)[0]
        resumed = _steps(PackedEngine, base, job, deterministic=deterministic, state=middle)[0]
        found["deterministic" if deterministic else "fastest"] = {
            "second_run": _equal(first, again),
            "resumed": _equal(first, resumed),
        }
    return found


def _equal(one: EngineState, other: EngineState) -> bool:
    return all(
        torch.equal(tensor, theirs.tensors[name])
        for ours, theirs in zip(one.arms, other.arms, strict=True)
        for name, tensor in ours.tensors.items()
    )


def _steps(
    kind: type[PackedEngine | ReferenceEngine],
    base: BaseModel,
    job: Job,
    *,
    deterministic: bool = True,
    state: EngineState | None = None,
    stop: int | None = None,
) -> tuple[EngineState, list[StepResult]]:
    """The engine's state after the job's steps up to `stop`, from a state or from the start, and the steps' results."""
    results: list[StepResult] = []
    with numerics(base.device, deterministic=deterministic):
        engine = kind(base, arms_of(job, base=base))
        try:
            if state is not None:
                engine.restore(state)
            start = 0 if state is None else state.arms[0].num_steps_done
            engine.train(_batches(job, base)[start:stop], on_step=results.append)
            return engine.state(), results
        finally:
            engine.close()


def _batches(job: Job, base: BaseModel) -> list[list[Batch]]:
    return [[assemble([token_row(row) for row in rows], device=base.device)] for rows in job.batches()]


def launch_cost(bench: Bench) -> dict[str, float]:
    """Microseconds of a small operation: until the host may go on, and until the device is done."""
    x = torch.zeros(16, device=bench.torch_device)
    for _ in range(100):
        x.add_(1)
    synchronise(bench.device)
    start = time.perf_counter()
    for _ in range(NUM_LAUNCHES):
        x.add_(1)
    launched = time.perf_counter()
    synchronise(bench.device)
    done = time.perf_counter()
    return {
        "host_microseconds": 1e6 * (launched - start) / NUM_LAUNCHES,
        "device_microseconds": 1e6 * (done - start) / NUM_LAUNCHES,
    }


def profile(bench: Bench) -> dict[str, Any]:
    """Three warm steps of five arms at micro-batch 1: seconds, kernels, and the operations that take most."""
    job = bench.job()
    base = bench.base(job)
    steps = _batches(job, base)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (bench.device == "cuda")
    with numerics(base.device, deterministic=True):
        engine = PackedEngine(base, arms_of(job, base=base))
        try:
            engine.train(steps[:-3], on_step=lambda _: None)
            synchronise(bench.device)
            with torch_profile(activities=activities) as recorded:
                start = time.perf_counter()
                engine.train(steps[-3:], on_step=lambda _: None)
                synchronise(bench.device)
                seconds = time.perf_counter() - start
        finally:
            engine.close()
    events = sorted(
        recorded.key_averages(),
        key=lambda event: -(event.self_device_time_total or event.self_cpu_time_total),
    )
    return {
        "num_steps": 3,
        "seconds": seconds,
        "num_launches": sum(event.count for event in events if "LaunchKernel" in event.key),
        "top": [
            {
                "name": event.key,
                "count": event.count,
                "device_microseconds": event.self_device_time_total,
                "cpu_microseconds": event.self_cpu_time_total,
            }
            for event in events[:TOP]
        ],
    }


# --- is it fast? ------------------------------------------------------------------------------------------


def quantised(bench: Bench) -> dict[str, Any]:
    """Steps in NF4 and in 8 bits: seconds, whether losses are finite, and whether an arm scores alone as in its pack."""
    return {name: _quantised(bench, name) for name in ("4bit", "8bit")}


def _quantised(bench: Bench, quantization: str) -> dict[str, Any]:
    job = bench.job()
    config = scaled_config(bench.shape, scale=bench.scale)
    model = random_model(config, dtype=torch.bfloat16, device=bench.torch_device)
    quantise(model, quantization=quantization, dtype=torch.bfloat16)
    base = as_base(model, name=job.model, device=bench.torch_device, dtype=torch.bfloat16)
    batches = _batches(job, base)[:3]
    alone = replace(job, runs=job.runs[:1])
    scores: list[Tensor] = []
    ends: list[float] = []
    losses: list[float | None] = []

    def on_step(result: StepResult) -> None:
        synchronise(bench.device)
        ends.append(time.perf_counter())
        losses.extend(arm.loss for arm in result.arms)

    with numerics(base.device, deterministic=True):
        for part in (job, alone):
            arms = arms_of(part, base=base)
            name = arms[0].experiment_id
            engine = PackedEngine(base, arms)
            try:
                place = engine.experiment_ids.index(name)
                scores.append(engine.score(batches[0][0]).nll_KM[place].cpu())
                if part is job:
                    engine.train(batches, on_step=on_step)
            finally:
                engine.close()
    return {
        "step_seconds": statistics.median(end - start for start, end in itertools.pairwise(ends)),
        "losses_are_finite": all(loss is not None and math.isfinite(loss) for loss in losses),
        "largest_difference_alone": float((scores[0] - scores[1]).abs().max()),
    }


def out_of_memory(bench: Bench) -> dict[str, Any]:
    """A pack that does not fit, cut until it does: how the lack shows, and what memory is left after it.

    On CUDA the process gets so little more than the base that sixteen arms do not fit. Elsewhere nothing is limited.
    """
    job = bench.job(num_arms=16)
    base = bench.base(job)
    errors: list[str] = []
    before = _allocated(bench)
    try:
        if bench.device == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(
                min(1.0, (torch.cuda.memory_reserved() + (4 << 30)) / total)
            )
        arms_per_pack = len(job.runs)
        while (problem := _training_problem(base, job, arms_per_pack=arms_per_pack)) is not None:
            errors.append(problem)
            arms_per_pack = math.ceil(arms_per_pack / 2)
    finally:
        if bench.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
            torch.cuda.empty_cache()
    return {
        "errors": errors,
        "arms_per_pack": arms_per_pack,
        "allocated_before": before,
        "allocated_after": _allocated(bench),
    }


def _training_problem(base: BaseModel, job: Job, *, arms_per_pack: int) -> str | None:
    """The first line of the lack of memory of the first pack of that size; None if it fits.

    Raises:
        RuntimeError: another error, or one arm does not fit.
    """
    pack = packs_of(job, arms_per_pack=arms_per_pack)[0]
    try:
        _steps(PackedEngine, base, pack, stop=2)
    except RuntimeError as error:
        if not is_out_of_memory(error) or arms_per_pack == 1:
            raise
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def _allocated(bench: Bench) -> int | None:
    return torch.cuda.memory_allocated() if bench.device == "cuda" else None


def speed(bench: Bench) -> dict[str, Any]:
    """The rows of `benchmarks.gpu` that fit the time, in their own file."""
    return _results_of(bench, name="speed", options=["--budget", str(bench.budget.left * 0.6)])


def memory(bench: Bench) -> dict[str, Any]:
    """The memory table of `benchmarks.gpu`, up to the end of the time, in its own file."""
    return _results_of(
        bench, name="memory", options=["--rows", "--memory", "--budget", str(bench.budget.left)]
    )


def _results_of(bench: Bench, *, name: str, options: Sequence[str]) -> dict[str, Any]:
    """What `benchmarks.gpu` wrote, in short. It needs the memory that the bases of other steps hold."""
    bench.bases = Bases()
    if bench.device == "cuda":
        torch.cuda.empty_cache()
    path = bench.into.with_name(f"{bench.into.stem}-{name}.json")
    gpu.main([
        "--into", str(path), "--device", bench.device, "--shape", bench.shape,
        *(["--smoke"] if bench.scale.is_tiny else []), *options,
    ])  # fmt: skip
    written = json.loads(path.read_text(encoding="utf-8"))
    return {
        "file": path.name,
        "rows": [row["id"] for row in written["rows"]],
        "cases": [case["id"] for case in written["memory"]],
        "left_out": written["skipped"],
    }
