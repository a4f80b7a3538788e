"""The linear layers of a model, which arms adapt; which of them an arm names is told in `spec/targets.py`."""

from torch import nn

from lorastudy.engine.quantised import LINEAR_TYPES
from lorastudy.spec.targets import resolve_targets, shortest_names

__all__ = ["linear_modules", "resolve_targets", "shortest_names"]


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer for every linear layer but the output head."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LINEAR_TYPES) and module is not head
    }
