"""AdamW, clipping and schedules for many arms at once. Every arm has its own rates.

    K arms of the pack, P parameters of one arm

The update of every arm equals that of transformers' Trainer: clip to `max_grad_norm` (torch.nn.utils.clip_grad_norm_),
AdamW (torch.optim.AdamW, arXiv 1711.05101), learning rate schedule (`suite.schedules`, as transformers.get_scheduler). With LoRA+ the rate of
lora_B is a multiple of that of lora_A, as in peft.optimizers.create_loraplus_optimizer.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lorastudy.engine.adapter_buffers import AdapterBuffers
from lorastudy.engine.arms import TrainingArm


class PackedAdamW:
    """The optimizer of a whole pack: torch's fused AdamW, one call per arm.

    Nothing is read from the device within a step. What an arm needs from its gradient (the clipping factor, and whether
    the gradient is finite) stays there as tensors.
    """

    def __init__(self, buffers: AdapterBuffers) -> None:
        self.buffers = buffers
        self.num_steps_taken = [0] * len(buffers.arms)
        """Drives each arm's schedule. In fp16 a step whose gradient overflows is skipped and does not count."""
        self.moments = [
            (torch.zeros_like(arm.weights_P), torch.zeros_like(arm.weights_P)) for arm in buffers.vectors
        ]
        device = buffers.vectors[0].weights_P.device
        self._num_steps_K = torch.zeros(len(buffers.arms), device=device)  # for the bias correction
        self._max_norm_K = torch.tensor([_max_norm(arm) for arm in buffers.arms], device=device)

    @torch.no_grad()
    def grad_norms(self) -> Tensor:
        """The norm of each arm's whole gradient, in the pack's order, fp32."""
        return torch.stack(torch._foreach_norm([arm.grads_P for arm in self.buffers.vectors]))

    @torch.no_grad()
    def step(
        self,
        *,
        grad_norm_K: Tensor,
        active: Sequence[bool],
        is_finite_K: Tensor,
        loss_scale_K: Tensor,
    ) -> None:
        """Clip and update the active arms whose gradient is finite. The others keep weights and moments bit for bit.

        `grad_norm_K` is the norm without the loss scale; the gradients include it. Afterwards call `count_steps`.
        """
        is_taken_K = is_finite_K.float()
        is_skipped_K = 1.0 - is_taken_K
        divisor_K = ((grad_norm_K + 1e-6) / self._max_norm_K).clamp_(min=1.0) * loss_scale_K
        numbers = [number for number, is_active in enumerate(active) if is_active]
        torch._foreach_add_(
            [self._num_steps_K[number] for number in numbers], [is_taken_K[number] for number in numbers]
        )
        rates = self.learning_rates()
        for number in numbers:
            arm = self.buffers.arms[number]
            for factor, (weights, grads, exp_avg, exp_avg_sq) in self._parts(number):
                torch._fused_adamw_(
                    [weights], [grads], [exp_avg], [exp_avg_sq], [], [self._num_steps_K[number]],
                    lr=factor * rates[number], beta1=arm.adam_beta1, beta2=arm.adam_beta2,
                    weight_decay=arm.weight_decay, eps=arm.adam_epsilon, amsgrad=False, maximize=False,
                    grad_scale=divisor_K[number], found_inf=is_skipped_K[number],
                )  # fmt: skip

    def _parts(self, number: int) -> list[tuple[float, tuple[Tensor, ...]]]:
        """The arm's weights, gradients and moments in parts, each with the factor on the arm's rate.

        There is one part, or with LoRA+ two: lora_A at the rate, and lora_B at the rate times `loraplus_lr_ratio`.
        """
        vectors = self.buffers.vectors[number]
        tensors = (vectors.weights_P, vectors.grads_P, *self.moments[number])
        ratio = self.buffers.arms[number].method.loraplus_lr_ratio
        if ratio is None:
            return [(1.0, tensors)]
        num_B = vectors.scaled_B_Q.numel()
        return [
            (1.0, tuple(tensor[:-num_B] for tensor in tensors)),
            (ratio, tuple(tensor[-num_B:] for tensor in tensors)),
        ]

    def count_steps(self, taken: Sequence[bool]) -> None:
        """Count the step for the arms that took it."""
        for number, is_taken in enumerate(taken):
            self.num_steps_taken[number] += is_taken

    def tensors_of(self, number: int) -> dict[str, Tensor]:
        """All tensors of one arm that a step changes, by name: its flat fp32 vectors."""
        exp_avg, exp_avg_sq = self.moments[number]
        return {
            "weights": self.buffers.vectors[number].weights_P,
            "exp_avg": exp_avg,
            "exp_avg_sq": exp_avg_sq,
        }

    def restore_count(self, number: int, num_steps_taken: int) -> None:
        """Go on from that many steps of the arm."""
        self.num_steps_taken[number] = num_steps_taken
        self._num_steps_K[number] = num_steps_taken

    def learning_rates(self) -> list[float]:
        """Each arm's learning rate in the next step."""
        return [
            arm.schedule.rate(taken)
            for arm, taken in zip(self.buffers.arms, self.num_steps_taken, strict=True)
        ]


def _max_norm(arm: TrainingArm) -> float:
    return arm.max_grad_norm if arm.max_grad_norm > 0 else math.inf


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

    def __init__(self, num_arms: int, *, enabled: bool, device: torch.device) -> None:
        self.enabled = enabled
        self.scales = [INITIAL_SCALE if enabled else 1.0] * num_arms
        self.scales_K = torch.tensor(self.scales, device=device)
        """The same numbers on the device, where a step reads them."""
        self.num_good_steps = [0] * num_arms

    def overflowed(self, number: int) -> bool:
        """Lower the scale after a gradient that was not finite; True if the arm may try again."""
        if not self.enabled:
            return False
        self.restore(number, scale=self.scales[number] / 2, num_good_steps=0)
        return self.scales[number] >= SMALLEST_SCALE

    def succeeded(self, number: int) -> None:
        """Count a step that was taken; raise the scale after many good ones."""
        self.num_good_steps[number] += 1
        if self.enabled and self.num_good_steps[number] % self.GROWTH_INTERVAL == 0:
            self.restore(number, scale=self.scales[number] * 2, num_good_steps=self.num_good_steps[number])

    def restore(self, number: int, *, scale: float, num_good_steps: int) -> None:
        """Go on with this scale after this many good steps."""
        self.scales[number], self.num_good_steps[number] = scale, num_good_steps
        self.scales_K[number] = scale
