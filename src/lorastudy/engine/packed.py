"""The packed engine: all arms of a pack train at once on one frozen base.

    K arms, N tokens of a micro-batch (no padding), D hidden size, M labelled tokens

All arms see the same N tokens. The model's own forward runs on (K, N); its adapted layers are `PackedLinear`,
its attention is `row_attention`, so no arm and no row can see another. Clipping, dropout, loss normalisation
and optimizer state are per arm: an arm that diverges is set aside and the others go on, bit for bit. A pack
of one takes the same path.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorastudy.engine import attention
from lorastudy.engine.adapter_buffers import in_groups, make_buffers
from lorastudy.engine.adapters import check_peft, save_adapter
from lorastudy.engine.arms import Arm, ArmState, EngineState, StepResult, TokenScores
from lorastudy.engine.attention import UnsupportedModelError
from lorastudy.engine.batch import Batch
from lorastudy.engine.fused_ops import FusedOps, find_fused_ops
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.loss import completion_loss, token_scores
from lorastudy.engine.optimise import LossScale, PackedAdamW
from lorastudy.engine.padded_forward import greedy
from lorastudy.engine.patches import activation_checkpointing, eject, inject, labelled_only, labels_only_mlp
from lorastudy.engine.self_check import (
    Forwards,
    check_longest_row,
    check_rows_are_apart,
    check_supported,
    probe_batch,
)
from lorastudy.protocol.records import ArmStep

#: Tokens that all arms together may hold while they generate.
MAX_GENERATION_TOKENS = 1 << 15


class PackedEngine:
    """Owns the model while it lives: its layers are replaced on entry and put back by `close`."""

    name = "packed"

    def __init__(
        self,
        base: BaseModel,
        arms: Sequence[Arm],
        *,
        gradient_checkpointing: bool = False,
        longest_row: int | None = None,
    ) -> None:
        """Replace the adapted layers and make fresh adapters. `longest_row`: also see that rows of so many tokens are served.

        Raises:
            UnsupportedModelError: the model's own forward and the packed one disagree on a probe, or an arm adapts
                parameters of experts.
            ModelError: PEFT would not wrap what an arm is to adapt.
        """
        _refuse_experts(base, arms)
        check_peft(base, arms)
        self.arms = in_groups(arms)
        self._base = base
        self._model: PreTrainedModel = base.model
        self._body: Any = base.model.base_model
        self._head: Any = base.model.get_output_embeddings()
        names = {name for arm in arms for name in arm.module_names}
        self._own_attention = base.model.config._attn_implementation
        self._layers = inject(base, names=names)
        self._sparing_mlp: nn.Module | None = None
        self._fewer_passes = FusedOps()
        try:
            self._model.set_attn_implementation(attention.NAME)
            probe = probe_batch(base.model, device=base.device)
            self._choose_passes(probe, longest_row=longest_row)
            self._sparing_mlp = labels_only_mlp(
                self._model,
                index_M=probe.label_index_M[::2],
                hidden_states=partial(self._hidden, probe, num_arms=1),
            )
            self._bank = make_buffers(self.arms, layers=self._layers, device=base.device)
            self._bank.attach(self._layers)
            self._optimizer = PackedAdamW(self._bank)
        except BaseException:
            # Out of memory, for one: the base outlives this engine, and the next must find it as it was.
            self.close()
            raise
        self._loss_scale = LossScale(len(self.arms), enabled=base.dtype is torch.float16)
        self._diverged: set[str] = set()
        self.num_steps_done = 0
        self._gradient_checkpointing = gradient_checkpointing

    def _choose_passes(self, probe: Batch, *, longest_row: int | None) -> None:
        """Run with fewer passes where the model then agrees with itself, else without; where neither agrees, refuse it."""
        forwards = Forwards(
            model=self._model,
            body_forward=partial(self._hidden, num_arms=1),
            running=self._running,
            own_attention=self._own_attention,
        )

        def check() -> None:
            check_supported(forwards, head=self._head, batch=probe)
            if longest_row is not None:
                check_rows_are_apart(forwards, batch=probe)
                check_longest_row(forwards, num_tokens=longest_row, device=self._base.device)

        self._fewer_passes = find_fused_ops(self._model, device=self._base.device)
        try:
            check()
        except UnsupportedModelError:
            if self._fewer_passes == FusedOps():
                raise
            self._fewer_passes = FusedOps()
            check()

    @property
    def experiment_ids(self) -> tuple[str, ...]:
        """Whose adapters they are, in the order of `arms`."""
        return tuple(arm.experiment_id for arm in self.arms)

    def train(self, steps: Iterable[Sequence[Batch]], *, on_step: Callable[[StepResult], None]) -> None:
        """Take one optimizer step per item of `steps`; the item's batches are accumulated."""
        for step, batches in enumerate(steps, start=self.num_steps_done):
            if len(self._diverged) == len(self.arms):
                return
            losses = self._accumulate(batches)
            norms = self._unscaled_norms()
            trained, diverged = self._take_step(step, losses=losses, norms=norms)
            self.num_steps_done = step + 1
            on_step(
                StepResult(
                    step=step + 1,
                    num_tokens=sum(batch.num_tokens for batch in batches),
                    num_completion_tokens=sum(batch.num_completion_tokens for batch in batches),
                    arms=trained,
                    diverged=diverged,
                )
            )

    def state(self) -> EngineState:
        """A copy of all that training goes on from, on the CPU."""
        arms = tuple(
            ArmState(
                experiment_id=arm.experiment_id,
                num_steps_done=self.num_steps_done,
                is_diverged=arm.experiment_id in self._diverged,
                numbers={
                    "num_steps_taken": self._optimizer.num_steps_taken[number],
                    "loss_scale": self._loss_scale.scales[number],
                    "num_good_steps": self._loss_scale.num_good_steps[number],
                },
                tensors={
                    name: row.detach().to("cpu", copy=True)
                    for name, row in self._optimizer.rows_of(number).items()
                },
            )
            for number, arm in enumerate(self.arms)
        )
        return EngineState(engine=self.name, arms=arms, num_forward_passes=self._bank.clock.forward_pass)

    @torch.no_grad()
    def restore(self, state: EngineState) -> None:
        """Go on from there."""
        for number, arm in enumerate(state.of(self.experiment_ids).arms):
            self.num_steps_done = arm.num_steps_done
            if arm.is_diverged:
                self._diverged.add(arm.experiment_id)
            self._optimizer.num_steps_taken[number] = int(arm.numbers["num_steps_taken"])
            self._loss_scale.scales[number] = arm.numbers["loss_scale"]
            self._loss_scale.num_good_steps[number] = int(arm.numbers["num_good_steps"])
            for name, row in self._optimizer.rows_of(number).items():
                row.copy_(arm.tensors[name])
        self._bank.clock.forward_pass = state.num_forward_passes

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
        step = max(1, MAX_GENERATION_TOKENS // (longest * len(self.arms)))
        with self._ordinary_attention():
            for start in range(0, len(prompts), step):
                part = prompts[start : start + step]
                tokens = greedy(self._base, part, copies=len(self.arms), max_new_tokens=max_new_tokens)
                for number in range(len(self.arms)):
                    answers[number] += tokens[number * len(part) : (number + 1) * len(part)]
        return answers

    def save_adapter(self, arm: Arm, folder: Path) -> int:
        """Write the arm's adapter in PEFT's format; return the bytes of its weights file."""
        return save_adapter(arm, self._bank.weights_of(arm), base=self._base, folder=folder)

    def close(self) -> None:
        """Give the model its own layers and attention back."""
        eject(self._base, self._layers)
        self._model.set_attn_implementation(self._own_attention)

    def _hidden(self, batch: Batch, *, num_arms: int) -> Tensor:
        """The last hidden states of every arm, (K, N, D)."""
        ids_KN = batch.input_ids_N.expand(num_arms, -1)
        with self._running(batch):
            out = self._body(
                input_ids=ids_KN, position_ids=batch.position_ids_N.unsqueeze(0), use_cache=False
            )
        hidden_KND: Tensor = out[0]
        return hidden_KND

    def _accumulate(self, batches: Sequence[Batch]) -> Tensor:
        """Add up gradients over the micro-batches; return each arm's loss per completion token, (K,)."""
        num_tokens = sum(batch.num_completion_tokens for batch in batches)
        scale_K = torch.tensor(self._loss_scale.scales, device=self._base.device) / num_tokens
        self._bank.zero_grad()
        losses_K = torch.zeros(len(self.arms), device=self._base.device)
        with self._dropout(), activation_checkpointing(self._model, enabled=self._gradient_checkpointing):
            for batch in batches:
                self._bank.clock.forward_pass += 1
                hidden_KND = self._hidden(batch, num_arms=len(self.arms))
                hidden_KMD = hidden_KND.index_select(1, batch.label_index_M)
                loss_K = completion_loss(
                    hidden_KMD, self._head, targets_M=batch.targets_M, grad_scale_K=scale_K
                )
                with self._running(batch):
                    loss_K.sum().backward()  # type: ignore[no-untyped-call]  # torch
                losses_K += loss_K.detach()
        return losses_K / num_tokens

    def _unscaled_norms(self) -> Tensor:
        """Undo the loss scale; return each arm's gradient norm, (K,)."""
        if self._loss_scale.enabled:
            for group in self._bank.groups:
                scales = torch.tensor(
                    self._loss_scale.scales[group.start : group.stop], device=self._base.device
                )
                group.grads_GP.div_(scales.unsqueeze(1))
        return self._optimizer.grad_norms()

    def _take_step(
        self, step: int, *, losses: Tensor, norms: Tensor
    ) -> tuple[tuple[ArmStep, ...], tuple[str, ...]]:
        """Update every arm that still trains and has a finite gradient."""
        loss_values, norm_values = torch.stack([losses, norms]).tolist()
        rates = self._optimizer.learning_rates()
        active = [False] * len(self.arms)
        trained: list[ArmStep] = []
        diverged: list[str] = []
        for number, (arm, loss, norm) in enumerate(zip(self.arms, loss_values, norm_values, strict=True)):
            if step >= arm.num_steps or arm.experiment_id in self._diverged:
                continue
            active[number] = math.isfinite(loss) and math.isfinite(norm)
            if active[number]:
                self._loss_scale.succeeded(number)
            elif not (math.isfinite(loss) and self._loss_scale.overflowed(number)):
                diverged.append(arm.experiment_id)
            trained.append(_arm_step(arm, loss=loss, rate=rates[number], norm=norm))
        self._optimizer.step(grad_norm_K=norms, active=active)
        for experiment_id in diverged:
            self._set_aside(experiment_id)
        return tuple(trained), tuple(diverged)

    def _set_aside(self, experiment_id: str) -> None:
        """From here on the arm computes what the base model does, so that nothing in it is infinite."""
        self._diverged.add(experiment_id)
        arm = next(arm for arm in self.arms if arm.experiment_id == experiment_id)
        for lora_A, lora_B in self._bank.weights_of(arm).values():
            lora_A.zero_()
            lora_B.zero_()

    @contextmanager
    def _running(self, batch: Batch) -> Iterator[None]:
        """Within, the model runs on this batch, forward or backward."""
        labels = labelled_only(self._sparing_mlp, batch.label_index_M)
        with attention.rows(batch.buckets), self._fewer_passes.running(), labels:
            yield

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        self._bank.clock.active = True
        try:
            yield
        finally:
            self._bank.clock.active = False

    @contextmanager
    def _ordinary_attention(self) -> Iterator[None]:
        self._model.set_attn_implementation(self._own_attention)
        try:
            yield
        finally:
            self._model.set_attn_implementation(attention.NAME)


def _refuse_experts(base: BaseModel, arms: Sequence[Arm]) -> None:
    layers = base.targets_by_name
    parameter = next((name for arm in arms for name in arm.module_names if layers[name].is_parameter), None)
    if parameter is not None:
        raise UnsupportedModelError(f"{parameter} holds the weights of experts, which it does not adapt yet")


def _arm_step(arm: Arm, *, loss: float, rate: float, norm: float) -> ArmStep:
    return ArmStep(
        experiment_id=arm.experiment_id,
        loss=loss if math.isfinite(loss) else None,
        learning_rate=rate,
        grad_norm=norm if math.isfinite(norm) else None,
    )
