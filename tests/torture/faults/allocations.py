"""Memory that runs out at the k-th allocation of a step, for every k, and NaN in one of K arms, for every arm.

The packed engine goes from a checkpoint into a step in which the k-th operation that makes a new tensor fails. What it
then leaves behind must be the base as it was; the two halves of its arms go on from the checkpoint and must come to the
very bits of halves that nothing befell, and within the tolerance of parity tests to those of the whole pack: sums over
fewer arms may come in another order. For a few k the whole way is gone, through worker, runner and store.

For NaN, a number of one arm's adapter is overwritten before a step. That arm must end as diverged and all others at the
very bits of a pack that nothing befell.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import forked
import tiny
from lorastudy.engine.arms import EngineState, TrainingArm
from lorastudy.engine.packed import PackedEngine
from lorastudy.store import ExperimentTracker
from torture.harness import FaultResult, Row, counted, listed

ROW = Row(
    fault="memory error at the k-th allocation of a step, NaN in one of K arms",
    must="others bit-identical to a run without it",
    short=12,
    default=100,
    kept=10_000,  # every one
)
NUM_STEPS, SAVED_AT = 4, 2
#: What the parity tests allow between a pack and a part of it, in fp32.
TOLERANCE = 1e-5
#: Through worker, runner and store, among all.
NUM_WHOLE_WAY = 3


class FailAt(TorchDispatchMode):
    """Counts operations that make a new tensor, and lets one of them find no memory."""

    def __init__(self, number: int | None = None) -> None:
        super().__init__()
        self.count = 0
        self._number = number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, fail, or go on."""
        if any(value.alias_info is None and "Tensor" in str(value.type) for value in func._schema.returns):
            self.count += 1
            if self.count == self._number:
                raise torch.OutOfMemoryError(f"no memory for allocation {self.count}: {func}")
        return func(*args, **(kwargs or {}))


def run(*, amount: int, seed: int, folder: Path) -> FaultResult:
    """Every allocation and every arm, or `amount` of them in all."""
    torch.set_num_threads(1)
    with forked.patched():
        return _injected(amount, seed=seed, folder=folder)


def _injected(amount: int, *, seed: int, folder: Path) -> FaultResult:
    pack = _Pack()
    numbers = list(range(1, pack.num_allocations + 1))
    random.Random(seed).shuffle(numbers)
    faults = [*pack.places_for_nan(), *(("memory", number) for number in numbers)][:amount]
    suite = forked.tiny_suite(folder)
    violations: list[str] = []
    for kind, at in counted(faults, total=len(faults)):
        found = pack.out_of_memory(at) if kind == "memory" else pack.nan(at)
        violations += [f"{kind} at {at}: {what}" for what in found]
    # Of those in the forward and backward pass: what comes after them is the optimizer's.
    whole_way = [n for kind, n in faults if kind == "memory" and n < pack.num_allocations // 2][
        :NUM_WHOLE_WAY
    ]
    for number in whole_way:
        violations += [
            f"memory at {number}, in a suite: {what}" for what in _in_a_suite(suite, folder, number)
        ]
    return FaultResult(
        fault=ROW.fault,
        num_faults=len(faults) + len(whole_way),
        num_violations=len(violations),
        detail=listed(violations)
        or f"{pack.num_allocations} allocations in a step of {len(pack.arms)} arms; furthest that a half came from the "
        f"whole pack: {pack.furthest:.1g}",
    )


class _Pack:
    """Arms of several shapes on one base, at a checkpoint, with what they come to when nothing befalls them."""

    def __init__(self) -> None:
        self._base = tiny.make_base(hidden_size=32)
        self._weights = {name: value.clone() for name, value in self._base.model.state_dict().items()}
        self._steps = tiny.make_steps(NUM_STEPS)
        attention, mlp = tiny.targets(self._base, "qkvo"), tiny.targets(self._base, "mlp")
        arms = [
            tiny.make_arm(attention, name="a", lora_dropout=0.1),
            tiny.make_arm(attention, name="b", lora_dropout=0.1, seed=1),
            tiny.make_arm(mlp, name="c", r=2),
            tiny.make_arm(mlp, name="d", r=2, seed=1),
        ]
        self.arms = [replace(arm, num_warmup_steps=0, num_steps=NUM_STEPS) for arm in arms]
        self.furthest = 0.0
        self._state, self.num_allocations = self._saved()
        self._calm = self._trained(self.arms)
        self._halves = [self._trained(half) for half in (self.arms[:2], self.arms[2:])]

    def places_for_nan(self) -> list[tuple[str, Any]]:
        """Every arm, before every step that is left."""
        return [
            ("nan", (arm.experiment_id, step)) for arm in self.arms for step in range(SAVED_AT, NUM_STEPS)
        ]

    def out_of_memory(self, number: int) -> Iterator[str]:
        """What does not hold after the number-th allocation of a step failed."""
        try:
            with tiny.opened(PackedEngine(self._base, self.arms)) as engine, FailAt(number):
                engine.restore(self._state)
                engine.train(self._steps[SAVED_AT : SAVED_AT + 1], on_step=tiny.Log())
            yield "nothing failed"
        except torch.OutOfMemoryError:
            pass
        after = self._base.model.state_dict()
        if after.keys() != self._weights.keys() or any(
            not torch.equal(after[k], v) for k, v in self._weights.items()
        ):
            yield "the base is not as it was"
        for half, expected in zip((self.arms[:2], self.arms[2:]), self._halves, strict=True):
            found = self._trained(half)
            for name in expected:
                if not _same(found[name], expected[name]):
                    yield f"{name} differs from that of a half that nothing befell"
                apart = (found[name]["weights"] - self._calm[name]["weights"]).abs().max().item()
                self.furthest = max(self.furthest, apart)
                if apart > TOLERANCE:
                    yield f"{name} is {apart:.1g} from that of the whole pack"

    def nan(self, at: tuple[str, int]) -> Iterator[str]:
        """What does not hold after a number of an arm was overwritten before a step."""
        name, step = at
        log = tiny.Log()
        found = self._trained(self.arms, log=log, before={step: lambda engine: _poison(engine, name)})
        if log.diverged != {name: step + 1}:
            yield f"diverged: {log.diverged}"
        for other in self._calm.keys() - {name}:
            if not _same(found[other], self._calm[other]):
                yield f"{other} felt it"

    def _saved(self) -> tuple[EngineState, int]:
        """The state after some steps, and how many allocations the step after them makes."""
        with tiny.opened(PackedEngine(self._base, self.arms)) as engine:
            engine.train(self._steps[:SAVED_AT], on_step=tiny.Log())
            state = engine.state()
        with tiny.opened(PackedEngine(self._base, self.arms)) as engine, FailAt() as counting:
            engine.restore(state)
            engine.train(self._steps[SAVED_AT : SAVED_AT + 1], on_step=tiny.Log())
        return state, counting.count

    def _trained(
        self,
        arms: Sequence[TrainingArm],
        *,
        log: tiny.Log | None = None,
        before: dict[int, Callable[[PackedEngine], None]] | None = None,
    ) -> dict[str, dict[str, Tensor]]:
        """What a step changes of every arm: its weights and what the optimizer remembers."""
        with tiny.opened(PackedEngine(self._base, arms)) as engine:
            engine.restore(self._state)
            for step in range(SAVED_AT, NUM_STEPS):
                (before or {}).get(step, lambda _: None)(engine)
                engine.train(self._steps[step : step + 1], on_step=log or tiny.Log())
            return {arm.experiment_id: dict(arm.tensors) for arm in engine.state().arms}


def _poison(engine: PackedEngine, name: str) -> None:
    arm = next(arm for arm in engine.arms if arm.experiment_id == name)
    next(iter(engine._adapters.weights_of(arm).values()))[1][0, 0] = torch.nan
    engine._adapters.refresh()


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _in_a_suite(suite: forked.TinySuite, folder: Path, number: int) -> Iterator[str]:
    """The same through worker, runner and store: the first worker finds no memory in the step after a checkpoint."""
    place = folder / f"suite-{number}"
    place.mkdir()
    executor = forked.ForkedExecutor(cache=suite.cache, in_worker=lambda run: _fail_in_first(run, number))
    outcome = forked.run(suite, place, executor=executor)
    if len(outcome.completed) != len(suite.experiments):
        yield f"only {len(outcome.completed)} completed"
    with ExperimentTracker(place / "experiments.db") as tracker:
        for result in tracker.get_all_experiments():
            steps = [step.step for step in tracker.get_steps(result.experiment_id)]
            if steps != list(range(1, forked.NUM_STEPS + 1)):
                yield f"{result.name} has the steps {steps}"
            if [incident.kind for incident in result.incidents] != ["resumed"]:
                yield f"{result.name}: {result.incidents}"
            if result.pack_profile is None or result.pack_profile.num_arms != 2:
                yield f"{result.name}: {result.pack_profile}"


def _fail_in_first(run_folder: Path, number: int) -> None:
    """In the first attempt, the fourth step of the pack fails; in a worker of its own, so nothing is put back."""
    accumulate = PackedEngine._accumulate
    num_calls = 0

    def failing(engine: PackedEngine, batches: Any) -> Tensor:
        nonlocal num_calls
        num_calls += len(engine.arms) == 4
        with FailAt(number) if num_calls == 4 else _nothing():
            return accumulate(engine, batches)

    if run_folder.name == "attempt-1" and not list(run_folder.parents[1].glob("*/attempt-2")):
        PackedEngine._accumulate = failing


@contextmanager
def _nothing() -> Iterator[None]:
    yield
