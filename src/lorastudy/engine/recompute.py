"""Activation checkpointing for a frozen base that stays in eval mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def recomputing(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Within, the model's layers keep only their inputs and run again in the backward pass.

    transformers recomputes a layer whose own `training` is True. Only that flag is set, and only here: the
    layer's children stay in eval mode, so the base's dropout stays off, and generation keeps its cache.
    (`gradient_checkpointing_enable` has another name from version to version and wants the whole model to train.)
    """
    layers = [
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer) and enabled
    ]
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = False
            layer.training = False
