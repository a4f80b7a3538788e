"""The optimizers of the reference engine: made as transformers' Trainer makes them, and their states saved and restored.

A state is kept per parameter, so an arm of a pack goes on from its own. Each optimizer names its tensors itself; what they
hold follows from these tensors and the number of steps taken.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Adafactor

from lorastudy.engine.arms import TrainingArm
from lorastudy.engine.quantised import adamw_of_bitsandbytes
from lorastudy.errors import ModelError
from lorastudy.suite.methods import ON_GPU_ONLY, optimizer_problem

#: Tensors that every state of an optimizer shares, or that it computes anew in every step.
_NOT_KEPT = frozenset({"step", "RMS", "qmap1", "qmap2"})

#: Numbers of a tensor from which bitsandbytes pages its state.
_MIN_PAGED = 100_000


def optimizer_of(arm: TrainingArm, *, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """The class of the arm's optimizer, and its arguments besides parameters, rate and weight decay.

    Raises:
        ModelError: the optimizer has no kernels for the device.
    """
    optim = arm.method.optim
    adam: dict[str, Any] = {"betas": (arm.adam_beta1, arm.adam_beta2), "eps": arm.adam_epsilon}
    if optim == "sgd":
        return torch.optim.SGD, {}
    if optim == "adafactor":
        return Adafactor, {"scale_parameter": False, "relative_step": False}
    if optim not in ON_GPU_ONLY:
        return torch.optim.AdamW, adam
    if device.type == "cpu":
        raise ModelError(optimizer_problem(optim))
    return adamw_of_bitsandbytes(), {**adam, "optim_bits": 8, "is_paged": optim.startswith("paged")}


def state_keys(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> list[Any]:
    """The keys of the parameters' states in an optimizer: the parameters; in LoRA-FA's, the names of layers."""
    names = {
        id(parameter): name[: name.find("lora")] + "lora"
        for group in optimizer.param_groups
        for parameter, name in zip(group["params"], group.get("names", ()), strict=False)
    }
    return [names.get(id(parameter), parameter) for parameter in parameters]


def saved_state(optimizer: Optimizer, key: Any) -> dict[str, Tensor]:
    """The tensors of a parameter's state by name. LoRA-FA's `exp_avg_B` is `exp_avg`."""
    state: Mapping[str, Any] = optimizer.state.get(key, {})
    return {
        name.removesuffix("_B"): value
        for name, value in state.items()
        if isinstance(value, Tensor) and name not in _NOT_KEPT
    }


def restore_state(
    optimizer: Optimizer, key: Any, *, saved: Mapping[str, Tensor], num_steps_taken: int
) -> None:
    """Give a parameter the state that `saved_state` read after so many steps."""
    if not saved or num_steps_taken == 0:
        return  # SGD without momentum has none, and before its first step no optimizer has one
    initialise: Any = getattr(optimizer, "init_state", None)
    if initialise is not None:  # bitsandbytes: its tensors may lie in memory of its own
        initialise(*_place_of(optimizer, key))
        for name, value in saved.items():
            optimizer.state[key][name].copy_(value)
        optimizer.state[key]["step"] = num_steps_taken
    elif not isinstance(key, nn.Parameter):
        own = {f"{name}_B": value for name, value in saved.items()}
        optimizer.state[key] = {"step": num_steps_taken, **own}
    else:
        own = {name: value.to(key.device) for name, value in saved.items()}
        is_adafactor = isinstance(optimizer, Adafactor)
        counted = num_steps_taken if is_adafactor else torch.tensor(float(num_steps_taken))
        optimizer.state[key] = (
            {"step": counted, "RMS": 0, **own} if is_adafactor else {"step": counted, **own}
        )


@contextmanager
def paged_elsewhere(arm: TrainingArm) -> Iterator[None]:
    """In this context the arm's paged state takes none of the device's memory, to count what the rest takes.

    bitsandbytes pages the state of tensors of 100,000 numbers or more. Its pages lie in memory that GPU and host share.
    """
    if not arm.method.optim.startswith("paged"):
        yield
        return
    kind = adamw_of_bitsandbytes()
    before = kind.get_state_buffer

    def buffer(_: object, weight: Tensor, *, dtype: torch.dtype) -> Tensor:
        is_paged = weight.numel() >= _MIN_PAGED
        return weight.new_empty(0, dtype=dtype) if is_paged else torch.zeros_like(weight, dtype=dtype)

    kind.get_state_buffer = buffer
    try:
        yield
    finally:
        kind.get_state_buffer = before


def _place_of(optimizer: Optimizer, parameter: nn.Parameter) -> tuple[dict[str, Any], nn.Parameter, int, int]:
    """What bitsandbytes' `init_state` takes: the parameter's group, the parameter, and the numbers of both."""
    return next(
        (group, parameter, group_number, number)
        for group_number, group in enumerate(optimizer.param_groups)
        for number, own in enumerate(group["params"])
        if own is parameter
    )
