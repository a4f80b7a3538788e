"""What engines take and return: arms as plain numbers and module names, scores, steps and states.

`Engine` is a seam. `packed.PackedEngine` and `reference.ReferenceEngine` implement it, and `tests/contract/test_engine.py`
holds both to the same promises.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from lorastudy.engine.batch import Batch
from lorastudy.protocol.records import ArmStep
from lorastudy.suite.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class TrainingArm:
    """One experiment, ready to train: which modules it adapts, how, and for how many optimizer steps."""

    experiment_id: str
    seed: int
    r: int
    lora_alpha: float
    use_rslora: bool
    scaling: float
    lora_dropout: float
    module_names: tuple[str, ...]
    learning_rate: float
    lr_scheduler_type: str
    num_warmup_steps: int
    num_steps: int
    weight_decay: float
    max_grad_norm: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    modules_left_out: tuple[str, ...] = ()
    """What the arm's preset names and PEFT cannot adapt, with the reason."""

    @property
    def shape(self) -> tuple[int, tuple[str, ...], float]:
        """Arms with equal rank, modules and dropout have tensors of equal shape and share every batched product."""
        return self.r, self.module_names, self.lora_dropout


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Scores of every arm for every labelled token of a batch, in the batch's order of labels."""

    nll_KM: Tensor
    """Negative log-likelihood in nats, fp32."""
    correct_KM: Tensor
    """Whether the most likely token is the label."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One optimizer step of all arms that still train."""

    step: int
    num_tokens: int
    num_completion_tokens: int
    arms: tuple[ArmStep, ...]
    diverged: tuple[str, ...] = ()
    """Experiment ids whose loss or gradient was not finite in this step. They train no further."""


@dataclass(frozen=True, kw_only=True)
class ArmState:
    """One arm between two steps: all that it needs to go on. The names of `numbers` and `tensors` are the engine's own.

    What is not here follows from the experiment: the rows and the learning rate of each step, and in the packed engine every
    dropout mask, which is a function of seed, layer and forward pass.
    """

    experiment_id: str
    num_steps_done: int
    """Steps of the pack, whether or not the optimizer took them."""
    is_diverged: bool
    numbers: Mapping[str, float]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """All arms between two steps. They are kept apart, so that a part of a pack can go on too.

    `num_forward_passes` is the packed engine's dropout clock.
    """

    engine: str
    arms: tuple[ArmState, ...]
    num_forward_passes: int = 0

    def of(self, experiment_ids: Iterable[str]) -> Self:
        """The states of some arms, in the order given.

        Raises:
            KeyError: an arm is not in the state.
        """
        by_id = {arm.experiment_id: arm for arm in self.arms}
        return replace(self, arms=tuple(by_id[experiment_id] for experiment_id in experiment_ids))


class Scorer(Protocol):
    """K adapters on a base model that can score and generate, in a fixed order: what an evaluator needs."""

    @property
    def experiment_ids(self) -> tuple[str, ...]:
        """The experiments of the adapters."""
        ...

    def score(self, batch: Batch) -> TokenScores:
        """Score a batch with every arm; no gradient, no side effect on weights or later gradients."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[list[int]]]:
        """Greedy answers, `[arm][prompt]`, up to and without the end-of-text token."""
        ...


class Engine(Scorer, Protocol):
    """Trains, scores, generates with and saves the arms on one base model.

    Every arm's result equals the one it gets alone, up to floating-point summation order.
    """

    name: str
    arms: tuple[TrainingArm, ...]

    @property
    def num_steps_done(self) -> int:
        """Steps of the pack that every arm has done. Give `train` the steps that follow."""
        ...

    def train(self, steps: Iterable[Sequence[Batch]], *, on_step: Callable[[StepResult], None]) -> None:
        """Take one optimizer step per item of `steps`; the item's batches are accumulated.

        Two calls give the same bits as one call with the steps of both. `on_step` is called between two steps: it may read
        `state`, score and save.
        """
        ...

    def state(self) -> EngineState:
        """Copy everything that training needs to go on, to the CPU."""
        ...

    def restore(self, state: EngineState) -> None:
        """Go on from a state that holds all arms of this fresh engine. Training then gives the same bits as without a break.

        Bits also depend on which arms train together: if only a part of a pack goes on, its results are equal up to
        floating-point summation order.
        """
        ...

    def save_adapter(self, arm: TrainingArm, folder: Path) -> int:
        """Write the arm's adapter in PEFT's format; return the bytes of its weights file."""
        ...

    def close(self) -> None:
        """Give the base model back unchanged."""
        ...


EngineFactory = Callable[[Sequence[TrainingArm]], Engine]
"""Makes an engine with fresh adapters for these arms, on the pack's base."""


def make_arm(
    experiment: Experiment,
    *,
    module_names: tuple[str, ...],
    num_steps: int,
    modules_left_out: tuple[str, ...] = (),
) -> TrainingArm:
    """The arm of an experiment. Warm-up steps are rounded up, as transformers does."""
    settings = experiment.settings
    return TrainingArm(
        experiment_id=experiment.id,
        seed=experiment.seed,
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha_value,
        use_rslora=settings.use_rslora,
        scaling=settings.lora_scaling,
        lora_dropout=settings.lora_dropout,
        module_names=module_names,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        num_warmup_steps=math.ceil(settings.warmup_ratio * num_steps),
        num_steps=num_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        modules_left_out=modules_left_out,
    )


def initial_lora_A(arm: TrainingArm, *, module_name: str, in_features: int) -> Tensor:
    """`lora_A` of shape (r, in_features), fp32 on the CPU; `lora_B` starts at zero.

    The distribution is peft's: kaiming uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)). The draw depends
    only on the seed and the module's name, and fills row by row. So arms of one seed share it: the smaller rank's rows are
    the larger rank's first rows, and a module starts alike whichever others are adapted. Such common random numbers make
    differences between arms less noisy.
    """
    generator = torch.Generator().manual_seed(stream_seed(arm.seed, module_name))
    bound = in_features**-0.5
    return torch.empty(arm.r, in_features).uniform_(-bound, bound, generator=generator)


def stream_seed(*parts: object) -> int:
    """A 63-bit seed for one random stream, from the parts that name the stream."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
