"""Activation checkpointing for a frozen base that stays in eval mode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def recomputing(model: nn.Module, *, enabled: bool) -> Iterator[None]:
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
