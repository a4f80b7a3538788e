"""The packed engine: all arms of a pack train at once on one frozen base model.

    K  arms of the pack           D  hidden size
    N  tokens of a micro-batch    M  labelled tokens of a micro-batch

An optimizer step, as `PackedEngine.train` takes it:

    for each micro-batch                            rows laid end to end without padding; all arms see the same ones
        input_ids_N -> ids_KN                       every arm's copy of the same tokens
        hidden_KND  = model(ids_KN)                 the model's own forward, on patched layers (below)
        nll_sum_K   = completion_loss(hidden_KMD)   only at labelled tokens; never arms x tokens x vocabulary
        backward                                    scaled per arm by 1 / tokens, and in fp16 by its loss scale
    collect gradients                               from the layers' slots into each arm's own vector
    norm_K = |gradient of arm k|
    clip, AdamW, schedule                           per arm, with the arm's own settings
    refresh the slots                               from the new weights
    read loss_K and norm_K                          the only time that the host waits, but for 8-bit layers

The engine patches the model while it lives. Adapted linear layers become `PackedLinear` (y_k = W x_k + s_k B_k A_k
x_k), attention becomes `row_attention`, which never crosses a row, and the last layer's MLP runs on labelled tokens
alone. The first dimension is always the arm, and no operation mixes along it, so arms do not affect each other. If an
arm's loss or gradient is not finite, the arm stops, and the others continue with the same bits. A pack of one takes the
same path.

Arms may also have rows of their own (`ArmBatches`): other rows, more or fewer of them, another number of micro-batches.
Then a micro-batch is one sequence of all arms' rows, (1, T), and `arm_layout.py` says which tokens are whose.

`reference.py` does the same with PEFT and a plain loop; parity tests compare the two.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorastudy.engine import attention
from lorastudy.engine.adapter_buffers import make_buffers, sorted_by_shape
from lorastudy.engine.adapters import check_peft, save_adapter, saved_weights
from lorastudy.engine.arms import ArmState, EngineState, StepResult, TokenScores, TrainingArm
from lorastudy.engine.attention import UnsupportedModelError
from lorastudy.engine.batch import ArmBatches, Batch, MicroBatch
from lorastudy.engine.fused_ops import FusedOps, find_fused_ops
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.lora import RunningLayout
from lorastudy.engine.loss import completion_loss, token_scores
from lorastudy.engine.optimise import LossScale, PackedAdamW
from lorastudy.engine.padded_forward import greedy_answers
from lorastudy.engine.patches import (
    activation_checkpointing,
    labels_only_mlp,
    on_labels_only,
    replace_linear_layers,
    restore_linear_layers,
    without_padding_warning,
)
from lorastudy.engine.self_check import (
    Forwards,
    check_longest_row,
    check_rows_are_apart,
    check_step,
    check_supported,
    probe_batch,
)
from lorastudy.protocol.records import ArmStep

#: The most tokens during generation, summed over all arms.
MAX_GENERATION_TOKENS = 1 << 15


@dataclass(frozen=True, kw_only=True)
class CheckedForward:
    """What the checks of a model's packed forward found. It holds for every engine on the same base and precision."""

    fused_ops: FusedOps
    """The operations that are replaced by fused ones."""
    labels_only_mlp: nn.Module | None
    """The last MLP, if it may run on labelled tokens alone."""


class PackedEngine:
    """Owns the model while it lives: patches it in the constructor and restores it in `close`."""

    name = "packed"

    def __init__(
        self,
        base: BaseModel,
        arms: Sequence[TrainingArm],
        *,
        gradient_checkpointing: bool = False,
        longest_row: int | None = None,
        checked: CheckedForward | None = None,
    ) -> None:
        """Patch the model and make fresh adapters. With `longest_row`, also check a row of that many tokens.

        With `checked`, what another engine on the same base found, the model is not checked again.

        Raises:
            UnsupportedModelError: the model's own forward and the packed one disagree on a few test tokens, or an arm
                adapts parameters of experts.
            ModelError: PEFT would not wrap the modules of an arm.
        """
        assert all(arm.method.only_in_reference is None for arm in arms), (
            "the plan gives these to the reference engine"
        )
        _refuse_experts(base, arms)
        check_peft(base, arms)
        self.arms = sorted_by_shape(arms)
        self.num_steps_done = 0  # of the pack; in fp16 an arm may have taken fewer
        self._base = base
        self._model: PreTrainedModel = base.model
        self._body: Any = base.model.base_model
        self._head: Any = base.model.get_output_embeddings()
        self._own_attention = base.model.config._attn_implementation
        self._labels_only_mlp: nn.Module | None = None
        self._running = RunningLayout()
        self._fused_ops = FusedOps()
        adapted = {name for arm in arms for name in arm.module_names}
        self._layers = replace_linear_layers(base, names=adapted)
        try:
            self._model.set_attn_implementation(attention.NAME)
            if checked is None:
                self._check_model(longest_row=longest_row)
            else:
                self._fused_ops, self._labels_only_mlp = checked.fused_ops, checked.labels_only_mlp
            self._adapters = make_buffers(
                self.arms, layers=self._layers, device=base.device, dtype=base.dtype
            )
            self._adapters.attach(self._layers, running=self._running)
            self._optimizer = PackedAdamW(self._adapters)
        except BaseException:
            # After an error such as out of memory, restore the base, since the next engine uses it.
            self.close()
            raise
        self._loss_scale = LossScale(len(self.arms), enabled=base.dtype is torch.float16, device=base.device)
        smoothing = [arm.label_smoothing_factor for arm in self.arms]
        self._label_smoothing_K = torch.tensor(smoothing, device=base.device) if any(smoothing) else None
        self._diverged: set[str] = set()
        self._stopped: set[str] = set()
        self._gradient_checkpointing = gradient_checkpointing

    def train(self, steps: Iterable[Sequence[MicroBatch]], *, on_step: Callable[[StepResult], None]) -> None:
        """Take one optimizer step per item of `steps`; the item's batches are accumulated."""
        with without_padding_warning(self._model):
            self._train(map(self._laid_out, steps), on_step=on_step)

    def _laid_out(self, step: Sequence[MicroBatch]) -> list[Batch]:
        """The micro-batches of a step, with arms' own rows in the engine's order of arms."""
        return [
            batch.in_one_sequence(
                self.experiment_ids, device=self._base.device, is_padded=self._adapters.is_padded
            )
            if isinstance(batch, ArmBatches)
            else batch
            for batch in step
        ]

    def _train(self, upcoming: Iterator[Sequence[Batch]], *, on_step: Callable[[StepResult], None]) -> None:
        batches = next(upcoming, None)
        while batches is not None and not self._all_have_ended():
            losses_and_norms = self._launch_step(batches)
            following = next(upcoming, None)  # the host assembles it while the device computes
            arm_steps, diverged = self._record_step(*losses_and_norms.tolist())  # waits for the device
            self.num_steps_done += 1
            on_step(
                StepResult(
                    step=self.num_steps_done,
                    num_tokens=self._total(batches, of_labels=False, arms=arm_steps),
                    num_completion_tokens=self._total(batches, of_labels=True, arms=arm_steps),
                    arms=arm_steps,
                    diverged=diverged,
                )
            )
            batches = following

    def _launch_step(self, batches: Sequence[Batch]) -> Tensor:
        """Gradients and update of every arm that still trains; return losses and gradient norms, (2, K).

        The engine reads nothing from the device. An arm whose loss or gradient is not finite is not updated here;
        `_record_step` decides whether it tries again or has diverged.
        """
        loss_K = self._accumulate(batches)
        self._adapters.collect_gradients()
        norm_K = self._optimizer.grad_norms() / self._loss_scale.scales_K
        self._optimizer.step(
            grad_norm_K=norm_K,
            active=[not self._has_ended(arm) for arm in self.arms],
            is_finite_K=torch.isfinite(loss_K) & torch.isfinite(norm_K),
            loss_scale_K=self._loss_scale.scales_K,
        )
        self._adapters.refresh()
        return torch.stack([loss_K, norm_K])

    def _accumulate(self, batches: Sequence[Batch]) -> Tensor:
        """Add up gradients over the micro-batches; return each arm's loss per completion token, (K,)."""
        num_tokens = _tokens_of_step(batches)
        grad_scale_K = self._loss_scale.scales_K / num_tokens
        self._adapters.zero_grad()
        total_K = torch.zeros(len(self.arms), device=self._base.device)
        recomputed = activation_checkpointing(self._model, enabled=self._gradient_checkpointing)
        with self._adapters.dropout_on(), recomputed:
            for batch in batches:
                self._adapters.clock.tick(batch.layout)
                with self._patched_for(batch):  # checkpointed layers run forward again during backward
                    hidden_KND = self._forward(batch, num_arms=len(self.arms))
                    hidden_KMD = hidden_KND.index_select(1, batch.label_index_M)
                    # Its gradient is scaled per arm already: to a mean over the step's tokens, and for fp16.
                    nll_sum_K = completion_loss(
                        hidden_KMD,
                        self._head,
                        targets_M=batch.targets_M,
                        grad_scale_K=grad_scale_K,
                        labels=None if batch.layout is None else batch.layout.labels,
                        label_smoothing_K=self._label_smoothing_K,
                    )
                    nll_sum_K.sum().backward()  # type: ignore[no-untyped-call]  # torch
                total_K += nll_sum_K.detach()
        return total_K / num_tokens

    def _hidden(self, batch: Batch, *, num_arms: int) -> Tensor:
        """The last hidden states of the first `num_arms` arms, (K, N, D)."""
        with self._patched_for(batch):
            return self._forward(batch, num_arms=num_arms)

    def _forward(self, batch: Batch, *, num_arms: int) -> Tensor:
        """As `_hidden`, on a model that is patched for the batch."""
        ids_KN = batch.input_ids_N.expand(1 if batch.layout is not None else num_arms, -1)
        out = self._body(input_ids=ids_KN, position_ids=batch.position_ids_N.unsqueeze(0), use_cache=False)
        hidden_KND: Tensor = out[0]
        return hidden_KND

    @contextmanager
    def _patched_for(self, batch: Batch) -> Iterator[None]:
        """Set the batch's rows for attention and its labels for the last MLP in this context."""
        with (
            attention.rows(batch),
            self._running.set_to(batch.layout),
            self._fused_ops.applied(),
            on_labels_only(self._labels_only_mlp, batch.label_index_M),
        ):
            yield

    def _record_step(
        self, losses: Sequence[float], norms: Sequence[float]
    ) -> tuple[tuple[ArmStep, ...], tuple[str, ...]]:
        """Count the step for every arm that took it; return the arms' steps and the ids of diverged arms."""
        rates = self._optimizer.learning_rates()
        is_taken = [False] * len(self.arms)
        arm_steps: list[ArmStep] = []
        diverged: list[str] = []
        for number, (arm, loss, norm) in enumerate(zip(self.arms, losses, norms, strict=True)):
            if self._has_ended(arm):
                continue
            is_taken[number] = math.isfinite(loss) and math.isfinite(norm)
            if is_taken[number]:
                self._loss_scale.succeeded(number)
            elif not (math.isfinite(loss) and self._loss_scale.overflowed(number)):
                diverged.append(arm.experiment_id)
            arm_steps.append(_arm_step(arm, loss=loss, rate=rates[number], norm=norm))
        self._optimizer.count_steps(is_taken)
        for experiment_id in diverged:
            self._zero_adapter(experiment_id)
        return tuple(arm_steps), tuple(diverged)

    def _total(self, batches: Sequence[Batch], *, of_labels: bool, arms: Sequence[ArmStep]) -> int:
        """The tokens of a step, or the labelled ones, summed over the arms that took it."""
        taken = {arm.experiment_id for arm in arms}
        numbers = [number for number, key in enumerate(self.experiment_ids) if key in taken]
        total = 0
        for batch in batches:
            if batch.layout is None:
                size = batch.num_completion_tokens if of_labels else batch.num_tokens
                total += size * len(numbers)
            else:
                spans = batch.layout.labels if of_labels else batch.layout.tokens
                total += sum(spans.sizes_K[number] for number in numbers)
        return total

    def _zero_adapter(self, experiment_id: str) -> None:
        """Set a diverged arm's adapter to zero. The arm then equals the base model, so all its numbers are finite."""
        self._diverged.add(experiment_id)
        arm = next(arm for arm in self.arms if arm.experiment_id == experiment_id)
        for lora_A, lora_B in self._adapters.weights_of(arm).values():
            lora_A.zero_()
            lora_B.zero_()
        self._adapters.refresh()

    def _all_have_ended(self) -> bool:
        return all(self._has_ended(arm) for arm in self.arms)

    def _has_ended(self, arm: TrainingArm) -> bool:
        return self.num_steps_done >= arm.num_steps or arm.experiment_id in self._diverged | self._stopped

    def stop(self, experiment_id: str) -> None:
        """End the training of one arm."""
        self._stopped.add(experiment_id)

    @property
    def experiment_ids(self) -> tuple[str, ...]:
        """The experiments of the adapters, in the order of `arms`."""
        return tuple(arm.experiment_id for arm in self.arms)

    @torch.no_grad()
    def score(self, batch: Batch) -> TokenScores:
        """Score a batch with every arm."""
        hidden_KMD = self._hidden(batch, num_arms=len(self.arms)).index_select(1, batch.label_index_M)
        nll_KM, correct_KM = token_scores(hidden_KMD, self._head, targets_M=batch.targets_M)
        return TokenScores(nll_KM=nll_KM, correct_KM=correct_KM)

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[list[int]]]:
        """Greedy answers, `[arm][prompt]`, up to and without the end-of-text token."""
        answers: list[list[list[int]]] = [[] for _ in self.arms]
        longest = max(len(prompt) for prompt in prompts) + max_new_tokens
        num_at_once = max(1, MAX_GENERATION_TOKENS // (longest * len(self.arms)))
        self._model.set_attn_implementation(self._own_attention)  # prompts are padded, and the cache grows
        try:
            for start in range(0, len(prompts), num_at_once):
                part = prompts[start : start + num_at_once]
                tokens = greedy_answers(
                    self._base, part, copies=len(self.arms), max_new_tokens=max_new_tokens
                )
                for number in range(len(self.arms)):
                    answers[number] += tokens[number * len(part) : (number + 1) * len(part)]
        finally:
            self._model.set_attn_implementation(attention.NAME)
        return answers

    def check_step(self) -> None:
        """Compute gradients of a few tokens with these arms, which must be fresh. Close the engine afterwards.

        Raises:
            UnsupportedModelError: the model's backward pass fails, or mixes the arms.
        """
        probe = probe_batch(self._model, device=self._base.device)
        check_step(self._forwards(), losses_of=lambda batch: self._accumulate([batch]), batch=probe)

    def state(self) -> EngineState:
        """A copy, on the CPU, of everything that training needs to resume."""
        arms = tuple(
            ArmState(
                experiment_id=arm.experiment_id,
                num_steps_done=self.num_steps_done,
                is_diverged=arm.experiment_id in self._diverged,
                numbers={
                    "num_steps_taken": self._optimizer.num_steps_taken[number],
                    "loss_scale": self._loss_scale.scales[number],
                    "num_good_steps": self._loss_scale.num_good_steps[number],
                    "num_forward_passes": self._adapters.clock.passes_K[number],
                },
                tensors={
                    name: tensor.detach().to("cpu", copy=True)
                    for name, tensor in self._optimizer.tensors_of(number).items()
                },
            )
            for number, arm in enumerate(self.arms)
        )
        return EngineState(engine=self.name, arms=arms)

    @torch.no_grad()
    def restore(self, state: EngineState) -> None:
        """Resume from a state."""
        for number, arm in enumerate(state.of(self.experiment_ids).arms):
            assert number == 0 or self.num_steps_done == arm.num_steps_done, (
                "arms of one state are at one step"
            )
            self.num_steps_done = arm.num_steps_done
            if arm.is_diverged:
                self._diverged.add(arm.experiment_id)
            self._optimizer.restore_count(number, int(arm.numbers["num_steps_taken"]))
            self._loss_scale.restore(
                number, scale=arm.numbers["loss_scale"], num_good_steps=int(arm.numbers["num_good_steps"])
            )
            for name, tensor in self._optimizer.tensors_of(number).items():
                tensor.copy_(arm.tensors[name])
            self._adapters.clock.passes_K[number] = int(arm.numbers["num_forward_passes"])
        self._adapters.refresh()

    def save_adapter(self, arm: TrainingArm, folder: Path) -> int:
        """Write the arm's adapter in PEFT's format; return the bytes of its weights file."""
        return save_adapter(arm, self._adapters.weights_of(arm), base=self._base, folder=folder)

    @torch.no_grad()
    def load_adapter(self, arm: TrainingArm, folder: Path) -> None:
        """Give the arm the weights of a saved adapter."""
        saved = saved_weights(arm, base=self._base, folder=folder)
        for name, slots in self._adapters.weights_of(arm).items():
            for slot, weight in zip(slots, saved[name], strict=True):
                slot.copy_(weight)
        self._adapters.refresh()

    def close(self) -> None:
        """Restore the model's own layers and attention."""
        restore_linear_layers(self._base, self._layers)
        self._model.set_attn_implementation(self._own_attention)

    @property
    def checked(self) -> CheckedForward:
        """What the checks found, for further engines on the same base."""
        return CheckedForward(fused_ops=self._fused_ops, labels_only_mlp=self._labels_only_mlp)

    def _check_model(self, *, longest_row: int | None) -> None:
        """Check on a few tokens that the packed forward equals the model's own, and choose the faster operations.

        Fused operations and the shortened last MLP are used only if the model's results stay the same.
        """
        probe, forwards = probe_batch(self._model, device=self._base.device), self._forwards()

        def check() -> None:
            check_supported(forwards, head=self._head, batch=probe)
            if longest_row is not None:
                check_rows_are_apart(forwards, batch=probe)
                check_longest_row(forwards, num_tokens=longest_row, device=self._base.device)

        self._fused_ops = find_fused_ops(self._model, device=self._base.device)
        try:
            check()
        except UnsupportedModelError:
            if self._fused_ops == FusedOps():
                raise
            self._fused_ops = FusedOps()
            check()
        self._labels_only_mlp = labels_only_mlp(
            self._model,
            index_M=probe.label_index_M[::2],
            hidden_states=partial(self._hidden, probe, num_arms=1),
        )

    def _forwards(self) -> Forwards:
        return Forwards(
            model=self._model,
            body_forward=partial(self._hidden, num_arms=1),
            running=self._patched_for,
            own_attention=self._own_attention,
        )


def _refuse_experts(base: BaseModel, arms: Sequence[TrainingArm]) -> None:
    layers = base.targets_by_name
    parameter = next((name for arm in arms for name in arm.module_names if layers[name].is_parameter), None)
    if parameter is not None:
        raise UnsupportedModelError(
            f"{parameter} holds the weights of experts, which the packed engine does not adapt yet"
        )


def _tokens_of_step(batches: Sequence[Batch]) -> int | Tensor:
    """The labelled tokens of each arm in a step: one number, or (K,) if arms have rows of their own.

    An arm that has ended has none, and counts as one so that nothing is divided by zero.
    """
    if all(batch.layout is None for batch in batches):
        return sum(batch.num_completion_tokens for batch in batches)
    layouts = [batch.layout for batch in batches if batch.layout is not None]
    assert len(layouts) == len(batches), "a step is of one kind"
    total_K = layouts[0].labels.num_K
    for layout in layouts[1:]:
        total_K = total_K + layout.labels.num_K
    return total_K.clamp(min=1)


def _arm_step(arm: TrainingArm, *, loss: float, rate: float, norm: float) -> ArmStep:
    return ArmStep(
        experiment_id=arm.experiment_id,
        loss=loss if math.isfinite(loss) else None,
        learning_rate=rate,
        grad_norm=norm if math.isfinite(norm) else None,
    )
