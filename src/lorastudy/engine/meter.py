"""Memory and time, measured.

On CUDA memory is what the allocator handed out at most. On a CPU it is the most that live tensors held, as
torch's profiler saw them allocated and freed, on top of what was there before; the process's resident size
would count the libraries too, and never shrinks.
"""

import contextlib
import gc
import resource
import statistics
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch.profiler import ProfilerActivity, profile

from lorastudy.engine.arms import Arm, EngineFactory
from lorastudy.engine.batch import Batch
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.probe import probe_batch
from lorastudy.engine.quantised import features
from lorastudy.records import ArmProfile
from lorastudy.spec.targets import count_by_role, names_digest


class MemoryMeter:
    """Peak memory of the process between enter and exit: allocated on CUDA, resident on a CPU.

    Where the system cannot be told to begin anew (macOS, a locked-down /proc) the resident peak is that of the
    process's life so far.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.kind: Literal["cuda_allocated", "cpu_resident"] = (
            "cuda_allocated" if device.type == "cuda" else "cpu_resident"
        )
        self.peak_bytes: int | None = None

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _reset_resident_peak()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self.peak_bytes = _resident_peak()


def _reset_resident_peak() -> None:
    """`5` resets Linux's VmHWM (proc_pid_clear_refs(5)), which otherwise only ever grows."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _resident_peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that a clock read after this counts all that was asked before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def profile_arms(
    make_engine: EngineFactory,
    arms: Sequence[Arm],
    *,
    base: BaseModel,
    largest: Sequence[Batch],
    typical: Sequence[Sequence[Batch]],
) -> Iterator[ArmProfile]:
    """Yield what each arm costs alone. Arms of equal shape (seeds, learning rates) are measured once.

    Memory is taken at `largest`, the step with the biggest micro-batch, since that is the peak of a whole
    run; time is the median over the `typical` steps. Each is the second step of a fresh engine, after a few tokens on
    a CPU. Arms are interleaved, so a machine that slows down slows them all. Nothing trained here is kept.
    """
    shapes = {_shape(arm): arm for arm in reversed(arms)}
    memory = {
        shape: _peak_bytes(make_engine, arm, base=base, batches=largest) for shape, arm in shapes.items()
    }
    times: dict[object, list[tuple[float, int]]] = {shape: [] for shape in shapes}
    for batches in typical:
        if base.device.type != "cuda":  # where each arm takes a whole step first
            # Not timed: what libraries prepare for sizes that they meet for the first time, the first arm would pay for all.
            _step_time(make_engine, arms[0], base=base, batches=batches)
        for shape, arm in shapes.items():
            times[shape].append(_step_time(make_engine, arm, base=base, batches=batches))
    num_base = num_parameters(base)
    for arm in arms:
        shape = _shape(arm)
        num_trainable = arm.r * sum(
            base.targets_by_name[name].parameters_per_rank for name in arm.module_names
        )
        yield ArmProfile(
            experiment_id=arm.experiment_id,
            num_trainable_parameters=num_trainable,
            num_total_parameters=num_base + num_trainable,
            adapter_bytes=memory[shape][1],
            memory_kind="cuda_allocated" if base.device.type == "cuda" else "cpu_tensors",
            peak_memory_bytes=memory[shape][0],
            step_seconds=statistics.median(seconds for seconds, _ in times[shape]),
            tokens_per_second=statistics.median(tokens / seconds for seconds, tokens in times[shape]),
            modules_by_role=count_by_role(arm.module_names, layers=base.target_layers),
            modules_left_out=arm.modules_left_out,
            modules_digest=names_digest(arm.module_names),
        )


def num_parameters(base: BaseModel) -> int:
    """Weights of the base; a tied matrix counts once, a 4-bit weight as what it stands for."""
    total: int = sum(parameter.numel() for parameter in base.model.parameters())
    for layer in base.linear_layers.values():
        inputs, outputs = features(layer)
        total += inputs * outputs - layer.get_parameter("weight").numel()
    return total


def _shape(arm: Arm) -> tuple[object, ...]:
    return arm.r, arm.module_names, arm.lora_dropout > 0


def _peak_bytes(
    make_engine: EngineFactory, arm: Arm, *, base: BaseModel, batches: Sequence[Batch]
) -> tuple[int, int]:  # fmt: skip
    """(peak bytes of training, bytes of the adapter's file). In the second step the optimizer's state is there."""
    engine = make_engine([_for_two_steps(arm)])

    def train() -> None:
        engine.train([_first_step(batches, base=base), batches], on_step=lambda _: None)

    try:
        if base.device.type == "cuda":
            torch.cuda.empty_cache()
            with MemoryMeter(base.device) as meter:
                train()
            assert meter.peak_bytes is not None
            peak = meter.peak_bytes
        else:
            peak = live_bytes() + peak_growth(train)
        with tempfile.TemporaryDirectory() as folder:
            return peak, engine.save_adapter(engine.arms[0], Path(folder))
    finally:
        engine.close()


def _step_time(
    make_engine: EngineFactory, arm: Arm, *, base: BaseModel, batches: Sequence[Batch]
) -> tuple[float, int]:  # fmt: skip
    """(seconds, tokens) of one optimizer step after another one."""
    engine = make_engine([_for_two_steps(arm)])
    ends: list[float] = []

    def on_step(_: object) -> None:
        synchronise(base.device)
        ends.append(time.perf_counter())

    try:
        engine.train([_first_step(batches, base=base), batches], on_step=on_step)
        return ends[1] - ends[0], sum(batch.num_tokens for batch in batches)
    finally:
        engine.close()


def _first_step(batches: Sequence[Batch], *, base: BaseModel) -> Sequence[Batch]:
    """What comes before the step that is measured: the same on CUDA, whose libraries choose kernels by shape.

    On a CPU what an engine does once takes milliseconds whatever the rows are, and a few tokens show it.
    """
    return batches if base.device.type == "cuda" else [probe_batch(base.model, device=base.device)]


def _for_two_steps(arm: Arm) -> Arm:
    """The arm, to be measured: long enough for a warm step, and so slow that it cannot diverge before that."""
    return replace(arm, num_steps=max(2, arm.num_steps), learning_rate=0.0)


def live_bytes() -> int:
    """Bytes of all tensors alive in this process, each storage once."""
    storages = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor) and item.layout is torch.strided:
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak_growth(action: Callable[[], None], *, with_scratch: bool = True) -> int:
    """The most by which tensor memory on the CPU rose above its start while the action ran.

    The profiler does not see it when memory is freed that was there before, so the action must not count on that. The
    kernel of a matrix product takes scratch memory and returns it before it ends. Its size depends on the CPU, and no
    tensor holds it: without `with_scratch` it does not count.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    assert profiler.profiler is not None
    # Exported as a trace and read again, it takes as long as the steps.
    recorded: Any = profiler.profiler.kineto_results
    events = recorded.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    if not with_scratch:
        changes = _without_scratch(changes, events)
    level = peak = 0
    for _, change in changes:
        level += change
        peak = max(peak, level)
    return peak


_PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"})


def _without_scratch(changes: Sequence[tuple[int, int]], events: Iterable[Any]) -> list[tuple[int, int]]:
    """The changes without those that one matrix product both made and took back."""
    products = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.name() in _PRODUCTS
    )
    starts = [start for start, _ in products]
    kept: list[tuple[int, int]] = []
    taken: dict[tuple[int, int], int] = {}  # (product, bytes) -> where in `kept`
    for time_ns, change in changes:
        product = bisect_right(starts, time_ns) - 1
        is_inside = product >= 0 and time_ns <= products[product][1]
        place = taken.pop((product, -change), None) if is_inside and change < 0 else None
        if place is not None:
            kept[place] = (time_ns, 0)
            continue
        if is_inside and change > 0:
            taken[product, change] = len(kept)
        kept.append((time_ns, change))
    return kept
