"""Putting packed layers in the place of a model's linear layers, and taking them out again."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from lorastudy.engine.environment import is_out_of_memory
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.lora import PackedLinear
from lorastudy.engine.matmul import is_replaced
from lorastudy.engine.quantised import feels_other_rows


def inject(base: BaseModel, *, names: Iterable[str]) -> dict[str, PackedLinear]:
    """Replace the named linear layers in place, and those that a `PackedLinear` serves better without an adapter, too.

    Better: rows do not feel each other in it, or it is faster at the product.
    """
    is_faster = is_replaced(device=base.device, dtype=base.dtype)
    wanted = set(names)
    assert wanted <= set(base.linear_layers), wanted - set(base.linear_layers)
    layers = {
        name: PackedLinear(module)
        for name, module in base.linear_layers.items()
        if name in wanted or is_faster or feels_other_rows(module)
    }
    for name, layer in layers.items():
        _set(base.model, name, module=layer)
    return layers


def eject(base: BaseModel, layers: Mapping[str, PackedLinear]) -> None:
    """Put the model's own layers back."""
    for name, layer in layers.items():
        _set(base.model, name, module=layer.base_layer)


def _set(model: nn.Module, name: str, *, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


@contextmanager
def activation_checkpointing(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Within, the model's layers keep only their inputs and run again in the backward pass.

    The layers' own forward is wrapped, and nothing is told that it trains: transformers' own switch recomputes
    only in a layer whose `training` is True, and some layers (OPT's) turn on their dropout by that flag.
    """
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer) and enabled
    ]
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is there again


def _recomputed(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return checkpoint(partial(forward, **options), *args, use_reentrant=False)


#: Relative difference of hidden states that products of fewer rows at a time explain.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def last_mlp(model: nn.Module) -> nn.Module | None:
    """The MLP of the last decoder layer; None where it has none by that name, or where its rows feel each other."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    mlp = getattr(layers[-1], "mlp", None) if layers else None
    if mlp is None or any(feels_other_rows(module) for module in mlp.modules()):
        return None
    assert isinstance(mlp, nn.Module)
    return mlp


@torch.no_grad()
def labels_only_mlp(
    model: nn.Module, *, index_M: Tensor, hidden_states: Callable[[], Tensor]
) -> nn.Module | None:
    """The last MLP, if the model says the same of the labelled tokens when it sees no others.

    `hidden_states` runs the model up to its head: (K, N, D). A model whose layers are not built like this is asked
    and answers by an error or by other numbers; it is then run whole.
    """
    mlp = last_mlp(model)
    if mlp is None:
        return None
    whole_KMD = hidden_states().index_select(1, index_M)
    try:
        with labelled_only(mlp, index_M):
            spared_KMD = hidden_states().index_select(1, index_M)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return None
    return mlp if equal_but_for_rounding(spared_KMD, whole_KMD) else None


def equal_but_for_rounding(one: Tensor, other: Tensor) -> bool:
    """Whether rounding explains the difference."""
    difference = (one.float() - other.float()).norm() / other.float().norm()
    return float(difference) <= TOLERANCES[other.dtype]


@contextmanager
def labelled_only(mlp: nn.Module | None, index_M: Tensor) -> Iterator[None]:
    """Within, the MLP runs on these tokens alone; also where activations are recomputed, in the backward pass."""
    if mlp is None:
        yield
        return
    mlp.forward = partial(_labelled, forward=mlp.forward, index_M=index_M)
    try:
        yield
    finally:
        del mlp.forward  # the class's own is there again


def _labelled(x_KND: Tensor, *, forward: Callable[..., Any], index_M: Tensor) -> Tensor:
    """An MLP that is given more than its tokens, or gives more than their states, ends in an error here."""
    y_KMD = forward(x_KND.index_select(1, index_M))
    return torch.zeros_like(x_KND).index_copy(1, index_M, y_KMD)
