"""Putting packed layers in the place of a model's linear layers, and taking them out again."""

from collections.abc import Iterable, Mapping

from torch import nn

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
