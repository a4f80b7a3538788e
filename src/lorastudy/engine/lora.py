"""The packed linear layer: one frozen weight, many adapters.

    y_k = W x_k + s_k B_k A_k x_k        for arms k = 1..K

    K arms of the pack, G arms of one group, N tokens, D inputs, O outputs, R rank

One matmul with W serves all arms. Arms of equal shape form a group whose low-rank products are batched. `oracle.py`
computes the same in an obvious loop, and the tests compare the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorastudy.engine.matmul import arm_linear, linear
from lorastudy.engine.quantised import frozen_output, frozen_weight_OD


@dataclass(frozen=True, kw_only=True)
class LoraSlot:
    """One group's adapters in one layer. The group's arms are `start..stop` of the pack.

    The gradients are views of the group's flat matrix (`adapter_buffers`), and the backward pass adds into them
    directly. Autograd could also accumulate into them, but it would warn about views at every step.
    """

    start: int
    stop: int
    lora_A_GRD: nn.Parameter
    lora_B_GOR: nn.Parameter
    grad_A_GRD: Tensor
    grad_B_GOR: Tensor
    scaling_G11: Tensor
    """Always fp32, in every precision of the base: 4/3 in bf16 would be 0.2 % off."""
    dropout: "GroupDropout | None" = None

    def of(self, x_KND: Tensor) -> Tensor:
        """The group's part of a tensor over all arms, as a view."""
        return x_KND[self.start : self.stop]

    def factor(self, *, forward_pass: int | None) -> Tensor:
        """`s`, or with dropout `s / (1 - p)`, which keeps the mean. In fp32, like PEFT's dropout."""
        if forward_pass is None or self.dropout is None:
            return self.scaling_G11
        return self.scaling_G11 / (1.0 - self.dropout.probability)


@dataclass(kw_only=True)
class DropoutClock:
    """Numbers the forward passes of a pack. A dropout mask depends on this number, its arm and its layer."""

    forward_pass: int = 0
    active: bool = False


@dataclass(frozen=True, kw_only=True)
class GroupDropout:
    """Dropout before `lora_A`, one stream per arm and layer.

    A mask is a function of (arm's seed, layer, forward pass). The backward pass draws it again instead of keeping it.
    So no arm's draw depends on another arm, checkpoints need no masks, and recomputed activations use the same mask.
    """

    seeds_G: tuple[int, ...]
    probability: float
    clock: DropoutClock

    def mask_like(self, x_GND: Tensor, *, forward_pass: int) -> Tensor:
        """Zeros and ones in the shape of x. `LoraSlot.factor` divides by 1 - p, in fp32 for every precision of x.

        Always contiguous: the draw follows the memory layout, and x has another layout in the backward pass.
        """
        keep = 1.0 - self.probability
        mask_GND = torch.empty(x_GND.shape, dtype=x_GND.dtype, device=x_GND.device)
        for mask_ND, seed in zip(mask_GND, self.seeds_G, strict=True):
            generator = torch.Generator(x_GND.device).manual_seed(seed ^ forward_pass)
            mask_ND.bernoulli_(keep, generator=generator)
        return mask_GND


class PackedLinear(nn.Module):
    """Replaces a linear layer of the model. Without slots it gives that layer's output.

    Input and output are (arms x rows, tokens, D), with the arms' rows one after another, or (arms, N, D).
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.num_arms = 1
        self.slots: tuple[LoraSlot, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the frozen layer to all arms, and each arm's adapter to its part."""
        if not self.slots:
            frozen: Tensor = _FrozenLinear.apply(x, self)  # type: ignore[no-untyped-call]  # torch
            return frozen
        parameters = [p for slot in self.slots for p in (slot.lora_A_GRD, slot.lora_B_GOR)]
        y: Tensor = _PackedLora.apply(x, self, *parameters)  # type: ignore[no-untyped-call]  # torch
        return y


class _FrozenLinear(torch.autograd.Function):
    """W x + b without adapters; dx = W^T dy. Only the layer is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.base_layer = layer.base_layer
        return frozen_output(layer.base_layer, x, num_arms=layer.num_arms)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        return linear(dy, frozen_weight_OD(ctx.base_layer, dtype=dy.dtype).mT), None


class _PackedLora(torch.autograd.Function):
    """The packed layer and its derivatives. The frozen weight gets no gradient, so nothing is kept for it.

    With u = A x, which is thin and kept, and v = s B^T dy:
        dx = W^T dy + A^T v,    dA = v x^T,    dB = s dy u^T
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear, *parameters: Tensor) -> Tensor:
        y = frozen_output(layer.base_layer, x, num_arms=layer.num_arms)
        x_KND = x.reshape(layer.num_arms, -1, x.shape[-1])
        y_KNO = y.view(layer.num_arms, -1, y.shape[-1])
        passes = [_forward_pass(slot) for slot in layer.slots]
        thin: list[Tensor] = []
        for slot, a_GRD, b_GOR, forward_pass in zip(
            layer.slots, parameters[::2], parameters[1::2], passes, strict=True
        ):
            x_GND = _dropped(slot, slot.of(x_KND), forward_pass=forward_pass)
            u_GNR = arm_linear(x_GND, a_GRD.to(x.dtype)).mul_(slot.factor(forward_pass=forward_pass))
            slot.of(y_KNO).baddbmm_(u_GNR, b_GOR.to(x.dtype).mT)
            thin.append(u_GNR)
        ctx.layer, ctx.passes = layer, passes
        ctx.slots, ctx.num_arms = layer.slots, layer.num_arms
        ctx.save_for_backward(x, *thin, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, *rest = ctx.saved_tensors
        thin, parameters = rest[: len(ctx.slots)], rest[len(ctx.slots) :]
        dy_KNO = dy.reshape(ctx.num_arms, -1, dy.shape[-1])
        x_KND = x.reshape(ctx.num_arms, -1, x.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            weight_OD = frozen_weight_OD(ctx.layer.base_layer, dtype=dy.dtype)
            dx = linear(dy, weight_OD.mT).view(x.shape)
        for slot, u_GNR, a_GRD, b_GOR, forward_pass in zip(
            ctx.slots, thin, parameters[::2], parameters[1::2], ctx.passes, strict=True
        ):
            dy_GNO = slot.of(dy_KNO)
            v_GNR = arm_linear(dy_GNO, b_GOR.to(dy.dtype).mT).mul_(slot.factor(forward_pass=forward_pass))
            x_GND = _dropped(slot, slot.of(x_KND), forward_pass=forward_pass)
            slot.grad_A_GRD.add_(torch.bmm(v_GNR.mT, x_GND))
            # The thin factor first, and with torch: oneDNN would transpose both, which is slower than the product.
            slot.grad_B_GOR.add_(torch.bmm(u_GNR.mT, dy_GNO).mT)
            if dx is not None:
                _add_lora_dx(
                    slot.of(dx.view(x_KND.shape)), (v_GNR, a_GRD), slot=slot, forward_pass=forward_pass
                )
        return dx, None, *[None] * len(parameters)


def _forward_pass(slot: LoraSlot) -> int | None:
    """The number of the forward pass whose mask applies; None if dropout is off."""
    if slot.dropout is None or not slot.dropout.clock.active:
        return None
    return slot.dropout.clock.forward_pass


def _dropped(slot: LoraSlot, x_GND: Tensor, *, forward_pass: int | None) -> Tensor:
    if forward_pass is None or slot.dropout is None:
        return x_GND
    return x_GND * slot.dropout.mask_like(x_GND, forward_pass=forward_pass)


def _add_lora_dx(
    dx_GND: Tensor, factors: tuple[Tensor, Tensor], *, slot: LoraSlot, forward_pass: int | None
) -> None:
    v_GNR, a_GRD = factors
    if forward_pass is None or slot.dropout is None:
        dx_GND.baddbmm_(v_GNR, a_GRD.to(v_GNR.dtype))
    else:
        through_A = torch.bmm(v_GNR, a_GRD.to(v_GNR.dtype))
        dx_GND.addcmul_(through_A, slot.dropout.mask_like(dx_GND, forward_pass=forward_pass))


def attach(layers: Sequence[PackedLinear], *, num_arms: int, slots: Sequence[tuple[LoraSlot, ...]]) -> None:
    """Attach these adapters to the layers. `slots` has an entry for each layer."""
    for layer, layer_slots in zip(layers, slots, strict=True):
        layer.num_arms, layer.slots = num_arms, layer_slots
