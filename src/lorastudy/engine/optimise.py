"""AdamW, clipping and schedules for many arms at once. Every arm has its own rates.

    G arms of a group, P parameters of one arm

The update of every arm equals that of transformers' Trainer: clip to `max_grad_norm` (torch.nn.utils.clip_grad_norm_),
AdamW (torch.optim.AdamW, arXiv 1711.05101), learning rate schedule (transformers.get_scheduler).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorastudy.engine.adapter_buffers import AdapterBuffers, Group
from lorastudy.engine.arms import TrainingArm


def schedule_factor(name: str, step: int, *, num_warmup_steps: int, num_steps: int) -> float:
    """The factor on the peak learning rate in a step, counted from 0. Equals transformers' schedulers."""
    if step < num_warmup_steps and name != "constant":
        return step / max(1, num_warmup_steps)
    num_falling_steps = max(1, num_steps - num_warmup_steps)
    if name == "linear":
        return max(0.0, (num_steps - step) / num_falling_steps)
    if name == "cosine":
        progress = (step - num_warmup_steps) / num_falling_steps
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    assert name in {"constant", "constant_with_warmup"}, name
    return 1.0


def learning_rate(arm: TrainingArm, *, step: int) -> float:
    """The arm's learning rate in a step, counted from 0."""
    factor = schedule_factor(
        arm.lr_scheduler_type, step, num_warmup_steps=arm.num_warmup_steps, num_steps=arm.num_steps
    )
    return arm.learning_rate * factor


@dataclass(kw_only=True)
class GroupState:
    """AdamW's moments of one group."""

    exp_avg_GP: Tensor
    exp_avg_sq_GP: Tensor


class PackedAdamW:
    """The optimizer of a whole pack. `num_steps_taken` drives each arm's schedule and bias correction.

    It counts the pack's steps, except in fp16: a step whose gradient overflows is skipped and does not count.
    """

    def __init__(self, buffers: AdapterBuffers) -> None:
        self.buffers = buffers
        self.num_steps_taken = [0] * len(buffers.arms)
        self.states = [
            GroupState(
                exp_avg_GP=torch.zeros_like(group.weights_GP),
                exp_avg_sq_GP=torch.zeros_like(group.weights_GP),
            )
            for group in buffers.groups
        ]

    @torch.no_grad()
    def grad_norms(self) -> Tensor:
        """The norm of each arm's whole gradient, in the pack's order, fp32."""
        return torch.cat([group.grads_GP.norm(dim=1) for group in self.buffers.groups])

    @torch.no_grad()
    def step(self, *, grad_norm_K: Tensor, active: Sequence[bool]) -> None:
        """Clip and update the active arms. The others keep their weights and moments bit for bit."""
        for group, state in zip(self.buffers.groups, self.states, strict=True):
            self._step_group(group, state, grad_norm_K=grad_norm_K, active=active)
        for number, is_active in enumerate(active):
            self.num_steps_taken[number] += is_active

    def rows_of(self, number: int) -> dict[str, Tensor]:
        """All tensors of one arm that a step changes, by name: views of one row of its group's matrices."""
        groups = zip(self.buffers.groups, self.states, strict=True)
        group, state = next(pair for pair in groups if pair[0].start <= number < pair[0].stop)
        row = number - group.start
        return {
            "weights": group.weights_GP[row],
            "exp_avg": state.exp_avg_GP[row],
            "exp_avg_sq": state.exp_avg_sq_GP[row],
        }

    def learning_rates(self) -> list[float]:
        """Each arm's learning rate in the next step."""
        return [
            learning_rate(arm, step=taken)
            for arm, taken in zip(self.buffers.arms, self.num_steps_taken, strict=True)
        ]

    def _step_group(
        self, group: Group, state: GroupState, *, grad_norm_K: Tensor, active: Sequence[bool]
    ) -> None:
        num_arms = group.stop - group.start
        if all(active[group.start : group.stop]):
            parts = [slice(0, num_arms)]
        else:
            parts = [slice(row, row + 1) for row in range(num_arms) if active[group.start + row]]
        for part in parts:
            in_pack = slice(group.start + part.start, group.start + part.stop)
            _adamw(
                (group.weights_GP[part], group.grads_GP[part], state.exp_avg_GP[part], state.exp_avg_sq_GP[part]),
                self.buffers.arms[in_pack],
                steps=self.num_steps_taken[in_pack],
                grad_norm_G=grad_norm_K[in_pack],
            )  # fmt: skip


def _adamw(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    arms: Sequence[TrainingArm],
    *,
    steps: Sequence[int],
    grad_norm_G: Tensor,
) -> None:
    """Take one AdamW step in place. Hyperparameters are columns with one row per arm; `steps` counts earlier steps."""
    weights, grads, exp_avg, exp_avg_sq = tensors

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=weights.device).unsqueeze(1)

    rates = [learning_rate(arm, step=step) for arm, step in zip(arms, steps, strict=True)]
    correction1 = [1 - arm.adam_beta1 ** (step + 1) for arm, step in zip(arms, steps, strict=True)]
    correction2 = [1 - arm.adam_beta2 ** (step + 1) for arm, step in zip(arms, steps, strict=True)]
    beta2 = [arm.adam_beta2 for arm in arms]
    clip = [arm.max_grad_norm if arm.max_grad_norm > 0 else math.inf for arm in arms]

    grads.mul_((column(clip) / (grad_norm_G.unsqueeze(1) + 1e-6)).clamp_(max=1.0))
    weights.mul_(column([1 - rate * arm.weight_decay for rate, arm in zip(rates, arms, strict=True)]))
    exp_avg.lerp_(grads, column([1 - arm.adam_beta1 for arm in arms]))
    exp_avg_sq.mul_(column(beta2)).add_(grads.square().mul_(column([1 - beta for beta in beta2])))
    denominator = exp_avg_sq.sqrt().div_(column([math.sqrt(value) for value in correction2]))
    denominator.add_(column([arm.adam_epsilon for arm in arms]))
    step_size = [rate / value for rate, value in zip(rates, correction1, strict=True)]
    weights.sub_(denominator.reciprocal_().mul_(exp_avg).mul_(column(step_size)))


#: GradScaler's default. The growth interval below is also GradScaler's.
INITIAL_SCALE = 2.0**16

#: Below this, scaling does not help: the gradient overflows half precision even unscaled.
SMALLEST_SCALE = 1.0


class LossScale:
    """Per-arm dynamic loss scaling for fp16, as torch.amp.GradScaler does for one model.

    Without scaling, small gradients round to zero in half precision. If an arm's scaled gradient overflows, the arm
    skips that step and halves its scale. It has diverged when the scale falls below `SMALLEST_SCALE`. In other
    precisions every scale is 1, and an arm whose gradient is not finite has diverged.
    """

    GROWTH_INTERVAL = 2000

    def __init__(self, num_arms: int, *, enabled: bool) -> None:
        self.enabled = enabled
        self.scales = [INITIAL_SCALE if enabled else 1.0] * num_arms
        self.num_good_steps = [0] * num_arms

    def overflowed(self, number: int) -> bool:
        """Lower the scale after a gradient that was not finite; True if the arm may try again."""
        if not self.enabled:
            return False
        self.num_good_steps[number] = 0
        self.scales[number] /= 2
        return self.scales[number] >= SMALLEST_SCALE

    def succeeded(self, number: int) -> None:
        """Count a step that was taken; raise the scale after many good ones."""
        self.num_good_steps[number] += 1
        if self.enabled and self.num_good_steps[number] % self.GROWTH_INTERVAL == 0:
            self.scales[number] *= 2
