"""The packed linear layer: one frozen weight, many adapters.

    y_k = W x_k + s_k B_k A_k x_k        for arms k = 1..K

    K arms of the pack, G arms of one slot, N tokens, D inputs, O outputs, R rank

One matmul with W serves all arms. The low-rank products of a slot's arms are batched. `oracle.py` computes the same in
an obvious loop, and the tests compare the two.

Arms may have rows of their own (`arm_layout.py`): T tokens of all arms in one sequence. Then W still has one matmul, and
the low-rank products are batched over neighbouring arms with the same rows, or over padded spans.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorastudy.engine.arm_layout import ArmLayout, Padding
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


@dataclass(kw_only=True)
class DropoutClock:
    """Numbers the forward passes of each arm. A dropout mask depends on this number, its arm and its layer.

    Only a pass with rows of the arm counts, so an arm's masks do not depend on the other arms of its pack.
    """

    passes_K: list[int]
    active: bool = False

    def tick(self, layout: ArmLayout | None) -> None:
        """Count a forward pass of the arms that have rows in it."""
        for number in range(len(self.passes_K)):
            self.passes_K[number] += layout is None or layout.tokens.sizes_K[number] > 0


@dataclass(kw_only=True)
class RunningLayout:
    """The layout of the micro-batch that runs now, for all layers of a model. None if all arms see the same rows.

    Not a context variable: with activation checkpointing the layers run again in the backward pass, which on CUDA is in
    autograd's own thread.
    """

    layout: ArmLayout | None = None

    @contextmanager
    def set_to(self, layout: ArmLayout | None) -> Iterator[None]:
        """In this context the layers run on such a micro-batch."""
        before, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = before


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

    def part(self, own: slice) -> "SlotDropout":
        """The dropout of some of the arms."""
        return replace(
            self,
            streams_G=self.streams_G[own],
            probabilities_G=self.probabilities_G[own],
            factor_G11=self.factor_G11[own],
        )

    def mask_like(
        self, x_GND: Tensor, *, passes_G: Sequence[int], sizes_G: Sequence[int] | None = None
    ) -> Tensor:
        """Zeros and ones in the shape of x. `passes_G` are the arms' forward passes.

        Always contiguous: the draw follows the memory layout, and x has another layout in the backward pass. With
        `sizes_G` only so many tokens of each arm are drawn, as they are without padding, and the others are zero.
        """
        make = torch.empty if sizes_G is None else torch.zeros
        mask_GND = make(x_GND.shape, dtype=x_GND.dtype, device=x_GND.device)
        for number, (probability, forward_pass) in enumerate(
            zip(self.probabilities_G, passes_G, strict=True)
        ):
            mask_ND = mask_GND[number] if sizes_G is None else mask_GND[number, : sizes_G[number]]
            if probability == 0:
                mask_ND.fill_(1.0)
                continue
            seed = stream_seed(self.streams_G[number], forward_pass)
            mask_ND.bernoulli_(1.0 - probability, generator=torch.Generator(x_GND.device).manual_seed(seed))
        return mask_GND


@dataclass(frozen=True, kw_only=True)
class _Arms:
    """Some neighbouring arms of a slot, `start..stop` of the pack. The tensors are views of the slot's.

    An arm alone has no first dimension: plain products of matrices cost the host less than batched ones.
    """

    start: int
    stop: int
    lora_A_GRD: Tensor
    scaled_B_GRO: Tensor
    grad_A_GRD: Tensor
    grad_B_GRO: Tensor
    dropout: SlotDropout | None

    @classmethod
    def of(cls, slot: LoraSlot, *, start: int, stop: int) -> "_Arms":
        """Those arms of the slot. A whole slot keeps its first dimension."""
        is_whole = (start, stop) == (slot.start, slot.stop)
        is_alone = stop - start == 1 and not is_whole
        own = slice(start - slot.start, stop - slot.start)
        place = start - slot.start if is_alone else own
        return cls(
            start=start,
            stop=stop,
            lora_A_GRD=slot.lora_A_GRD[place],
            scaled_B_GRO=slot.scaled_B_GRO[place],
            grad_A_GRD=slot.grad_A_GRD[place],
            grad_B_GRO=slot.grad_B_GRO[place],
            dropout=None if slot.dropout is None else slot.dropout.part(own),
        )

    def shaped(self, x_SD: Tensor) -> Tensor:
        """The tokens of these arms, arm by arm, as a view."""
        return x_SD if self.lora_A_GRD.dim() == 2 else x_SD.view(self.stop - self.start, -1, x_SD.shape[1])

    def passes(self) -> tuple[int, ...] | None:
        """The forward passes whose dropout masks apply; None if dropout is off."""
        if self.dropout is None or not self.dropout.clock.active:
            return None
        return tuple(self.dropout.clock.passes_K[self.start : self.stop])


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """Tokens of all arms cut into those of neighbouring arms that share products."""

    arms: tuple[_Arms, ...]
    sizes: list[int]
    """The tokens of consecutive pieces, which are all tokens."""
    pieces: list[int]
    """The piece of each of `arms`. Other pieces belong to arms that do not adapt the layer."""
    paddings: tuple[Padding, ...] | None
    passes: list[tuple[int, ...] | None]

    def views(self, x_TD: Tensor) -> list[Tensor]:
        """The tokens of each of `arms`, (G, N, D) or (N, D); (S, D) if they are to be padded."""
        pieces = torch.split(x_TD, self.sizes)
        own = [pieces[piece] for piece in self.pieces]
        if self.paddings is not None:
            return own
        return [arms.shaped(x_SD) for arms, x_SD in zip(self.arms, own, strict=True)]

    def regular(self, views: Sequence[Tensor]) -> Sequence[Tensor]:
        """The same tokens for products: the views themselves, or copies with padding."""
        if self.paddings is None:
            return views
        return [padding.padded(x_SD) for padding, x_SD in zip(self.paddings, views, strict=True)]

    def add(self, place: int, y: Tensor, *, more_GNO: Tensor) -> None:
        """Add to a view of `arms[place]`, in place."""
        y += more_GNO if self.paddings is None else self.paddings[place].spans(more_GNO)

    def add_product(self, place: int, y: Tensor, *, thin_GNR: Tensor, weight_GRO: Tensor) -> None:
        """Add a product with the weights of `arms[place]` to a view, in place."""
        if self.paddings is not None:
            self.add(place, y, more_GNO=torch.bmm(thin_GNR, weight_GRO))
        elif y.dim() == 2:
            y.addmm_(thin_GNR, weight_GRO)
        else:
            y.baddbmm_(thin_GNR, weight_GRO)

    def mask_like(self, place: int, x_GND: Tensor) -> Tensor | None:
        """The dropout mask of `arms[place]`; None if dropout is off."""
        dropout, passes_G = self.arms[place].dropout, self.passes[place]
        if dropout is None or passes_G is None:
            return None
        if x_GND.dim() == 2:
            return dropout.mask_like(x_GND.unsqueeze(0), passes_G=passes_G)[0]
        sizes_G = None if self.paddings is None else self.paddings[place].sizes_G
        return dropout.mask_like(x_GND, passes_G=passes_G, sizes_G=sizes_G)

    def dropped(self, place: int, x_GND: Tensor) -> Tensor:
        """The values after dropout, without the factor that keeps their mean."""
        mask_GND = self.mask_like(place, x_GND)
        return x_GND if mask_GND is None else x_GND * mask_GND

    def kept_mean(self, place: int, thin_GNR: Tensor) -> Tensor:
        """A product of dropped-out values, in place, with the factor that dropout needs."""
        dropout = self.arms[place].dropout
        if dropout is None or self.passes[place] is None:
            return thin_GNR
        factor = dropout.factor_G11
        return thin_GNR.mul_(factor if thin_GNR.dim() == 3 else factor[0])


_Runs = tuple[tuple[int, int], ...] | None


class PackedLinear(nn.Module):
    """Replaces a linear layer of the model. Without slots it gives that layer's output.

    Input and output are (arms x rows, tokens, D), with the arms' rows one after another, or (arms, N, D); or (1, T, D)
    if arms have rows of their own.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.num_arms = 1
        self.slots: tuple[LoraSlot, ...] = ()
        self.running = RunningLayout()
        self._arms_of_runs: dict[_Runs, tuple[_Arms, ...]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Apply the frozen layer to all arms, and each arm's adapter to its part."""
        if not self.slots:
            frozen: Tensor = _FrozenLinear.apply(x, self)  # type: ignore[no-untyped-call]  # torch
            return frozen
        y: Tensor = _PackedLora.apply(x, self, _NEEDS_GRAD)  # type: ignore[no-untyped-call]  # torch
        return y

    def attach(self, slots: tuple[LoraSlot, ...], *, num_arms: int, running: RunningLayout) -> None:
        """Serve these adapters."""
        self.num_arms, self.slots, self.running = num_arms, slots, running
        self._arms_of_runs.clear()

    def frozen(self, x: Tensor) -> Tensor:
        """The frozen layer's output for all arms."""
        layout = self.running.layout
        sizes_K = None if layout is None else layout.spans_of(x.numel() // x.shape[-1]).sizes_K
        return frozen_output(self.base_layer, x, num_arms=self.num_arms, sizes_K=sizes_K)

    def cut(self, *, num_tokens: int) -> _Cut:
        """The cut of so many tokens of all arms."""
        layout = self.running.layout
        if layout is None:
            size = num_tokens // self.num_arms
            return _cut(self._arms(None), bounds=range(0, num_tokens + 1, size), paddings=None)
        spans = layout.spans_of(num_tokens)
        arms = self._arms(None if layout.is_padded else layout.runs)
        own = tuple(each for each in arms if spans.bounds[each.start] < spans.bounds[each.stop])
        paddings = tuple(spans.padding(each.start, each.stop) for each in own) if layout.is_padded else None
        return _cut(own, bounds=spans.bounds, paddings=paddings)

    def _arms(self, runs: _Runs) -> tuple[_Arms, ...]:
        """The arms of each slot; with runs, cut at their ends, so that arms that share products have the same rows."""
        if runs not in self._arms_of_runs:
            self._arms_of_runs[runs] = tuple(
                _Arms.of(slot, start=max(start, slot.start), stop=min(stop, slot.stop))
                for slot in self.slots
                for start, stop in (runs or ((0, self.num_arms),))
                if start < slot.stop and stop > slot.start
            )
        return self._arms_of_runs[runs]


def _cut(arms: tuple[_Arms, ...], *, bounds: Sequence[int], paddings: tuple[Padding, ...] | None) -> _Cut:
    """The cut at the first and last tokens of these arms. `bounds` are the first tokens of all arms, and the end."""
    sizes: list[int] = []
    pieces: list[int] = []
    done = 0
    for each in arms:
        first, last = bounds[each.start], bounds[each.stop]
        if first > done:
            sizes.append(first - done)
        pieces.append(len(sizes))
        sizes.append(last - first)
        done = last
    if done < bounds[-1]:
        sizes.append(bounds[-1] - done)
    return _Cut(
        arms=arms,
        sizes=sizes,
        pieces=pieces,
        paddings=paddings,
        passes=[each.passes() for each in arms],
    )


class _FrozenLinear(torch.autograd.Function):
    """W x + b without adapters; dx = W^T dy. Only the layer is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.base_layer = layer.base_layer
        return layer.frozen(x)

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
        y = layer.frozen(x)
        x_TD, y_TO = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        cut = layer.cut(num_tokens=len(x_TD))
        thin: list[Tensor] = []
        views = zip(cut.arms, cut.regular(cut.views(x_TD)), cut.views(y_TO), strict=True)
        for place, (arms, x_GND, y_view) in enumerate(views):
            kept_GND = cut.dropped(place, x_GND)
            u_GNR = cut.kept_mean(place, arm_linear(kept_GND, arms.lora_A_GRD.to(x.dtype)))
            cut.add_product(place, y_view, thin_GNR=u_GNR, weight_GRO=arms.scaled_B_GRO.to(x.dtype))
            thin.append(u_GNR)
        ctx.layer, ctx.cut = layer, cut
        ctx.save_for_backward(x, *thin)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        x, *thin = ctx.saved_tensors
        cut: _Cut = ctx.cut
        dx = None
        if ctx.needs_input_grad[0]:
            weight_OD = frozen_weight_OD(ctx.layer.base_layer, dtype=dy.dtype)
            dx = linear(dy, weight_OD.mT).view(x.shape)
        dys = cut.regular(cut.views(dy.reshape(-1, dy.shape[-1])))
        xs = cut.regular(cut.views(x.reshape(-1, x.shape[-1])))
        dxs = [None] * len(xs) if dx is None else cut.views(dx.view(-1, x.shape[-1]))
        for place, (arms, dy_GNO, x_GND, u_GNR, dx_view) in enumerate(
            zip(cut.arms, dys, xs, thin, dxs, strict=True)
        ):
            v_GNR = cut.kept_mean(place, arm_linear(dy_GNO, arms.scaled_B_GRO.to(dy.dtype)))
            # The thin factor first, and with torch: oneDNN would transpose both, which is slower than the product.
            add_product(arms.grad_A_GRD, v_GNR.mT, times=cut.dropped(place, x_GND))
            add_product(arms.grad_B_GRO, u_GNR.mT, times=dy_GNO)
            if dx_view is not None:
                _add_lora_dx(cut, place, dx_view=dx_view, v_GNR=v_GNR)
        return dx, None, None


def _add_lora_dx(cut: _Cut, place: int, *, dx_view: Tensor, v_GNR: Tensor) -> None:
    lora_A_GRD = cut.arms[place].lora_A_GRD.to(v_GNR.dtype)
    if cut.passes[place] is None:
        cut.add_product(place, dx_view, thin_GNR=v_GNR, weight_GRO=lora_A_GRD)
        return
    through_A_GND = torch.matmul(v_GNR, lora_A_GRD)
    mask_GND = cut.mask_like(place, through_A_GND)
    assert mask_GND is not None
    if cut.paddings is None:
        dx_view.addcmul_(through_A_GND, mask_GND)
    else:
        cut.add(place, dx_view, more_GNO=through_A_GND.mul_(mask_GND))


def attach(
    layers: Sequence[PackedLinear],
    *,
    num_arms: int,
    slots: Sequence[tuple[LoraSlot, ...]],
    running: RunningLayout | None = None,
) -> None:
    """Attach these adapters to the layers. `slots` has an entry for each layer."""
    running = running or RunningLayout()
    for layer, layer_slots in zip(layers, slots, strict=True):
        layer.attach(layer_slots, num_arms=num_arms, running=running)
