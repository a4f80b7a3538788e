"""The packed linear layer: one frozen weight, many adapters.

    y_k = W x_k + s_k B_k A_k x_k        for arms k = 1..K

    K arms of the pack, G arms of one slot, N tokens, D inputs, O outputs, R rank

One matmul with W serves all arms. The low-rank products of a slot's arms are batched. `oracle.py` computes the same in
an obvious loop, and the tests compare the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorastudy.engine.arms import stream_seed
from lorastudy.engine.matmul import add_product, arm_linear, linear
from lorastudy.engine.quantised import frozen_output, frozen_weight_OD

#: Autograd runs a function's backward pass only if an input needs a gradient. The x of the first layer needs none.
_NEEDS_GRAD = torch.zeros((), requires_grad=True)


@dataclass(frozen=True, kw_only=True)
class LoraSlot:
    """Adapters of one layer that share their products: those of the arms `start..stop` of the pack.

    lora_B is transposed and includes s. Rows of an arm beyond its own rank are zero, and so is an arm that does not
    adapt this layer. `adapter_buffers` keeps the tensors equal to the weights, in the layer's precision.

    The gradients are fp32. The backward pass adds to them directly, and they are by s B, not by B. Autograd could also
    accumulate into them, but it would warn about views at every step.
    """

    start: int
    stop: int
    lora_A_GRD: Tensor
    scaled_B_GRO: Tensor
    grad_A_GRD: Tensor
    grad_B_GRO: Tensor
    dropout: "SlotDropout | None" = None

    def of(self, x_KND: Tensor) -> Tensor:
        """The slot's part of a tensor over all arms: the tensor itself, or a view."""
        is_whole = self.stop - self.start == x_KND.shape[0]
        return x_KND if is_whole else x_KND[self.start : self.stop]


@dataclass(kw_only=True)
class DropoutClock:
    """Numbers the forward passes of a pack. A dropout mask depends on this number, its arm and its layer."""

    forward_pass: int = 0
    active: bool = False


@dataclass(frozen=True, kw_only=True)
class SlotDropout:
    """Dropout before `lora_A`, one stream per arm and layer.

    A mask is a function of (arm's seed, layer, forward pass). The backward pass draws it again instead of keeping it.
    So no arm's draw depends on another arm, checkpoints need no masks, and recomputed activations use the same mask.
    """

    streams_G: tuple[str, ...]
    """The arm and the layer, as text. A CPU's generator uses only 32 bits of a seed, so the pass is hashed with them."""
    probabilities_G: tuple[float, ...]
    factor_G11: Tensor
    """1 / (1 - p), which keeps the mean. Always fp32, like PEFT's dropout: in bf16 it would be up to 0.2 % off."""
    clock: DropoutClock

    def mask_like(self, x_GND: Tensor, *, forward_pass: int) -> Tensor:
        """Zeros and ones in the shape of x.

        Always contiguous: the draw follows the memory layout, and x has another layout in the backward pass.
        """
        mask_GND = torch.empty(x_GND.shape, dtype=x_GND.dtype, device=x_GND.device)
        for mask_ND, stream, probability in zip(mask_GND, self.streams_G, self.probabilities_G, strict=True):
            if probability == 0:
                mask_ND.fill_(1.0)
                continue
            generator = torch.Generator(x_GND.device).manual_seed(stream_seed(stream, forward_pass))
            mask_ND.bernoulli_(1.0 - probability, generator=generator)
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
        y: Tensor = _PackedLora.apply(x, self, _NEEDS_GRAD)  # type: ignore[no-untyped-call]  # torch
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

    With C = s B, u = A x, which is thin and kept, and v = C^T dy:
        dx = W^T dy + A^T v,    dA = v x^T,    dC = dy u^T
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear, *_: Tensor) -> Tensor:
        y = frozen_output(layer.base_layer, x, num_arms=layer.num_arms)
        x_KND = x.reshape(layer.num_arms, -1, x.shape[-1])
        y_KNO = y.view(layer.num_arms, -1, y.shape[-1])
        passes = [_forward_pass(slot) for slot in layer.slots]
        thin: list[Tensor] = []
        for slot, forward_pass in zip(layer.slots, passes, strict=True):
            x_GND = _dropped(slot, slot.of(x_KND), forward_pass=forward_pass)
            u_GNR = _kept_mean(
                slot, arm_linear(x_GND, slot.lora_A_GRD.to(x.dtype)), forward_pass=forward_pass
            )
            slot.of(y_KNO).baddbmm_(u_GNR, slot.scaled_B_GRO.to(x.dtype))
            thin.append(u_GNR)
        ctx.layer, ctx.slots, ctx.num_arms, ctx.passes = layer, layer.slots, layer.num_arms, passes
        ctx.save_for_backward(x, *thin)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, *thin = ctx.saved_tensors
        dy_KNO = dy.reshape(ctx.num_arms, -1, dy.shape[-1])
        x_KND = x.reshape(ctx.num_arms, -1, x.shape[-1])
        dx = None
        if ctx.needs_input_grad[0]:
            weight_OD = frozen_weight_OD(ctx.layer.base_layer, dtype=dy.dtype)
            dx = linear(dy, weight_OD.mT).view(x.shape)
        for slot, u_GNR, forward_pass in zip(ctx.slots, thin, ctx.passes, strict=True):
            dy_GNO = slot.of(dy_KNO)
            v_GNR = _kept_mean(
                slot, arm_linear(dy_GNO, slot.scaled_B_GRO.to(dy.dtype)), forward_pass=forward_pass
            )
            x_GND = _dropped(slot, slot.of(x_KND), forward_pass=forward_pass)
            # The thin factor first, and with torch: oneDNN would transpose both, which is slower than the product.
            add_product(slot.grad_A_GRD, v_GNR.mT, times=x_GND)
            add_product(slot.grad_B_GRO, u_GNR.mT, times=dy_GNO)
            if dx is not None:
                _add_lora_dx(slot.of(dx.view(x_KND.shape)), v_GNR, slot=slot, forward_pass=forward_pass)
        return dx, None, None


def _forward_pass(slot: LoraSlot) -> int | None:
    """The number of the forward pass whose mask applies; None if dropout is off."""
    if slot.dropout is None or not slot.dropout.clock.active:
        return None
    return slot.dropout.clock.forward_pass


def _dropped(slot: LoraSlot, x_GND: Tensor, *, forward_pass: int | None) -> Tensor:
    if forward_pass is None or slot.dropout is None:
        return x_GND
    return x_GND * slot.dropout.mask_like(x_GND, forward_pass=forward_pass)


def _kept_mean(slot: LoraSlot, thin_GNR: Tensor, *, forward_pass: int | None) -> Tensor:
    """A product of dropped-out values, in place, with the factor that dropout needs."""
    if forward_pass is None or slot.dropout is None:
        return thin_GNR
    return thin_GNR.mul_(slot.dropout.factor_G11)


def _add_lora_dx(dx_GND: Tensor, v_GNR: Tensor, *, slot: LoraSlot, forward_pass: int | None) -> None:
    lora_A_GRD = slot.lora_A_GRD.to(v_GNR.dtype)
    if forward_pass is None or slot.dropout is None:
        dx_GND.baddbmm_(v_GNR, lora_A_GRD)
    else:
        through_A = torch.bmm(v_GNR, lora_A_GRD)
        dx_GND.addcmul_(through_A, slot.dropout.mask_like(dx_GND, forward_pass=forward_pass))


def attach(layers: Sequence[PackedLinear], *, num_arms: int, slots: Sequence[tuple[LoraSlot, ...]]) -> None:
    """Attach these adapters to the layers. `slots` has an entry for each layer."""
    for layer, layer_slots in zip(layers, slots, strict=True):
        layer.num_arms, layer.slots = num_arms, layer_slots
