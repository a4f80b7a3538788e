"""Which modules of a model an arm adapts: names as PEFT reads them, or a preset by role.

Names alone decide, so a plan can be made where no model is loaded. Roles are told from module names, which
follow a handful of habits across architectures; a layer that holds query, key and value in one weight (GPT-2,
GPT-NeoX, Phi-3, Falcon) counts as `qkv`.
"""

import re
from collections.abc import Mapping, Sequence

from lorastudy.errors import ModelError
from lorastudy.spec.settings import TARGET_PRESETS

_LEAVES_BY_ROLE: dict[str, frozenset[str]] = {
    "q": frozenset({"q_proj", "query", "q", "wq", "q_lin", "query_proj"}),
    "k": frozenset({"k_proj", "key", "k", "wk", "k_lin", "key_proj"}),
    "v": frozenset({"v_proj", "value", "v", "wv", "v_lin", "value_proj"}),
    "qkv": frozenset({"c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv", "attn_qkv"}),
    "o": frozenset({"o_proj", "out_proj", "dense", "c_proj", "wo", "o", "out_lin"}),
}
_MLP_PATH = re.compile(r"(^|\.)(mlp|ffn|feed_forward|ff|block_sparse_moe)(\.|$)")
_MLP_LEAVES = frozenset(
    {"fc1", "fc2", "fc_in", "fc_out", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "lin1", "lin2"}
)
_ROLES_BY_PRESET: dict[str, tuple[str, ...]] = {
    "q": ("q",),
    "v": ("v",),
    "qv": ("q", "v", "qkv"),
    "qkvo": ("q", "k", "v", "qkv", "o"),
    "mlp": ("mlp",),
}


def resolve_targets(
    modules: Sequence[str], *, target_modules: str | Sequence[str], layers_to_transform: Sequence[int] | None
) -> tuple[str, ...]:
    """Full names of the modules an arm adapts, in the model's order.

    Args:
        modules: names of the model's linear layers, in its order.
        target_modules: a preset, or names; a name matches a module of that name or ending in `.name` (PEFT's rule).
        layers_to_transform: keep only modules of these layers, counted from 0.

    Raises:
        ModelError: a name or preset matches nothing; lists what the model has.
    """
    if isinstance(target_modules, str) and target_modules in TARGET_PRESETS:
        chosen = _by_preset(target_modules, modules=modules)
    else:
        wanted = [target_modules] if isinstance(target_modules, str) else target_modules
        chosen = _by_name(wanted, modules=modules)
    if layers_to_transform is not None:
        chosen = _in_layers(chosen, layers=layers_to_transform)
    return tuple(chosen)


def shortest_names(chosen: Sequence[str], *, modules: Sequence[str]) -> list[str]:
    """What PEFT's `target_modules` should say: leaf names where they select exactly `chosen`, else full names."""
    leaves = sorted({name.rpartition(".")[2] for name in chosen})
    selected = {name for name in modules if name.rpartition(".")[2] in leaves}
    return leaves if selected == set(chosen) else sorted(chosen)


def _by_preset(preset: str, *, modules: Sequence[str]) -> list[str]:
    if preset == "all":
        return list(modules)
    roles = {name: _role(name) for name in modules}
    chosen = [name for name in modules if roles[name] in _ROLES_BY_PRESET[preset]]
    if chosen:
        return chosen
    if preset in {"q", "v"} and "qkv" in roles.values():
        fused = sorted({name.rpartition(".")[2] for name in modules if roles[name] == "qkv"})
        raise ModelError(
            f"target_modules: {preset}: this model holds query, key and value in one layer ({', '.join(fused)}); "
            f"{preset} alone cannot be adapted. Use qv or qkvo."
        )
    raise ModelError(
        f"target_modules: {preset}: no such role among this model's linear layers: {_listing(modules)}"
    )


def _by_name(wanted: Sequence[str], *, modules: Sequence[str]) -> list[str]:
    missing = [name for name in wanted if not any(_matches(module, name) for module in modules)]
    if missing:
        raise ModelError(
            f"target_modules: {', '.join(missing)}: not in this model. "
            f"Its linear layers: {_listing(modules)}; presets: {', '.join(TARGET_PRESETS)}"
        )
    return [module for module in modules if any(_matches(module, name) for name in wanted)]


def _in_layers(chosen: Sequence[str], *, layers: Sequence[int]) -> list[str]:
    numbers: Mapping[str, int | None] = {name: _layer_number(name) for name in chosen}
    kept = [name for name in chosen if numbers[name] in set(layers)]
    absent = set(layers) - {number for number in numbers.values() if number is not None}
    if absent:
        have = sorted({number for number in numbers.values() if number is not None})
        bounds = f"{have[0]} to {have[-1]}" if have else "none that are numbered"
        raise ModelError(f"layers_to_transform: {sorted(absent)}: this model's layers are {bounds}")
    return kept


def _role(name: str) -> str | None:
    leaf = name.rpartition(".")[2]
    if _MLP_PATH.search(name) or leaf in _MLP_LEAVES:
        return "mlp"
    return next((role for role, leaves in _LEAVES_BY_ROLE.items() if leaf in leaves), None)


def _matches(module: str, wanted: str) -> bool:
    return module == wanted or module.endswith(f".{wanted}")


def without_layer_number(name: str) -> str:
    """A module's name with `*` for the number of its layer: equal for the same module of every layer."""
    number = _layer_number(name)
    return name if number is None else name.replace(f".{number}.", ".*.", 1)


def _layer_number(name: str) -> int | None:
    numbers = [part for part in name.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else None


def _listing(modules: Sequence[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in modules})) or "none"
