"""The MLP of the last layer, for the tokens that a label is predicted from and for no others.

    K arms, N tokens of a micro-batch, D hidden size, M labelled tokens

After the last attention no token feels another, and only labelled ones are read. What the MLP would say of the rest
is left out: there the layer's output is not the model's. Prompts are often most of a batch, and models are not always
deep.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lorastudy.engine.environment import is_out_of_memory
from lorastudy.engine.quantised import feels_other_rows

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
def sparing_mlp(
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
    return mlp if are_the_same(spared_KMD, whole_KMD) else None


def are_the_same(one: Tensor, other: Tensor) -> bool:
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
