"""The adapters of a pack as flat matrices: one row per arm, one matrix per group of equal-shaped arms.

    K arms of the pack, G arms of a group, P parameters of one arm, R rank, D inputs, O outputs

A group's weights, gradients and AdamW moments are (G, P) matrices, and the model's layers use views of them. So the
optimizer and the per-arm gradient norm are a few operations on a few matrices, for any number of layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorastudy.engine.arms import TrainingArm, initial_lora_A, stream_seed
from lorastudy.engine.lora import DropoutClock, GroupDropout, LoraSlot, PackedLinear, attach
from lorastudy.engine.quantised import features


@dataclass(frozen=True, kw_only=True)
class Group:
    """Arms `start..stop` of the pack. They have equal rank, modules and dropout, so their tensors have equal shapes."""

    start: int
    stop: int
    weights_GP: Tensor
    grads_GP: Tensor
    lora_A_GRD: Mapping[str, nn.Parameter]
    """This mapping and the three below are by module name. The values are views of the flat matrices."""
    lora_B_GOR: Mapping[str, nn.Parameter]
    grad_A_GRD: Mapping[str, Tensor]
    grad_B_GOR: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class AdapterBuffers:
    """All adapters of a pack, by group. `arms` is the pack's order, in which the arms of a group are neighbours."""

    arms: tuple[TrainingArm, ...]
    groups: tuple[Group, ...]
    clock: DropoutClock

    def attach(self, layers: Mapping[str, PackedLinear]) -> None:
        """Make the model's layers serve these adapters."""
        slots = [tuple(self._slots(name)) for name in layers]
        attach(tuple(layers.values()), num_arms=len(self.arms), slots=slots)

    def zero_grad(self) -> None:
        """Set all gradients to zero. The backward pass adds to them in place."""
        for group in self.groups:
            group.grads_GP.zero_()

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
        number = self.arms.index(arm)
        group = next(group for group in self.groups if group.start <= number < group.stop)
        row = number - group.start
        return {
            name: (group.lora_A_GRD[name].detach()[row], group.lora_B_GOR[name].detach()[row])
            for name in arm.module_names
        }

    def _slots(self, module_name: str) -> list[LoraSlot]:
        return [
            LoraSlot(
                start=group.start,
                stop=group.stop,
                lora_A_GRD=group.lora_A_GRD[module_name],
                lora_B_GOR=group.lora_B_GOR[module_name],
                grad_A_GRD=group.grad_A_GRD[module_name],
                grad_B_GOR=group.grad_B_GOR[module_name],
                scaling_G11=self._scaling(group),
                dropout=self._dropout(group, module_name),
            )
            for group in self.groups
            if module_name in group.lora_A_GRD
        ]

    def _scaling(self, group: Group) -> Tensor:
        values = [arm.scaling for arm in self.arms[group.start : group.stop]]
        return torch.tensor(values, device=group.weights_GP.device).view(-1, 1, 1)

    def _dropout(self, group: Group, module_name: str) -> GroupDropout | None:
        arms = self.arms[group.start : group.stop]
        if arms[0].lora_dropout == 0:
            return None
        seeds = tuple(stream_seed("dropout", arm.seed, module_name) for arm in arms)
        return GroupDropout(seeds_G=seeds, probability=arms[0].lora_dropout, clock=self.clock)


def sorted_by_shape(arms: Sequence[TrainingArm]) -> tuple[TrainingArm, ...]:
    """The arms with arms of equal shape side by side, otherwise in the given order."""
    return tuple(sorted(arms, key=lambda arm: arm.shape))


def make_buffers(
    arms: Sequence[TrainingArm], *, layers: Mapping[str, PackedLinear], device: torch.device
) -> AdapterBuffers:
    """Fresh adapters for arms that are `sorted_by_shape`: lora_A drawn from each arm's seed, lora_B zero."""
    groups: list[Group] = []
    start = 0
    while start < len(arms):
        stop = start
        while stop < len(arms) and arms[stop].shape == arms[start].shape:
            stop += 1
        groups.append(_make_group(arms, start=start, stop=stop, layers=layers, device=device))
        start = stop
    return AdapterBuffers(arms=tuple(arms), groups=tuple(groups), clock=DropoutClock())


def _make_group(
    arms: Sequence[TrainingArm],
    *,
    start: int,
    stop: int,
    layers: Mapping[str, PackedLinear],
    device: torch.device,
) -> Group:
    first, num_arms = arms[start], stop - start
    sizes = {name: features(layers[name].base_layer) for name in first.module_names}
    num_parameters = sum(first.r * (inputs + outputs) for inputs, outputs in sizes.values())
    weights = torch.zeros(num_arms, num_parameters, device=device)
    grads = torch.zeros_like(weights)
    weights_A, weights_B = _views(weights, sizes, r=first.r)
    grads_A, grads_B = _views(grads, sizes, r=first.r)
    for name, (inputs, _) in sizes.items():
        for row, arm in enumerate(arms[start:stop]):
            weights_A[name][row].copy_(initial_lora_A(arm, module_name=name, in_features=inputs))
    return Group(
        start=start,
        stop=stop,
        weights_GP=weights,
        grads_GP=grads,
        lora_A_GRD={name: nn.Parameter(view) for name, view in weights_A.items()},
        lora_B_GOR={name: nn.Parameter(view) for name, view in weights_B.items()},
        grad_A_GRD=grads_A,
        grad_B_GOR=grads_B,
    )


def _views(
    flat_GP: Tensor, sizes: Mapping[str, tuple[int, int]], *, r: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Views of a flat matrix by module: (G, R, D) for lora_A and (G, O, R) for lora_B."""
    views_A: dict[str, Tensor] = {}
    views_B: dict[str, Tensor] = {}
    offset = 0
    for name, (inputs, outputs) in sizes.items():
        middle, end = offset + r * inputs, offset + r * (inputs + outputs)
        views_A[name] = flat_GP[:, offset:middle].view(-1, r, inputs)
        views_B[name] = flat_GP[:, middle:end].view(-1, outputs, r)
        offset = end
    return views_A, views_B
