"""Temporary changes of a model for engines. Each change can be undone.

- `replace_linear_layers`: `PackedLinear` replaces linear layers and serves all arms of a pack.
- `without_padding_warning`: the model does not look for padding, which packed rows do not have.
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
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lorastudy.engine.environment import is_out_of_memory
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.lora import PackedLinear
from lorastudy.engine.matmul import is_replaced
from lorastudy.engine.quantised import depends_on_rows, feels_other_rows

#: Largest relative difference of hidden states due to products with fewer rows.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def replace_linear_layers(base: BaseModel, *, names: Iterable[str]) -> dict[str, PackedLinear]:
    """Replace the named linear layers in place, and also layers without an adapter for which `PackedLinear` is better.

    It is better if the layer's own product is slower, or depends on the number of rows (bitsandbytes).
    """
    is_faster = is_replaced(device=base.device, dtype=base.dtype)
    wanted = set(names)
    assert wanted <= set(base.linear_layers), wanted - set(base.linear_layers)
    layers = {
        name: PackedLinear(module)
        for name, module in base.linear_layers.items()
        if name in wanted or is_faster or depends_on_rows(module)
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
def without_padding_warning(model: nn.Module) -> Iterator[None]:
    """In this context transformers does not warn of padding without a mask.

    Some models (GPT-2) look for the padding token in every forward pass. On a GPU the host waits for that.
    """
    models: list[Any] = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    for module in models:
        module.warn_if_padding_and_no_attention_mask = _warn_of_nothing
    try:
        yield
    finally:
        for module in models:
            del module.warn_if_padding_and_no_attention_mask  # the class's own is there again


def _warn_of_nothing(*_: object) -> None:
    """Takes the place of a warning."""


@contextmanager
def on_labels_only(mlp: nn.Module | None, index_M: Tensor) -> Iterator[None]:
    """In this context the last layer's MLP runs on these tokens alone, forward and backward. None changes nothing.

    After the last attention no token depends on another, and only labelled tokens are read. For the other tokens the
    MLP is left out, so the layer's output differs from the model's there. It saves time because prompts are often most
    of a batch, and some models have few layers.
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
    """Run an MLP on some tokens. Raises an error if the MLP takes or returns more than hidden states."""
    y_KMD = forward(x_KND.index_select(1, index_M))
    return torch.zeros_like(x_KND).index_copy(1, index_M, y_KMD)


@torch.no_grad()
def labels_only_mlp(
    model: nn.Module, *, index_M: Tensor, hidden_states: Callable[[], Tensor]
) -> nn.Module | None:
    """The last MLP, if labelled tokens keep their states when it runs on them alone; else None.

    `hidden_states` runs the model up to its head: (K, N, D). A model of another structure raises an error or returns
    other numbers; then its last layer runs on all tokens.
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
    """The MLP of the last decoder layer; None if no module has that name, or if it mixes rows."""
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
    """In this context the model's layers keep only their inputs and run again in the backward pass.

    This wraps the layers' own forward and leaves the model in eval mode. transformers' own switch works only in a layer
    whose `training` is True, and some layers (OPT's) turn on their dropout by that flag.
    """
    if not enabled:
        yield
        return
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is there again


def _recomputed(forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return checkpoint(partial(forward, **options), *args, use_reentrant=False)
