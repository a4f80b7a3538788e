"""The layers of a model that adapters can adapt, with their roles. `suite/targets.py` selects the layers of an arm."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from lorastudy.engine.quantised import computes_linearly, features
from lorastudy.suite.targets import TargetLayer, role_of, why_left_out

#: Modules whose three-dimensional parameters are not experts: kernels of convolutions, gates of recurrent blocks.
_NO_EXPERTS = re.compile(r"Conv\d?d|Rglru|Rwkv")
IS_TAKEN = "PEFT takes this name for the routed experts"


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer for every layer that multiplies by one matrix, except the output head."""
    head = _head(model)
    return {
        name: module
        for name, module in model.named_modules()
        if computes_linearly(module) and module is not head
    }


def expert_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter for all parameters with one matrix per expert, (experts, ., .).

    Hybrid models have other three-dimensional parameters. Experts are in a module whose class name has "Experts" or
    whose name has "experts".
    """
    return {
        f"{name}.{leaf}" if name else leaf: parameter
        for name, module in model.named_modules()
        for leaf, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and _holds_experts(name, module)
    }


def target_layers(model: nn.Module) -> tuple[TargetLayer, ...]:
    """All layers that adapters can adapt, in the model's order, and similar layers that are left out."""
    modules, linear, head = dict(model.named_modules()), linear_modules(model), _head(model)
    experts = expert_parameters(model)
    owners = {name: _owners(name, modules) for name in modules}
    taken = _taken_for_experts(model, list(linear)) if is_stored_otherwise(model) else frozenset()
    layers: list[TargetLayer] = []
    for name, module in modules.items():
        if isinstance(module, nn.Linear) and name not in linear and module is not head:
            own_way = f"its class {type(module).__name__} computes in a way of its own"
            layers.append(_linear_layer(name, module, owners=owners[name], left_out=own_way))
        elif name in linear:
            reason = IS_TAKEN if name in taken else None
            layers.append(_linear_layer(name, module, owners=owners[name], left_out=reason))
        layers += [
            _expert_layer(full_name, parameter, module=module)
            for full_name, parameter in experts.items()
            if full_name.rpartition(".")[0] == name
        ]
    return tuple(layers)


def _linear_layer(
    name: str, module: nn.Module, *, owners: Sequence[str], left_out: str | None
) -> TargetLayer:
    role = role_of(name, owners=owners)
    inputs, outputs = features(module)
    return TargetLayer(
        name=name, role=role, in_features=inputs, out_features=outputs,
        left_out=why_left_out(name, role=role, owners=owners) or left_out,
    )  # fmt: skip


def _expert_layer(name: str, parameter: Tensor, *, module: nn.Module) -> TargetLayer:
    """The layer of experts' matrices as PEFT reads them: (experts, outputs, inputs), unless marked as transposed."""
    num_experts, first, second = parameter.shape
    role = "other" if "attention" in name else "expert"  # JetMoE's attention has experts, too
    is_transposed = bool(getattr(module, "is_transposed", False))
    inputs, outputs = (first, second) if is_transposed else (second, first)
    return TargetLayer(
        name=name, role=role, in_features=inputs, out_features=outputs, is_parameter=True, num_experts=num_experts
    )  # fmt: skip


def _holds_experts(name: str, module: nn.Module) -> bool:
    kind = type(module).__name__
    if _NO_EXPERTS.search(kind):
        return False
    return "Experts" in kind or any("experts" in part for part in name.split("."))


def is_stored_otherwise(model: nn.Module) -> bool:
    """Whether weights of this family have other names in their files than in the model.

    PEFT has special rules for such families, so the check needs PEFT. For other families its import would waste a
    second.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return get_checkpoint_conversion_mapping(model_type) is not None


def _taken_for_experts(model: nn.Module, names: Sequence[str]) -> frozenset[str]:
    from lorastudy.engine.peft_model import taken_for_experts

    return taken_for_experts(model, names)


def _owners(name: str, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    parts = name.split(".")
    return tuple(type(modules[".".join(parts[:end])]).__name__ for end in range(len(parts)))


def _head(model: nn.Module) -> nn.Module | None:
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    return head if isinstance(head, nn.Module) else None
