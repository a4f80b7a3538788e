"""What the engines change in a model while they run it, and undo afterwards.

- `replace_linear_layers`: `PackedLinear` in the place of linear layers, which serves every arm of a pack.
- `on_labels_only`: the MLP of the last layer runs on labelled tokens alone.
- `activation_checkpointing`: layers keep only their inputs and run again in the backward pass.

    K arms, N tokens of a micro-batch, D hidden size, M labelled tokens
"""

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

#: Relative difference of hidden states that comes from multiplying fewer rows at a time.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def replace_linear_layers(base: BaseModel, *, names: Iterable[str]) -> dict[str, PackedLinear]:
    """Replace the named linear layers in place; also layers without an adapter for which `PackedLinear` is better.

    It is better where the layer's own product is slower, or mixes rows (LLM.int8), so that an arm would feel the others.
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


def restore_linear_layers(base: BaseModel, layers: Mapping[str, PackedLinear]) -> None:
    """Put the model's own layers back."""
    for name, layer in layers.items():
        _set(base.model, name, module=layer.base_layer)


def _set(model: nn.Module, name: str, *, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


@contextmanager
def on_labels_only(mlp: nn.Module | None, index_M: Tensor) -> Iterator[None]:
    """Within, the last layer's MLP runs on these tokens alone, forward and backward; None leaves the model as it is.

    After the last attention no token depends on another, and only labelled ones are read. For the rest the MLP is left
    out, so there the layer's output is not the model's. Prompts are often most of a batch, and models are not always deep.
    """
    if mlp is None:
        yield
        return
    mlp.forward = partial(_labelled, forward=mlp.forward, index_M=index_M)
    try:
        yield
    finally:
        del mlp.forward  # the class's own is there again


def _labelled(x_KND: Tensor, *, forward: Callable[..., Any], index_M: Tensor) -> Tensor:
    """Run an MLP on some tokens. One that takes or returns more than hidden states raises an error here."""
    y_KMD = forward(x_KND.index_select(1, index_M))
    return torch.zeros_like(x_KND).index_copy(1, index_M, y_KMD)


@torch.no_grad()
def labels_only_mlp(
    model: nn.Module, *, index_M: Tensor, hidden_states: Callable[[], Tensor]
) -> nn.Module | None:
    """The last MLP, if the states of the labelled tokens stay the same when it sees no others; else None.

    `hidden_states` runs the model up to its head: (K, N, D). A model that is built differently raises an error or returns
    other numbers; then its last layer runs whole.
    """
    mlp = last_mlp(model)
    if mlp is None:
        return None
    whole_KMD = hidden_states().index_select(1, index_M)
    try:
        with on_labels_only(mlp, index_M):
            spared_KMD = hidden_states().index_select(1, index_M)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        return None
    return mlp if equal_but_for_rounding(spared_KMD, whole_KMD) else None


def last_mlp(model: nn.Module) -> nn.Module | None:
    """The MLP of the last decoder layer; None where none has that name, or where it mixes rows."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    mlp = getattr(layers[-1], "mlp", None) if layers else None
    if mlp is None or any(feels_other_rows(module) for module in mlp.modules()):
        return None
    assert isinstance(mlp, nn.Module)
    return mlp


def equal_but_for_rounding(one: Tensor, other: Tensor) -> bool:
    """Whether rounding explains the difference."""
    difference = (one.float() - other.float()).norm() / other.float().norm()
    return float(difference) <= TOLERANCES[other.dtype]


@contextmanager
def activation_checkpointing(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Within, the model's layers keep only their inputs and run again in the backward pass.

    This wraps the layers' own forward and leaves the model in eval mode. transformers' own switch works only in a layer
    whose `training` is True, and some layers (OPT's) turn on their dropout by that flag.
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
