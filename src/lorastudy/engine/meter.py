"""Measurements of memory and time.

On CUDA, memory is the allocator's peak. On a CPU it is the peak of live tensors, as torch's profiler reports their
allocations, plus the memory in use before. The process's resident size would include libraries, and it never shrinks.
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
from torch.autograd.profiler import profile

from lorastudy.engine.arms import Engine, EngineFactory, TrainingArm
from lorastudy.engine.batch import Batch
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.quantised import features
from lorastudy.engine.self_check import probe_batch
from lorastudy.errors import ModelError
from lorastudy.protocol.records import STEP_TIME_FLOOR, ArmProfile
from lorastudy.suite.targets import arm_size, count_by_role, names_digest

#: Rounds of timing (`time_shapes`). One round is two steps of each shape. With fewer rounds medians agree by chance.
MIN_ROUNDS = 3
MAX_ROUNDS = 15
#: The limit of timing per pack, including engines: a share of its training one arm at a time, within these seconds. A
#: worker that is silent for an hour counts as hung (`executors.tail`).
TIMING_SHARE = 0.02
TIMING_SECONDS = (2.0, 600.0)

Clock = Callable[[], float]
_Shape = tuple[object, ...]


class MemoryMeter:
    """Peak memory of the process between enter and exit: allocated on CUDA, resident on a CPU.

    If the system cannot reset the resident peak (macOS, a locked-down /proc), it is the peak since the start of the
    process.
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
    """Wait for the device to finish its queue, so that a later clock reading includes all earlier work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(kw_only=True)
class StepTimes:
    """Seconds of one arm's step, measured as if it were two arms (A and A). Each round adds one step to both."""

    firsts: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def all(self) -> list[float]:
        """The seconds of both."""
        return [*self.firsts, *self.seconds]

    @property
    def apart(self) -> float:
        """Share by which the larger of the two medians exceeds the smaller. It is noise: both are the same arm."""
        one, other = statistics.median(self.firsts), statistics.median(self.seconds)
        return max(one, other) / min(one, other) - 1

    @property
    def has_enough_rounds(self) -> bool:
        """Whether there are enough rounds that the medians do not agree by chance."""
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

    Memory is measured at `largest`, the step with the biggest micro-batch, since that is the peak of a whole run. Time
    is the median of the `typical` step (`time_shapes`), or None after too much noise or too few rounds. Both are
    measured in the second step of a fresh engine; on a CPU the first step has only a few tokens. All weights trained
    here are dropped.

    The step that measures memory also tells how long a typical step will take. No step is timed if there is no time for
    `MIN_ROUNDS` rounds of them.
    """
    shapes = {_shape(arm): arm for arm in reversed(arms)}
    memory = {
        shape: _largest_step(make_engine, arm, base=base, batches=largest, clock=clock)
        for shape, arm in shapes.items()
    }
    num_tokens = sum(batch.num_tokens for batch in typical)
    share = num_tokens / sum(batch.num_tokens for batch in largest)
    expected = {shape: share * of_largest.seconds for shape, of_largest in memory.items()}

    def time_step(shape: _Shape) -> float:
        return _step_seconds(make_engine, shapes[shape], base=base, batches=typical, clock=clock)

    num_steps = Counter[_Shape]()
    for arm in arms:
        num_steps[_shape(arm)] += arm.num_steps
    times: Mapping[_Shape, StepTimes] = {}
    if has_time_for_rounds(num_steps, expected):
        if base.device.type != "cuda":  # where each arm takes a whole step first
            # Untimed warm-up: libraries prepare for new sizes once, and the first arm would pay for all.
            time_step(_shape(arms[0]))
        times = time_shapes(time_step, num_steps, clock=clock)
    noise = shares_apart(times)
    num_base = num_parameters(base)
    for arm in arms:
        shape = _shape(arm)
        num_trainable, num_beside = _num_trainable(arm, base=base, num_base=num_base)
        timed = times.get(shape)
        is_known = timed is not None and timed.has_enough_rounds and noise[shape] <= STEP_TIME_FLOOR
        seconds = statistics.median(timed.all) if timed is not None and is_known else None
        yield ArmProfile(
            experiment_id=arm.experiment_id,
            num_trainable_parameters=num_trainable,
            num_total_parameters=num_base + num_beside,
            adapter_bytes=memory[shape].adapter_bytes,
            memory_kind="cuda_allocated" if base.device.type == "cuda" else "cpu_tensors",
            peak_memory_bytes=memory[shape].peak_bytes,
            step_seconds=seconds,
            tokens_per_second=None if seconds is None else num_tokens / seconds,
            num_timed_steps=None if timed is None else len(timed.all),
            step_quartile_distance_seconds=None if timed is None else timed.quartile_distance,
            step_times_apart=noise.get(shape),
            modules_by_role=count_by_role(arm.module_names, layers=base.target_layers),
            modules_left_out=arm.modules_left_out,
            modules_digest=names_digest(arm.module_names),
        )


def _num_trainable(arm: TrainingArm, *, base: BaseModel, num_base: int) -> tuple[int, int]:
    """The parameters that an arm trains, and those of them that the base does not have."""
    if arm.method.is_counted:
        from lorastudy.engine.peft_model import counted_size

        counted = counted_size(arm, base=base)
        return counted.num_trainable, counted.num_beside
    layers = [base.targets_by_name[name] for name in arm.module_names]
    size = arm_size(layers, r=arm.r, method=arm.method, num_base_parameters=num_base)
    return size.num_trainable, 0 if arm.method.is_full else size.num_trainable


def has_time_for_rounds(num_steps: Mapping[_Shape, int], expected: Mapping[_Shape, float]) -> bool:
    """Whether the limit of timing has time for `MIN_ROUNDS` rounds, with the expected seconds of a step of each shape.

    With fewer rounds no time is known, so the steps would be wasted. In a short run they cost as much as a tenth of it.
    """
    training = sum(num_steps[shape] * seconds for shape, seconds in expected.items())
    return MIN_ROUNDS * 2 * sum(expected.values()) <= _limit_seconds(training)


def _limit_seconds(training_seconds: float) -> float:
    """The limit of timing, for that many seconds of training one arm at a time."""
    least, most = TIMING_SECONDS
    return min(most, max(least, TIMING_SHARE * training_seconds))


def time_shapes(
    time_step: Callable[[_Shape], float], num_steps: Mapping[_Shape, int], *, clock: Clock
) -> dict[_Shape, StepTimes]:
    """Time a step of each shape until two measurements of the same one agree within `STEP_TIME_FLOOR`, for all of them.

    A round runs the shapes forward and back (a, b, c, c, b, a), so that a machine that slows down affects all shapes
    and both measurements equally. `num_steps` are the training steps of each shape in the pack. There are at most
    `MAX_ROUNDS` rounds. After the first round, a round starts only if it would end within `TIMING_SHARE` of the
    training time one arm at a time, limited to `TIMING_SECONDS`. With fewer than `MIN_ROUNDS` rounds, no time is known.
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
        if now - start + (now - begun) > _limit_seconds(training):
            break
    return times


def shares_apart(times: Mapping[_Shape, StepTimes]) -> dict[_Shape, float]:
    """The share by which two measurements of each shape differ, but at least the median share of all shapes.

    The shapes are measured in turns under the same noise, so a single shape with close agreement agrees by chance.
    """
    if not times:
        return {}
    of_all = statistics.median(timed.apart for timed in times.values())
    return {shape: max(timed.apart, of_all) for shape, timed in times.items()}


def num_parameters(base: BaseModel) -> int:
    """The number of weights of the base. A tied matrix counts once, and packed 4-bit weights count one by one."""
    total: int = sum(parameter.numel() for parameter in base.model.parameters())
    for layer in base.linear_layers.values():
        inputs, outputs = features(layer)
        total += inputs * outputs - layer.get_parameter("weight").numel()
    return total


def _shape(arm: TrainingArm) -> _Shape:
    return arm.r, arm.module_names, arm.lora_dropout > 0, arm.method


@dataclass(frozen=True, kw_only=True)
class _LargestStep:
    """What a training step of an arm alone takes, at the step with the biggest micro-batch."""

    peak_bytes: int
    adapter_bytes: int
    """Bytes of the adapter's file."""
    seconds: float
    """Includes what measuring memory takes."""


def _largest_step(
    make_engine: EngineFactory, arm: TrainingArm, *, base: BaseModel, batches: Sequence[Batch], clock: Clock
) -> _LargestStep:
    """Measure memory. The second step includes the optimizer's state."""
    engine = make_engine([_for_two_steps(arm)])
    ends: list[float] = []

    def train() -> None:
        engine.train(
            [_first_step(batches, base=base), batches], on_step=_noting(ends, base=base, clock=clock)
        )

    try:
        if base.device.type == "cuda":
            torch.cuda.empty_cache()
            with MemoryMeter(base.device) as meter:
                train()
            assert meter.peak_bytes is not None
            peak = meter.peak_bytes
        else:
            peak = live_bytes() + peak_growth(train)
        return _LargestStep(
            peak_bytes=peak, adapter_bytes=_saved_bytes(engine, base=base), seconds=_second_step(ends)
        )
    finally:
        engine.close()


def _saved_bytes(engine: Engine, *, base: BaseModel) -> int:
    """Bytes of the file of the only arm's weights. A whole model is not written for this; its weights are counted."""
    (arm,) = engine.arms
    if arm.method.is_full:
        return sum(weight.nbytes for weight in base.model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        return engine.save_adapter(arm, Path(folder))


def _step_seconds(
    make_engine: EngineFactory, arm: TrainingArm, *, base: BaseModel, batches: Sequence[Batch], clock: Clock
) -> float:
    """Seconds of one optimizer step after another one."""
    engine = make_engine([_for_two_steps(arm)])
    ends: list[float] = []
    try:
        engine.train(
            [_first_step(batches, base=base), batches], on_step=_noting(ends, base=base, clock=clock)
        )
        return _second_step(ends)
    finally:
        engine.close()


def _noting(ends: list[float], *, base: BaseModel, clock: Clock) -> Callable[[object], None]:
    """A function that adds the time of a step's end to the list."""

    def on_step(_: object) -> None:
        synchronise(base.device)
        ends.append(clock())

    return on_step


def _second_step(ends: Sequence[float]) -> float:
    """Seconds of the second step.

    Raises:
        ModelError: the arm diverged in the first one.
    """
    if len(ends) < 2:
        raise ModelError(
            "the loss or its gradient is not finite at the first step, at a learning rate of 0: the base model's weights "
            "or its precision do not fit these rows"
        )
    return ends[1] - ends[0]


def _first_step(batches: Sequence[Batch], *, base: BaseModel) -> Sequence[Batch]:
    """The warm-up before the measured step. On CUDA it is the same step, since libraries choose kernels by shape.

    On a CPU the one-time work of an engine takes milliseconds for any rows, so a few tokens are enough.
    """
    return batches if base.device.type == "cuda" else [probe_batch(base.model, device=base.device)]


def _for_two_steps(arm: TrainingArm) -> TrainingArm:
    """The arm for measurement: with enough steps for a warm one, and changed so that it cannot diverge before.

    Its rate is 0 in every step. A schedule could not tell that: some fall to a rate of their own, which is above 0.
    """
    return replace(
        arm,
        num_steps=max(2, arm.num_steps),
        learning_rate=0.0,
        lr_scheduler_type="constant",
        lr_scheduler_kwargs=(),
        num_warmup_steps=0,
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
    """The peak of tensor memory on the CPU during the action, above its level at the start.

    The profiler does not see the release of earlier memory, so the action must not release any. The kernel of a matrix
    product allocates scratch memory and frees it before its end. Its size depends on the CPU, and no tensor holds it:
    without `with_scratch` it does not count.
    """
    # The profiler below torch's public one, which makes a Python object of each event: as long as half of the step.
    with profile(profile_memory=True) as profiler:
        action()
    recorded: Any = profiler.kineto_results
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
    """The changes without memory that one matrix product both allocated and freed."""
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
