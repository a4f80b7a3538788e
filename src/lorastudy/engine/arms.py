"""The inputs and outputs of engines: arms as plain numbers and module names, scores, steps and states.

`Engine` is a seam. `packed.PackedEngine` and `reference.ReferenceEngine` implement it, and
`tests/contract/test_engine.py` tests both against the same contract.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from lorastudy.engine.batch import Batch, MicroBatch
from lorastudy.protocol.records import ArmStep
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.methods import PLAIN, ArmMethod
from lorastudy.suite.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class TrainingArm:
    """One experiment, ready to train: its modules, its hyperparameters and its number of optimizer steps."""

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
    lr_scheduler_kwargs: tuple[tuple[str, Any], ...] = ()
    label_smoothing_factor: float = 0.0
    modules_left_out: tuple[str, ...] = ()
    """Modules of the arm's preset that PEFT cannot adapt, with the reason."""
    method: ArmMethod = PLAIN

    @property
    def schedule(self) -> Schedule:
        """The arm's learning rate in every step."""
        return Schedule(
            name=self.lr_scheduler_type,
            num_warmup_steps=self.num_warmup_steps,
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
            options=dict(self.lr_scheduler_kwargs),
        )

    @property
    def shape(self) -> tuple[int, tuple[str, ...], float]:
        """(rank, modules, dropout). Arms of equal shape have tensors of equal size and share every batched product."""
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
    """One optimizer step of all arms that still train. The tokens are summed over these arms."""

    step: int
    num_tokens: int
    num_completion_tokens: int
    arms: tuple[ArmStep, ...]
    diverged: tuple[str, ...] = ()
    """Experiment ids whose loss or gradient was not finite in this step. Their training ends."""


@dataclass(frozen=True, kw_only=True)
class ArmState:
    """The state of one arm between two steps, sufficient to resume it. Each engine has its own `numbers` and `tensors`.

    The experiment determines the rest: the rows and the learning rate of each step and, in the packed engine, every
    dropout mask, which is a function of seed, layer and forward pass.
    """

    experiment_id: str
    num_steps_done: int
    """Steps of the pack, including those that the optimizer skipped."""
    is_diverged: bool
    numbers: Mapping[str, float]
    tensors: Mapping[str, Tensor]


#: The order of the numbers in the tensors of a state, and what its numbers are. Another version must not be read.
STATE_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """The states of all arms between two steps. They are separate, so that a part of a pack can resume too."""

    engine: str
    arms: tuple[ArmState, ...]
    version: int = STATE_VERSION

    def of(self, experiment_ids: Iterable[str]) -> Self:
        """The states of some arms, in the order given.

        Raises:
            KeyError: an arm is not in the state.
        """
        by_id = {arm.experiment_id: arm for arm in self.arms}
        return replace(self, arms=tuple(by_id[experiment_id] for experiment_id in experiment_ids))


class Scorer(Protocol):
    """K adapters on a base model, in a fixed order, that can score and generate. Evaluators use it."""

    @property
    def experiment_ids(self) -> tuple[str, ...]:
        """The experiments of the adapters."""
        ...

    def score(self, batch: Batch) -> TokenScores:
        """Score a batch with every arm, without gradient or any effect on weights or later gradients."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[list[int]]]:
        """Greedy answers, `[arm][prompt]`, up to and without the end-of-text token."""
        ...


class Engine(Scorer, Protocol):
    """Trains, scores, generates with and saves the arms on one base model.

    Every arm's result equals its result when it trains alone, up to floating-point summation order.
    """

    name: str
    arms: tuple[TrainingArm, ...]

    @property
    def num_steps_done(self) -> int:
        """Steps of the pack that every arm has done. Pass the following steps to `train`."""
        ...

    def train(self, steps: Iterable[Sequence[MicroBatch]], *, on_step: Callable[[StepResult], None]) -> None:
        """Take one optimizer step per item of `steps`; the item's batches are accumulated.

        A step's batches are of one kind: all arms see the same rows, or each arm has its own (`ArmBatches`), in every
        step in which it trains.

        Two calls give the same bits as one call with the steps of both. `on_step` runs between two steps, so it may
        read `state`, score and save.
        """
        ...

    def stop(self, experiment_id: str) -> None:
        """End the training of one arm between two steps. Its adapter stays as it is, and the others keep their bits."""
        ...

    def state(self) -> EngineState:
        """A copy, on the CPU, of everything that training needs to resume, but for which arms were stopped."""
        ...

    def restore(self, state: EngineState) -> None:
        """Resume from a state that holds all arms of this fresh engine, with the bits of an uninterrupted training.

        Bits also depend on which arms train together: if only a part of a pack resumes, its results are equal up to
        floating-point summation order.
        """
        ...

    def save_adapter(self, arm: TrainingArm, folder: Path) -> int:
        """Write the arm's adapter in PEFT's format; return the bytes of its weights file."""
        ...

    def load_adapter(self, arm: TrainingArm, folder: Path) -> None:
        """Give the arm the weights that `save_adapter` wrote. It then scores and generates with the same bits.

        Raises:
            ModelError: the folder holds no adapter, or another one.
        """
        ...

    def close(self) -> None:
        """Restore the base model."""
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
        lr_scheduler_kwargs=tuple(settings.lr_scheduler_kwargs.items()),
        num_warmup_steps=settings.warmup_steps or math.ceil(settings.warmup_ratio * num_steps),
        num_steps=num_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        label_smoothing_factor=settings.label_smoothing_factor,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        modules_left_out=modules_left_out,
        method=settings.arm_method,
    )


def initial_lora_A(arm: TrainingArm, *, module_name: str, in_features: int) -> Tensor:
    """`lora_A` of shape (r, in_features), fp32 on the CPU; `lora_B` starts at zero.

    The distribution is peft's: kaiming uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)). The draw depends
    only on the seed and the module's name, and fills row by row. So arms of one seed share their draws: the rows of the
    smaller rank are the first rows of the larger rank, and a module's draw does not depend on the other modules. Such
    common random numbers make differences between arms less noisy.
    """
    generator = torch.Generator().manual_seed(stream_seed(arm.seed, module_name))
    bound = in_features**-0.5
    return torch.empty(arm.r, in_features).uniform_(-bound, bound, generator=generator)


def stream_seed(*parts: object) -> int:
    """The 63-bit seed of the random stream that these parts name."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
