"""The reference engine: PEFT and a plain loop, one arm after another.

Tests compare the packed engine with it, and it trains models that the packed engine does not support. All its
computations are those of torch, transformers or peft. Only the initial weights of the adapters are made here
(`initial_weights`), so that both engines start from the same weights.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from transformers import get_scheduler
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from lorastudy.engine.adapters import save_adapter, saved_weights
from lorastudy.engine.arms import (
    ArmState,
    EngineState,
    StepResult,
    TokenScores,
    TrainingArm,
    stream_seed,
)
from lorastudy.engine.batch import ArmBatches, Batch, MicroBatch
from lorastudy.engine.initial_weights import initial_weights
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.optimise import INITIAL_SCALE, SMALLEST_SCALE
from lorastudy.engine.optimizers import restore_state, saved_state, state_keys
from lorastudy.engine.padded_forward import greedy_answers, label_logits
from lorastudy.engine.patches import activation_checkpointing
from lorastudy.engine.peft_model import (
    ONLY_ADAPTER,
    BaseParts,
    adapter_of,
    check_wrapping,
    initial_state,
    load_with_peft,
    make_optimizer,
    save_with_peft,
    set_adapter_training,
    set_weights,
    wrap,
)
from lorastudy.protocol.records import ArmStep
from lorastudy.suite.methods import LOFTQ


class ArmTrainer:
    """One arm's parameters, optimizer, schedule, loss scale and stream of dropout masks.

    The step itself is torch's (the optimizer, GradScaler) and transformers' (the schedule). This class saves and restores
    them.
    """

    def __init__(
        self,
        arm: TrainingArm,
        parameters: Sequence[nn.Parameter],
        *,
        optimizer: Optimizer,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.arm = arm
        self.parameters = list(parameters)
        self.num_steps_done = 0
        self.is_diverged = False
        self.is_stopped = False
        self.optimizer = optimizer
        self._state_keys = state_keys(optimizer, self.parameters)
        self.schedule: Any = get_scheduler(
            arm.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=arm.num_warmup_steps,
            num_training_steps=arm.num_steps,
            scheduler_specific_kwargs=dict(arm.lr_scheduler_kwargs),
        )
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=dtype is torch.float16, init_scale=INITIAL_SCALE
        )
        self._device = device
        self._is_drawing = False
        self._stream: dict[str, Tensor] = {}

    @property
    def has_ended(self) -> bool:
        """Whether the arm's training has ended."""
        return self.is_diverged or self.is_stopped or self.num_steps_done >= self.arm.num_steps

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        """In this context torch's random stream, from which PEFT draws dropout, is this arm's own."""
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(stream_seed("dropout", self.arm.seed))
            if self._stream:
                torch.set_rng_state(self._stream["rng_cpu"])
            if "rng_cuda" in self._stream:
                torch.cuda.set_rng_state(self._stream["rng_cuda"], self._device)
            self._is_drawing = True
            try:
                yield
            finally:
                self._stream, self._is_drawing = self._where_the_stream_is(), False

    def state(self) -> ArmState:
        """A copy, on the CPU, of everything that the arm needs to resume."""
        scale = self.scaler.state_dict()
        tensors: dict[str, Tensor] = {
            f"weights.{number}": value for number, value in enumerate(self.parameters)
        }
        for number, key in enumerate(self._state_keys):
            own = saved_state(self.optimizer, key)
            tensors |= {f"{name}.{number}": value for name, value in own.items()}
        tensors |= self._where_the_stream_is()
        return ArmState(
            experiment_id=self.arm.experiment_id,
            num_steps_done=self.num_steps_done,
            is_diverged=self.is_diverged,
            numbers={
                "num_steps_taken": self.schedule.last_epoch,
                "loss_scale": scale.get("scale", 1.0),
                "num_good_steps": scale.get("_growth_tracker", 0),
            },
            tensors={name: value.detach().to("cpu", copy=True) for name, value in tensors.items()},
        )

    @torch.no_grad()
    def restore(self, state: ArmState) -> None:
        """Go on from a state."""
        self.num_steps_done, self.is_diverged = state.num_steps_done, state.is_diverged
        self._stream = {name: state.tensors[name] for name in state.tensors if name.startswith("rng_")}
        num_taken = int(state.numbers["num_steps_taken"])
        for number, parameter in enumerate(self.parameters):
            own = {
                name.removesuffix(f".{number}"): value.to(parameter.device)
                for name, value in state.tensors.items()
                if name.endswith(f".{number}")
            }
            parameter.copy_(own.pop("weights"))
            restore_state(self.optimizer, self._state_keys[number], saved=own, num_steps_taken=num_taken)
        if self.scaler.is_enabled():
            scale, good = state.numbers["loss_scale"], int(state.numbers["num_good_steps"])
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": scale, "_growth_tracker": good})
        self._set_schedule(num_taken)

    def _set_schedule(self, num_taken: int) -> None:
        """Set the schedule to its state after `num_taken` calls of `step()`. The rate depends only on that number."""
        rates = [base * self.schedule.lr_lambdas[0](num_taken) for base in self.schedule.base_lrs]
        self.schedule.load_state_dict(
            self.schedule.state_dict()
            | {"last_epoch": num_taken, "_step_count": num_taken + 1, "_last_lr": rates}
        )
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _where_the_stream_is(self) -> dict[str, Tensor]:
        if not self._is_drawing:
            return self._stream
        stream = {"rng_cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            stream["rng_cuda"] = torch.cuda.get_rng_state(self._device)
        return stream


class ReferenceEngine:
    """One PEFT model with a named adapter per arm. Owns the base while it lives.

    An arm of a method that the packed engine does not have is alone in its model.
    """

    name = "reference"
    frees_gradients = True
    """Whether gradients are freed before the next forward pass. Else they stay and are set to zero."""

    def __init__(
        self, base: BaseModel, arms: Sequence[TrainingArm], *, gradient_checkpointing: bool = False
    ) -> None:
        """Wrap the base in PEFT's model.

        Raises:
            ModelError: PEFT does not wrap the modules of an arm.
        """
        self.arms = tuple(arms)
        self._base = base
        self._is_plain = all(arm.method.only_in_reference is None for arm in self.arms)
        assert self._is_plain or len(self.arms) == 1, "an arm that only PEFT trains is alone in its pack"
        prefix = "arm{}" if self._is_plain else ONLY_ADAPTER
        self._names = {prefix.format(number): arm for number, arm in enumerate(self.arms)}
        for names, arm in {arm.module_names: arm for arm in self.arms}.items():
            check_wrapping(base, arm)
            assert set(names) <= set(base.targets_by_name), set(names) - set(base.targets_by_name)
        self._own_weights = _kept_weights(base, self.arms)
        self._parts = BaseParts(base, biases=self.arms[0].method.bias)
        self._model: Any = wrap(base, self._names)
        self._initial = initial_state(self._model) if self._own_weights else {}
        self._idle = {name: self._parameters_of_others(name) for name in self._names}
        for adapter_name, arm in self._names.items():
            if not arm.method.peft and arm.method.init_lora_weights in {
                True,
                LOFTQ,
            }:  # otherwise PEFT has made them
                set_weights(self._model, initial_weights(arm, base=base), adapter_name=adapter_name)
            for parameter in self._idle[adapter_name]:
                parameter.data.zero_()
        self._model.eval()
        self._noise = add_noise(self._model, self.arms)
        self._trainers = {name: self._make_trainer(name, arm) for name, arm in self._names.items()}
        self._activate(next(iter(self._names)))
        self._gradient_checkpointing = gradient_checkpointing

    def _make_trainer(self, adapter_name: str, arm: TrainingArm) -> ArmTrainer:
        self._activate(adapter_name)  # PEFT's optimizers take the parameters that need a gradient
        parameters = self._trained_parameters(adapter_name, arm)
        optimizer = make_optimizer(self._model, arm, parameters=parameters)
        return ArmTrainer(
            arm,
            self._trained_parameters(adapter_name, arm),  # LoRA-FA's optimizer has frozen lora_A
            optimizer=optimizer,
            device=self._base.device,
            dtype=self._base.dtype,
        )

    def _trained_parameters(self, adapter_name: str, arm: TrainingArm) -> list[nn.Parameter]:
        """The parameters that the arm trains. An adapter that has the model for itself may have others than A and B."""
        if self._is_plain:
            return self._parameters(adapter_name, arm.module_names)
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    @property
    def experiment_ids(self) -> tuple[str, ...]:
        """The experiments of the adapters, in the order of `arms`."""
        return tuple(arm.experiment_id for arm in self.arms)

    @property
    def trainers(self) -> tuple[ArmTrainer, ...]:
        """The arms' trainers, in the order of `arms`."""
        return tuple(self._trainers.values())

    @property
    def num_steps_done(self) -> int:
        """Steps that every arm has done."""
        left = [trainer.num_steps_done for trainer in self._trainers.values() if not trainer.has_ended]
        return min(left, default=max(arm.num_steps for arm in self.arms))

    def train(self, steps: Iterable[Sequence[MicroBatch]], *, on_step: Callable[[StepResult], None]) -> None:
        """Train the arms one after another, each over its own steps; each call of `on_step` reports one arm."""
        first = self.num_steps_done
        kept = list(steps)
        for adapter_name, trainer in self._trainers.items():
            self._activate(adapter_name)
            if not trainer.has_ended:
                own = kept[trainer.num_steps_done - first : trainer.arm.num_steps - first]
                with trainer.own_stream():
                    self._train_one(trainer, own, on_step=on_step)

    def stop(self, experiment_id: str) -> None:
        """End the training of one arm."""
        for trainer in self._trainers.values():
            trainer.is_stopped |= trainer.arm.experiment_id == experiment_id

    def state(self) -> EngineState:
        """Copy everything that training needs to go on, to the CPU."""
        return EngineState(
            engine=self.name, arms=tuple(trainer.state() for trainer in self._trainers.values())
        )

    def restore(self, state: EngineState) -> None:
        """Go on from a state."""
        arms = state.of(self.experiment_ids).arms
        for trainer, arm in zip(self._trainers.values(), arms, strict=True):
            trainer.restore(arm)

    @torch.no_grad()
    def score(self, batch: Batch) -> TokenScores:
        """Score a batch with every arm."""
        nll, correct = [], []
        for _ in self._one_after_another():
            logits_MV = label_logits(self._model, batch)
            nll.append(F.cross_entropy(logits_MV, batch.targets_M, reduction="none"))
            correct.append(logits_MV.argmax(dim=-1) == batch.targets_M)
        return TokenScores(nll_KM=torch.stack(nll), correct_KM=torch.stack(correct))

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[list[int]]]:
        """Greedy answers, `[arm][prompt]`, up to and without the end-of-text token."""
        return [
            greedy_answers(self._base, prompts, copies=1, max_new_tokens=max_new_tokens)
            for _ in self._one_after_another()
        ]

    def save_adapter(self, arm: TrainingArm, folder: Path) -> int:
        """Write the arm's adapter in PEFT's format; return the bytes of its weights file.

        PEFT writes an adapter that has the model for itself. A plain one it does not write: its model holds the adapters of
        all arms, and the keys of experts depend on the set of wrapped parameters.
        """
        if not self._is_plain:
            return save_with_peft(self._model, arm, base=self._base, folder=folder, initial=self._initial)
        adapter_name = next(name for name, other in self._names.items() if other is arm)
        weights = {
            name: adapter_of(self._model, name, adapter_name=adapter_name) for name in arm.module_names
        }
        return save_adapter(arm, weights, base=self._base, folder=folder)

    def load_adapter(self, arm: TrainingArm, folder: Path) -> None:
        """Give the arm the weights of a saved adapter."""
        if not self._is_plain:
            self._initial = load_with_peft(
                self._model,
                arm,
                base=self._base,
                folder=folder,
                whole_weights=self._own_weights,
                drawn=self._initial,
            )
            return
        adapter_name = next(name for name, other in self._names.items() if other is arm)
        saved = saved_weights(arm, base=self._base, folder=folder)
        set_weights(self._model, saved, adapter_name=adapter_name)

    def close(self) -> None:
        """Unwrap the base."""
        self._stop_noise()
        self._model.unload()
        self._parts.restore()
        for name, weight in self._own_weights.items():
            self._base.linear_layers[name].get_parameter("weight").data = weight
        self._base.model.requires_grad_(requires_grad=False)

    def _one_after_another(self) -> Iterator[str]:
        """Activate each adapter in turn, then the previously active one, which may be in training."""
        before = self._model.active_adapter
        for adapter_name in self._names:
            self._activate(adapter_name)
            yield adapter_name
        self._activate(before)

    def _activate(self, adapter_name: str) -> None:
        """Make an adapter the one that runs and trains. It would also unfreeze what a method has frozen."""
        if not self._is_plain:
            return
        self._model.set_adapter(adapter_name)
        for parameter in self._idle[adapter_name]:
            parameter.requires_grad = False

    def _parameters(self, adapter_name: str, names: Iterable[str]) -> list[nn.Parameter]:
        return [
            parameter
            for name in names
            for parameter in adapter_of(self._model, name, adapter_name=adapter_name)
        ]

    def _parameters_of_others(self, adapter_name: str) -> list[nn.Parameter]:
        """Parameters of experts that PEFT wraps only because other arms adapt them. For this arm they stay zero."""
        own = set(self._names[adapter_name].module_names)
        layers = self._base.targets_by_name
        wrapped = {name: None for arm in self.arms for name in arm.module_names if layers[name].is_parameter}
        return self._parameters(adapter_name, [name for name in wrapped if name not in own])

    def _train_one(
        self,
        trainer: ArmTrainer,
        steps: Sequence[Sequence[MicroBatch]],
        *,
        on_step: Callable[[StepResult], None],
    ) -> None:
        arm, optimizer, scaler = trainer.arm, trainer.optimizer, trainer.scaler
        for step in steps:
            batches = self._rows_of(arm, step)
            optimizer.zero_grad(set_to_none=self.frees_gradients)
            loss = self._accumulate(batches, scaler=scaler, label_smoothing=arm.label_smoothing_factor)
            scaler.unscale_(optimizer)
            norm = _clip(trainer.parameters, max_norm=arm.max_grad_norm)
            rate = trainer.schedule.get_last_lr()[0]
            taken = math.isfinite(loss) and math.isfinite(norm)
            if taken:
                scaler.step(optimizer)
                trainer.schedule.step()
            if scaler.is_enabled():
                scaler.update()
            trainer.num_steps_done += 1
            trainer.is_diverged = not (taken or _may_try_again(scaler, loss=loss))
            on_step(_result(trainer, batches, measured=(loss, rate, norm)))
            if trainer.is_diverged:
                return

    def _rows_of(self, arm: TrainingArm, step: Sequence[MicroBatch]) -> list[Batch]:
        """The micro-batches of a step that have rows of this arm."""
        own = [
            batch.of(arm.experiment_id, device=self._base.device) if isinstance(batch, ArmBatches) else batch
            for batch in step
        ]
        return [batch for batch in own if batch is not None]

    def _accumulate(
        self, batches: Sequence[Batch], *, scaler: torch.amp.GradScaler, label_smoothing: float
    ) -> float:
        """Add up gradients; return the loss per completion token of all batches."""
        num_tokens = sum(batch.num_completion_tokens for batch in batches)
        total = 0.0
        self._set_training(training=True)
        with activation_checkpointing(self._model, enabled=self._gradient_checkpointing):
            for batch in batches:
                logits_MV = label_logits(self._model, batch)
                summed = F.cross_entropy(
                    logits_MV, batch.targets_M, reduction="sum", label_smoothing=label_smoothing
                )
                loss = summed / num_tokens
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch
                total += loss.item()
        self._set_training(training=False)
        return total

    def _stop_noise(self) -> None:
        if self._noise is not None:
            deactivate_neftune(self._model, self._noise)

    def _set_training(self, *, training: bool) -> None:
        """Switch what acts in training alone and is part of an experiment: the adapters' dropout, and the noise of NEFTune."""
        set_adapter_training(self._model, training=training)
        if self._noise is not None:
            self._model.get_input_embeddings().train(training)


def add_noise(model: Any, arms: Sequence[TrainingArm]) -> Any:
    """The handle of transformers' own hook, which adds NEFTune's noise; None without noise. Such an arm is alone."""
    alpha = arms[0].method.neftune_noise_alpha
    return None if alpha is None else activate_neftune(model, alpha)


def _kept_weights(base: BaseModel, arms: Sequence[TrainingArm]) -> dict[str, Tensor]:
    """The weights of the layers out of which an arm takes a part, by name. The layers get copies, which PEFT then changes."""
    names = {name: None for arm in arms if arm.method.changes_base for name in arm.module_names}
    kept: dict[str, Tensor] = {}
    for name in names:
        weight = base.linear_layers[name].get_parameter("weight")
        kept[name], weight.data = weight.data, weight.data.clone()
    return kept


def _clip(parameters: Sequence[nn.Parameter], *, max_norm: float) -> float:
    limit = max_norm if max_norm > 0 else math.inf
    return torch.nn.utils.clip_grad_norm_(parameters, limit).item()


def _may_try_again(scaler: torch.amp.GradScaler, *, loss: float) -> bool:
    """Whether a gradient that is not finite is due to fp16, so that the step may be retried at a lower scale."""
    return scaler.is_enabled() and math.isfinite(loss) and scaler.get_scale() >= SMALLEST_SCALE


def _result(
    trainer: ArmTrainer, batches: Sequence[Batch], *, measured: tuple[float, float, float]
) -> StepResult:
    loss, rate, norm = measured
    experiment_id = trainer.arm.experiment_id
    taken = ArmStep(
        experiment_id=experiment_id,
        loss=loss if math.isfinite(loss) else None,
        learning_rate=rate,
        grad_norm=norm if math.isfinite(norm) else None,
    )
    return StepResult(
        step=trainer.num_steps_done,
        num_tokens=sum(batch.num_tokens for batch in batches),
        num_completion_tokens=sum(batch.num_completion_tokens for batch in batches),
        arms=(taken,),
        diverged=(experiment_id,) if trainer.is_diverged else (),
    )
