"""The adapters of a pack in memory: fp32 vectors that the optimizer updates, and the tensors that the layers use.

    K arms of the pack, G arms of one slot, P parameters of one arm, Q of them in lora_B, R rank, D inputs, O outputs

Each arm has its own flat vectors: weights, gradients and AdamW moments. An arm's update is one operation, for any number
of layers. The layers do not use these vectors themselves. They use *slots*: the arms' tensors side by side, in the
precision of the layer, with the scale s multiplied into lora_B. A step runs in this order:

    refresh()             weights -> slots
    forward, backward     slots -> gradients of the slots
    collect_gradients()   gradients of the slots -> gradients of the arms

Arms of equal shape form a group with one slot per layer. On a GPU all arms form one group: smaller ranks are padded with
zeros to the largest, because a step's time there is the number of its kernels. Padding never changes a result: its
weights are zero, so its gradients are zero. In fp32 a group of equal arms needs no copies; its slots are views.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lorastudy.engine.arms import TrainingArm, initial_lora_A
from lorastudy.engine.lora import (
    DropoutClock,
    LoraSlot,
    PackedLinear,
    RunningLayout,
    SlotDropout,
    attach,
)
from lorastudy.engine.quantised import compute_dtype, features


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Copies that are made together, in few kernels. The lists are made once, not in every step."""

    destinations: list[Tensor] = field(default_factory=list)
    sources: list[Tensor] = field(default_factory=list)

    def add(self, destination: Tensor, source: Tensor) -> None:
        """Copy this too."""
        self.destinations.append(destination)
        self.sources.append(source)

    def run(self) -> None:
        """Make the copies."""
        if self.destinations:
            torch._foreach_copy_(self.destinations, self.sources)


@dataclass(frozen=True, kw_only=True)
class ArmVectors:
    """One arm's tensors, fp32: first the `lora_A` of every module, then every `lora_B`, transposed.

    The mappings are by module name, and their values are views of the vectors.
    """

    weights_P: Tensor
    grads_P: Tensor
    scaled_B_Q: Tensor
    """s times the lora_B part of the weights."""
    lora_A_RD: Mapping[str, Tensor]
    lora_B_RO: Mapping[str, Tensor]
    scaled_B_RO: Mapping[str, Tensor]
    grad_A_RD: Mapping[str, Tensor]
    grad_B_RO: Mapping[str, Tensor]

    @property
    def weights_B_Q(self) -> Tensor:
        """The part of the weights that is lora_B."""
        return self.weights_P[-self.scaled_B_Q.numel() :]

    @property
    def grads_B_Q(self) -> Tensor:
        """The part of the gradients that is lora_B's."""
        return self.grads_P[-self.scaled_B_Q.numel() :]


@dataclass(frozen=True, kw_only=True)
class AdapterBuffers:
    """All adapters of a pack. `arms` is the pack's order, in which arms of equal shape are neighbours."""

    arms: tuple[TrainingArm, ...]
    vectors: tuple[ArmVectors, ...]
    slots: Mapping[str, tuple[LoraSlot, ...]]
    """By module name."""
    clock: DropoutClock
    slot_grads: tuple[Tensor, ...]
    """Tensors that hold all gradients of the slots."""
    refreshed: Copies
    """Slots of their own, and the weights that they are copied from."""
    collected: Copies
    """Gradients of arms, and the slots' gradients that they are copied from."""
    is_padded: bool
    """Whether all arms form one group (`pads_ranks`)."""

    def attach(self, layers: Mapping[str, PackedLinear], *, running: RunningLayout) -> None:
        """Make the model's layers serve these adapters, on micro-batches of the running layout."""
        slots = [self.slots.get(name, ()) for name in layers]
        attach(tuple(layers.values()), num_arms=len(self.arms), slots=slots, running=running)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the slots up to date after the weights have changed."""
        scaled = [arm.scaled_B_Q for arm in self.vectors]
        torch._foreach_copy_(scaled, [arm.weights_B_Q for arm in self.vectors])
        torch._foreach_mul_(scaled, [arm.scaling for arm in self.arms])
        self.refreshed.run()

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Bring the arms' gradients up to date after the last backward pass of a step.

        The slots' gradients of lora_B are those by s B, so each is multiplied by s. A second call would multiply again.
        """
        self.collected.run()
        torch._foreach_mul_([arm.grads_B_Q for arm in self.vectors], [arm.scaling for arm in self.arms])

    def zero_grad(self) -> None:
        """Set all gradients to zero. The backward pass adds to them in place."""
        for grads in self.slot_grads:
            grads.zero_()

    @contextmanager
    def dropout_on(self) -> Iterator[None]:
        """In this context the adapters' dropout is on, as in training. Outside it is off."""
        self.clock.active = True
        try:
            yield
        finally:
            self.clock.active = False

    def weights_of(self, arm: TrainingArm) -> dict[str, tuple[Tensor, Tensor]]:
        """Module name -> (lora_A of shape (r, inputs), lora_B of shape (outputs, r)), as fp32 views."""
        vectors = self.vectors[self.arms.index(arm)]
        return {name: (vectors.lora_A_RD[name], vectors.lora_B_RO[name].mT) for name in arm.module_names}


def sorted_by_shape(arms: Sequence[TrainingArm]) -> tuple[TrainingArm, ...]:
    """The arms with arms of equal shape side by side, otherwise in the given order."""
    return tuple(sorted(arms, key=lambda arm: arm.shape))


def pads_ranks(device: torch.device) -> bool:
    """Whether all arms form one group. On a CPU the products with zeros cost more than a few more operations."""
    return device.type == "cuda"


def make_buffers(
    arms: Sequence[TrainingArm],
    *,
    layers: Mapping[str, PackedLinear],
    device: torch.device,
    dtype: torch.dtype,
    padded: bool | None = None,
) -> AdapterBuffers:
    """Fresh adapters for arms that are `sorted_by_shape`: lora_A drawn from each arm's seed, lora_B zero.

    `dtype` is the precision in which the base computes. `padded` is for tests: by default `pads_ranks` decides.
    """
    sizes = {name: features(layers[name].base_layer) for arm in arms for name in arm.module_names}
    shared = _Shared(
        sizes=sizes,
        dtypes={name: compute_dtype(layers[name].base_layer, dtype=dtype) for name in sizes},
        device=device,
        clock=DropoutClock(passes_K=[0] * len(arms)),
        refreshed=Copies(),
        collected=Copies(),
    )
    groups: list[_Group] = []
    is_padded = pads_ranks(device) if padded is None else padded
    for start, stop in _groups(arms, padded=is_padded):
        is_uniform = arms[start].shape == arms[stop - 1].shape  # the arms are sorted
        groups.append(
            (_equal_arms if is_uniform else _padded_arms)(arms[start:stop], start=start, shared=shared)
        )
    buffers = AdapterBuffers(
        arms=tuple(arms),
        vectors=tuple(vectors for group in groups for vectors in group.vectors),
        slots={name: tuple(g.slots[name] for g in groups if name in g.slots) for name in sizes},
        clock=shared.clock,
        slot_grads=tuple(grad for group in groups for grad in group.slot_grads),
        refreshed=shared.refreshed,
        collected=shared.collected,
        is_padded=is_padded,
    )
    for arm, vectors in zip(buffers.arms, buffers.vectors, strict=True):
        for name, lora_A_RD in vectors.lora_A_RD.items():
            lora_A_RD.copy_(initial_lora_A(arm, module_name=name, in_features=sizes[name][0]))
    buffers.refresh()
    return buffers


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What all groups of a pack share: each module's (inputs, outputs) and precision, the device, clock and copies."""

    sizes: Mapping[str, tuple[int, int]]
    dtypes: Mapping[str, torch.dtype]
    device: torch.device
    clock: DropoutClock
    refreshed: Copies
    collected: Copies


@dataclass(kw_only=True)
class _Group:
    """The buffers of neighbouring arms, as `AdapterBuffers` holds them."""

    vectors: list[ArmVectors]
    slots: dict[str, LoraSlot] = field(default_factory=dict)
    slot_grads: list[Tensor] = field(default_factory=list)


def _groups(arms: Sequence[TrainingArm], *, padded: bool) -> list[tuple[int, int]]:
    """The groups' first arms and the arms after their last ones."""
    if padded:
        return [(0, len(arms))]
    starts = [number for number, arm in enumerate(arms) if number == 0 or arms[number - 1].shape != arm.shape]
    return list(zip(starts, [*starts[1:], len(arms)], strict=True))


def _equal_arms(arms: Sequence[TrainingArm], *, start: int, shared: _Shared) -> _Group:
    """A group of arms of equal shape. The arms' vectors are rows of matrices, and the slots are views where they can be.

    They cannot be views of the weights in a layer whose precision is not fp32.
    """
    first = arms[0]
    sizes = {name: shared.sizes[name] for name in first.module_names}
    num_A, num_B = _num_elements(sizes, r=first.r)
    weights_GP = torch.zeros(len(arms), num_A + num_B, device=shared.device)
    grads_GP, scaled_GQ = torch.zeros_like(weights_GP), weights_GP[:, num_A:].clone()
    group = _Group(
        vectors=[
            _vectors(weights_P, grads_P, scaled_B_Q=scaled_B_Q, sizes=sizes, r=first.r)
            for weights_P, grads_P, scaled_B_Q in zip(weights_GP, grads_GP, scaled_GQ, strict=True)
        ],
        slot_grads=[grads_GP],
    )
    lora_A, lora_B = _views(weights_GP, scaled_GQ, sizes=sizes, r=first.r)
    grads_A, grads_B = _views(grads_GP, grads_GP[:, num_A:], sizes=sizes, r=first.r)
    for name in sizes:
        own = [
            _own_copy(view, dtype=shared.dtypes[name], refreshed=shared.refreshed)
            for view in (lora_A[name], lora_B[name])
        ]
        group.slots[name] = LoraSlot(
            start=start,
            stop=start + len(arms),
            lora_A_GRD=own[0],
            scaled_B_GRO=own[1],
            grad_A_GRD=grads_A[name],
            grad_B_GRO=grads_B[name],
            dropout=_dropout(arms, name, clock=shared.clock, device=shared.device),
        )
    return group


def _own_copy(view_GRD: Tensor, *, dtype: torch.dtype, refreshed: Copies) -> Tensor:
    """The view itself if it has this precision, else a copy that `refresh` updates.

    The arms are copied one by one: all together they lie differently in the two tensors, and CUDA joins copies into one
    kernel only between tensors of equal strides.
    """
    if dtype is view_GRD.dtype:
        return view_GRD
    copy_GRD = torch.zeros(view_GRD.shape, dtype=dtype, device=view_GRD.device)
    for copy_RD, view_RD in zip(copy_GRD, view_GRD, strict=True):
        refreshed.add(copy_RD, view_RD)
    return copy_GRD


def _padded_arms(arms: Sequence[TrainingArm], *, start: int, shared: _Shared) -> _Group:
    """A group of arms of any shapes. A layer's slot goes from the first arm that adapts it to the last one."""
    group = _Group(vectors=[_own_vectors(arm, shared=shared) for arm in arms])
    rows = {name: [row for row, arm in enumerate(arms) if name in arm.module_names] for name in shared.sizes}
    shapes = {
        name: [
            (found[-1] + 1 - found[0], max(arms[row].r for row in found), size) for size in shared.sizes[name]
        ]
        for name, found in rows.items()
        if found
    }
    num_elements = [math.prod(shape) for pair in shapes.values() for shape in pair]
    # One tensor, so that one kernel sets all gradients to zero.
    grads = torch.zeros(sum(num_elements), device=shared.device)
    parts = iter(torch.split(grads, num_elements))
    group.slot_grads.append(grads)
    for name, (shape_A, shape_B) in shapes.items():
        first, last = rows[name][0], rows[name][-1]
        slot = LoraSlot(
            start=start + first,
            stop=start + last + 1,
            lora_A_GRD=torch.zeros(shape_A, dtype=shared.dtypes[name], device=shared.device),
            scaled_B_GRO=torch.zeros(shape_B, dtype=shared.dtypes[name], device=shared.device),
            grad_A_GRD=next(parts).view(shape_A),
            grad_B_GRO=next(parts).view(shape_B),
            dropout=_dropout(arms[first : last + 1], name, clock=shared.clock, device=shared.device),
        )
        group.slots[name] = slot
        for row in rows[name]:
            vectors, place = group.vectors[row], (row - first, slice(0, arms[row].r))
            shared.refreshed.add(slot.lora_A_GRD[place], vectors.lora_A_RD[name])
            shared.refreshed.add(slot.scaled_B_GRO[place], vectors.scaled_B_RO[name])
            shared.collected.add(vectors.grad_A_RD[name], slot.grad_A_GRD[place])
            shared.collected.add(vectors.grad_B_RO[name], slot.grad_B_GRO[place])
    return group


def _own_vectors(arm: TrainingArm, *, shared: _Shared) -> ArmVectors:
    sizes = {name: shared.sizes[name] for name in arm.module_names}
    num_A, num_B = _num_elements(sizes, r=arm.r)
    weights_P = torch.zeros(num_A + num_B, device=shared.device)
    return _vectors(
        weights_P,
        torch.zeros_like(weights_P),
        scaled_B_Q=torch.zeros(num_B, device=shared.device),
        sizes=sizes,
        r=arm.r,
    )


def _num_elements(sizes: Mapping[str, tuple[int, int]], *, r: int) -> tuple[int, int]:
    """Of all lora_A and of all lora_B of an arm."""
    inputs, outputs = zip(*sizes.values(), strict=True)
    return r * sum(inputs), r * sum(outputs)


def _vectors(
    weights_P: Tensor, grads_P: Tensor, *, scaled_B_Q: Tensor, sizes: Mapping[str, tuple[int, int]], r: int
) -> ArmVectors:
    num_B = scaled_B_Q.numel()
    lora_A_RD, lora_B_RO = _views(weights_P, weights_P[-num_B:], sizes=sizes, r=r)
    grad_A_RD, grad_B_RO = _views(grads_P, grads_P[-num_B:], sizes=sizes, r=r)
    return ArmVectors(
        weights_P=weights_P,
        grads_P=grads_P,
        scaled_B_Q=scaled_B_Q,
        lora_A_RD=lora_A_RD,
        lora_B_RO=lora_B_RO,
        scaled_B_RO=_views(weights_P, scaled_B_Q, sizes=sizes, r=r)[1],
        grad_A_RD=grad_A_RD,
        grad_B_RO=grad_B_RO,
    )


def _views(
    part_A: Tensor, part_B: Tensor, *, sizes: Mapping[str, tuple[int, int]], r: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Views by module, (..., R, D) for lora_A and (..., R, O) for lora_B, of vectors or of matrices with a row per arm."""
    views_A: dict[str, Tensor] = {}
    views_B: dict[str, Tensor] = {}
    offset_A = offset_B = 0
    for name, (inputs, outputs) in sizes.items():
        views_A[name] = part_A.narrow(-1, offset_A, r * inputs).view(*part_A.shape[:-1], r, inputs)
        views_B[name] = part_B.narrow(-1, offset_B, r * outputs).view(*part_B.shape[:-1], r, outputs)
        offset_A, offset_B = offset_A + r * inputs, offset_B + r * outputs
    return views_A, views_B


def _dropout(
    arms: Sequence[TrainingArm], module_name: str, *, clock: DropoutClock, device: torch.device
) -> SlotDropout | None:
    """The dropout of a slot's arms; None if no arm has any."""
    probabilities = tuple(arm.lora_dropout for arm in arms)
    if not any(probabilities):
        return None
    return SlotDropout(
        streams_G=tuple(f"dropout of {arm.seed} in {module_name}" for arm in arms),
        probabilities_G=probabilities,
        factor_G11=torch.tensor([1.0 / (1.0 - p) for p in probabilities], device=device).view(-1, 1, 1),
        clock=clock,
    )
