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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch.profiler import ProfilerActivity, profile

from lorastudy.engine.arms import EngineFactory, TrainingArm
from lorastudy.engine.batch import Batch
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.quantised import features
from lorastudy.engine.self_check import probe_batch
from lorastudy.errors import ModelError
from lorastudy.protocol.records import STEP_TIME_FLOOR, ArmProfile
from lorastudy.suite.targets import count_by_role, names_digest

#: Rounds of timing (`time_shapes`). One round is two steps of each shape. Medians of fewer than the least agree by luck.
MIN_ROUNDS = 3
MAX_ROUNDS = 15
#: What timing may take of a pack, engines included: a share of its training one arm at a time, within these seconds. A
#: worker that says nothing for an hour counts as hung (`executors.tail`).
TIMING_SHARE = 0.02
TIMING_SECONDS = (2.0, 600.0)

Clock = Callable[[], float]
_Shape = tuple[object, ...]


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


@dataclass(kw_only=True)
class StepTimes:
    """Seconds of one arm's step, measured as if it were two arms (A and A): each round adds one to either."""

    firsts: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def all(self) -> list[float]:
        """Of both."""
        return [*self.firsts, *self.seconds]

    @property
    def apart(self) -> float:
        """Share by which the larger of the two medians exceeds the smaller: what noise alone makes of one arm."""
        one, other = statistics.median(self.firsts), statistics.median(self.seconds)
        return max(one, other) / min(one, other) - 1

    @property
    def has_enough_rounds(self) -> bool:
        """Whether there were so many that both medians agree by more than luck."""
        return len(self.firsts) >= MIN_ROUNDS

    @property
    def quartile_distance(self) -> float:
        """Distance between the quartiles of all."""
        low, _, high = statistics.quantiles(self.all, n=4, method="inclusive")
        return high - low


def profile_arms(
    make_engine: EngineFactory,
    arms: Sequence[TrainingArm],
    *,
    base: BaseModel,
    largest: Sequence[Batch],
    typical: Sequence[Batch],
    clock: Clock = time.perf_counter,
) -> Iterator[ArmProfile]:
    """Yield what each arm costs alone. Arms of equal shape (seeds, learning rates) are measured once.

    Memory is taken at `largest`, the step with the biggest micro-batch, since that is the peak of a whole run. Time is
    the median of the `typical` step (`time_shapes`), or None where noise hid it or too few rounds were taken. Each is the
    second step of a fresh engine, after a few tokens on a CPU. Nothing trained here is kept.
    """
    shapes = {_shape(arm): arm for arm in reversed(arms)}
    memory = {
        shape: _peak_bytes(make_engine, arm, base=base, batches=largest) for shape, arm in shapes.items()
    }

    def time_step(shape: _Shape) -> float:
        return _step_seconds(make_engine, shapes[shape], base=base, batches=typical, clock=clock)

    if base.device.type != "cuda":  # where each arm takes a whole step first
        # Not timed: what libraries prepare for sizes that they meet for the first time, the first arm would pay for all.
        time_step(_shape(arms[0]))
    num_steps = Counter[_Shape]()
    for arm in arms:
        num_steps[_shape(arm)] += arm.num_steps
    times = time_shapes(time_step, num_steps, clock=clock)
    noise = shares_apart(times)
    num_base = num_parameters(base)
    num_tokens = sum(batch.num_tokens for batch in typical)
    for arm in arms:
        shape = _shape(arm)
        num_trainable = arm.r * sum(
            base.targets_by_name[name].parameters_per_rank for name in arm.module_names
        )
        timed = times[shape]
        is_known = timed.has_enough_rounds and noise[shape] <= STEP_TIME_FLOOR
        seconds = statistics.median(timed.all) if is_known else None
        yield ArmProfile(
            experiment_id=arm.experiment_id,
            num_trainable_parameters=num_trainable,
            num_total_parameters=num_base + num_trainable,
            adapter_bytes=memory[shape][1],
            memory_kind="cuda_allocated" if base.device.type == "cuda" else "cpu_tensors",
            peak_memory_bytes=memory[shape][0],
            step_seconds=seconds,
            tokens_per_second=None if seconds is None else num_tokens / seconds,
            num_timed_steps=len(timed.all),
            step_quartile_distance_seconds=timed.quartile_distance,
            step_times_apart=noise[shape],
            modules_by_role=count_by_role(arm.module_names, layers=base.target_layers),
            modules_left_out=arm.modules_left_out,
            modules_digest=names_digest(arm.module_names),
        )


def time_shapes(
    time_step: Callable[[_Shape], float], num_steps: Mapping[_Shape, int], *, clock: Clock
) -> dict[_Shape, StepTimes]:
    """Time a step of each shape until two measurements of the same one agree within `STEP_TIME_FLOOR`, for all of them.

    A round takes the shapes there and back again (a, b, c, c, b, a), so that a machine that slows down slows them all,
    and both measurements of each. `num_steps` are those that the pack trains of each shape. There are at most `MAX_ROUNDS`
    rounds. After the first one none begins that would end beyond `TIMING_SHARE` of what training takes one arm at a time,
    within `TIMING_SECONDS`; where that leaves fewer than `MIN_ROUNDS`, no time is known.
    """
    times = {shape: StepTimes() for shape in num_steps}
    start = clock()
    for _ in range(MAX_ROUNDS):
        begun = clock()
        for shape, timed in times.items():
            timed.firsts.append(time_step(shape))
        for shape, timed in reversed(times.items()):
            timed.seconds.append(time_step(shape))
        if all(timed.has_enough_rounds and timed.apart <= STEP_TIME_FLOOR for timed in times.values()):
            break
        now = clock()
        training = sum(num_steps[shape] * statistics.median(timed.all) for shape, timed in times.items())
        least, most = TIMING_SECONDS
        if now - start + (now - begun) > min(most, max(least, TIMING_SHARE * training)):
            break
    return times


def shares_apart(times: Mapping[_Shape, StepTimes]) -> dict[_Shape, float]:
    """By how much two measurements of each shape differ, and no less than those of the middle one of all shapes.

    They were measured by turns, so noise was the same for all, and one among many that agrees does so by luck.
    """
    of_all = statistics.median(timed.apart for timed in times.values())
    return {shape: max(timed.apart, of_all) for shape, timed in times.items()}


def num_parameters(base: BaseModel) -> int:
    """Weights of the base; a tied matrix counts once, a 4-bit weight as what it stands for."""
    total: int = sum(parameter.numel() for parameter in base.model.parameters())
    for layer in base.linear_layers.values():
        inputs, outputs = features(layer)
        total += inputs * outputs - layer.get_parameter("weight").numel()
    return total


def _shape(arm: TrainingArm) -> _Shape:
    return arm.r, arm.module_names, arm.lora_dropout > 0


def _peak_bytes(
    make_engine: EngineFactory, arm: TrainingArm, *, base: BaseModel, batches: Sequence[Batch]
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


def _step_seconds(
    make_engine: EngineFactory, arm: TrainingArm, *, base: BaseModel, batches: Sequence[Batch], clock: Clock
) -> float:
    """Seconds of one optimizer step after another one."""
    engine = make_engine([_for_two_steps(arm)])
    ends: list[float] = []

    def on_step(_: object) -> None:
        synchronise(base.device)
        ends.append(clock())

    try:
        engine.train([_first_step(batches, base=base), batches], on_step=on_step)
        if len(ends) < 2:
            raise ModelError(
                "the loss or its gradient is not finite at the first step, at a learning rate of 0: the base model's weights "
                "or its precision do not fit these rows"
            )
        return ends[1] - ends[0]
    finally:
        engine.close()


def _first_step(batches: Sequence[Batch], *, base: BaseModel) -> Sequence[Batch]:
    """What comes before the step that is measured: the same on CUDA, whose libraries choose kernels by shape.

    On a CPU what an engine does once takes milliseconds whatever the rows are, and a few tokens show it.
    """
    return batches if base.device.type == "cuda" else [probe_batch(base.model, device=base.device)]


def _for_two_steps(arm: TrainingArm) -> TrainingArm:
    """The arm, to be measured: long enough for a warm step, without what could make it diverge before that."""
    return replace(
        arm,
        num_steps=max(2, arm.num_steps),
        learning_rate=0.0,
        lora_alpha=float(arm.r),
        use_rslora=False,
        scaling=1.0,
    )


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
