"""Which layers of a model an arm adapts: names as PEFT reads them, a regular expression, or a preset by role.

A role is the function of a layer in its block. It follows from the layer's path, and from the classes around the layer
if the path is ambiguous: the `out_proj` of a Mamba mixer is not attention's. A layer that no arm may adapt carries the
reason (`left_out`).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lorastudy.errors import ModelError
from lorastudy.suite.methods import ArmMethod, is_matched
from lorastudy.suite.settings import TARGET_PRESETS, Settings
from lorastudy.suite.wording import did_you_mean

#: All roles, in the order of display. `kv` is latent attention's pair of matrices behind keys and values, `qkv` one
#: weight that holds all three, `mixer` a layer of a state space, a convolution or linear attention.
ROLES = ("q", "k", "v", "kv", "qkv", "o", "mlp", "shared_expert", "expert", "mixer", "other", "router")

_ATTENTION_LEAVES: Mapping[str, frozenset[str]] = {
    "q": frozenset({"q_proj", "query", "q", "wq", "Wq", "q_lin", "query_proj", "q_a_proj", "q_b_proj"}),
    "k": frozenset({"k_proj", "key", "k", "wk", "Wk", "k_lin", "key_proj"}),
    "v": frozenset(
        {"v_proj", "value", "v", "wv", "Wv", "v_lin", "value_proj", "v_proj_current", "v_proj_delayed"}
    ),
    "kv": frozenset({"kv_a_proj_with_mqa", "kv_a_proj", "kv_b_proj", "kv_proj"}),
    "qkv": frozenset({"c_attn", "query_key_value", "qkv_proj", "Wqkv", "qkv", "attn_qkv"}),
    "o": frozenset(
        {"o_proj", "out_proj", "dense", "c_proj", "wo", "Wo", "o", "out_lin", "o_a_proj", "o_b_proj"}
    ),
}
_MLP_LEAVES = frozenset(
    {"fc1", "fc2", "fc_in", "fc_out", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "lin1", "lin2"}
)
_ATTENTION_PART = re.compile(r"(self_?)?(multi_head_)?attn|(self_|multi_head_)?attention|SelfAttention")
_MLP_PART = re.compile(
    r"mlps?|ffn|ff|feed_forward|block_sparse_moe|moe|mlp_block|shared_mlp|shared_experts?|experts"
)
_SHARED_PART = re.compile(r"shared_mlp|shared_experts?")
_ROUTER_PART = re.compile(r"router|indexer")
_MIXER_PART = re.compile(r"mamba|conv|linear_attn|mlstm_layer|compressor|forget_gate")
_MIXER_CLASS = re.compile(
    r"(Mixer|MambaLayer|ShortConv|RecurrentBlock|DeltaNet|DeltaAttention|LightningAttention|LinearAttention"
    r"|RwkvSelfAttention|xLSTMLayer|Compressor|ForgetGate)$"
)
_STATE_SPACE_CLASS = re.compile(r"(Mamba\w*|\w+)(Mixer|MambaLayer)$")

#: Layers of a state space whose weights the fused kernels read without calling the layer.
_READ_BY_KERNELS = frozenset({"out_proj", "x_proj", "dt_proj"})
KERNEL_READS_IT = "the kernels of a state space read its weight past any adapter"
ROUTES = "it chooses experts or tokens, and is left as it is"

_ROLES_BY_PRESET: Mapping[str, tuple[str, ...]] = {
    "q": ("q",),
    "v": ("v",),
    "qv": ("q", "v", "kv", "qkv"),
    "qkvo": ("q", "k", "v", "kv", "qkv", "o"),
    "mlp": ("mlp", "shared_expert", "expert"),
    "all": tuple(role for role in ROLES if role != "router"),
}
#: For each preset: the parts that the model must have, each as the roles of which any one provides it.
_PARTS_BY_PRESET: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "q": (("q",),),
    "v": (("v",),),
    "qv": (("q", "qkv"), ("v", "kv", "qkv")),
    "qkvo": (("q", "qkv"), ("k", "kv", "qkv"), ("v", "kv", "qkv"), ("o",)),
    "mlp": (("mlp", "expert"),),
    "all": (),
}
_NOT_ADAPTED = re.compile(r"(^|\.)(embed\w*|lm_head|wte|wpe|word_embeddings|embed_out)$")


@dataclass(frozen=True, kw_only=True)
class TargetLayer:
    """A layer that an adapter can sit on; or a similar one that no arm may adapt, with the reason in `left_out`.

    If `is_parameter`, it is not a module but a parameter with the matrices of `num_experts` experts.
    """

    name: str
    role: str
    in_features: int
    out_features: int
    is_parameter: bool = False
    num_experts: int = 1
    left_out: str | None = None

    @property
    def parameters_per_rank(self) -> int:
        """Trainable parameters of an adapter of rank 1: inputs plus outputs, of each expert."""
        return self.num_experts * (self.in_features + self.out_features)


def named_layers(names: Iterable[str]) -> tuple[TargetLayer, ...]:
    """Layers from their names alone. Their sizes are 0, and no classes help to find their roles."""
    return tuple(_named(name) for name in names)


def _named(name: str) -> TargetLayer:
    role = role_of(name)
    return TargetLayer(
        name=name, role=role, in_features=0, out_features=0, left_out=why_left_out(name, role=role)
    )


def role_of(name: str, *, owners: Sequence[str] = ()) -> str:
    """The role of a linear layer.

    Args:
        name: its full name in the model.
        owners: the classes of the modules around it, the nearest last; empty if only names are known.
    """
    *path, leaf = name.split(".")
    if leaf == "linear" and path and any(path[-1] in leaves for leaves in _ATTENTION_LEAVES.values()):
        leaf = path.pop()  # Moshi wraps each layer in a module of its own
    block = _block(path, owners=owners)
    if _is_router(path, leaf):
        return "router"
    if _is_mixer(path, owners=owners):
        return "mixer"
    if block == "mlp":
        return _mlp_role(path, leaf)
    role = next((role for role, leaves in _ATTENTION_LEAVES.items() if leaf in leaves), None)
    if block == "attention":
        return role or "other"
    if leaf in _MLP_LEAVES:
        return "mlp"
    return role if role is not None and "head" not in name else "other"


def why_left_out(name: str, *, role: str, owners: Sequence[str] = ()) -> str | None:
    """Why no arm may adapt a layer of this name and role; None if arms may."""
    if role == "router":
        return ROUTES
    *path, leaf = name.split(".")
    is_state_space = _STATE_SPACE_CLASS.search(owners[-1]) if owners else {"mamba", "mixer"} & set(path)
    if role == "mixer" and is_state_space and leaf in _READ_BY_KERNELS:
        return KERNEL_READS_IT
    return None


def _block(path: Sequence[str], *, owners: Sequence[str]) -> str | None:
    """The nearest block around a layer, `attention` or `mlp`; None if it is neither."""
    for part in reversed(path):
        if _MLP_PART.fullmatch(part):
            return "mlp"
        if _ATTENTION_PART.fullmatch(part):
            return "attention"
    owner = owners[-1] if owners else ""
    if re.search(r"Attention", owner):
        return "attention"
    return "mlp" if re.search(r"MLP|Mlp|FeedForward|FFN", owner) else None


def _is_router(path: Sequence[str], leaf: str) -> bool:
    if leaf == "router" or any(_ROUTER_PART.fullmatch(part) for part in path):
        return True
    in_mlp = any(_MLP_PART.fullmatch(part) for part in path)
    return in_mlp and (leaf == "gate" or "gate" in path)


def _is_mixer(path: Sequence[str], *, owners: Sequence[str]) -> bool:
    return any(_MIXER_PART.fullmatch(part) for part in path) or any(
        _MIXER_CLASS.search(owner) for owner in owners[-2:]
    )


def _mlp_role(path: Sequence[str], leaf: str) -> str:
    if leaf.endswith("_gate") or any("adapter" in part for part in path):
        return "other"  # Qwen2-MoE's scalar before its shared expert; Zamba2's own low-rank layers
    if any(_SHARED_PART.fullmatch(part) for part in path):
        return "shared_expert"
    return "expert" if "experts" in path else "mlp"


def targets_of(settings: Settings, layers: Sequence[TargetLayer]) -> tuple[str, ...]:
    """Full names of the layers that an arm with these settings adapts, in the model's order; none for full fine-tuning.

    Raises:
        ModelError: as `resolve_targets`; or the arm adapts experts with dropout or with `engine: packed`.
    """
    if settings.arm_method.is_full:
        return ()
    chosen = resolve_targets(
        layers,
        target_modules=settings.target_modules,
        layers_to_transform=settings.layers_to_transform,
        exclude_modules=settings.exclude_modules or (),
    )
    for key in ("rank_pattern", "alpha_pattern"):
        _check_pattern(key, getattr(settings, key), chosen=chosen)
    experts = [layer.name for layer in layers if layer.is_parameter and layer.name in set(chosen)]
    if experts and settings.lora_dropout > 0:
        raise ModelError(
            f"lora_dropout: {settings.lora_dropout:g}: the arm adapts the weights of experts ({experts[0]} and others), and "
            "PEFT has no dropout on these. Set lora_dropout: 0, or choose target_modules without experts (qkvo)"
        )
    if experts and settings.arm_method.is_refused_on_experts:
        raise ModelError(
            f"method: {settings.arm_method.title}: the arm adapts the weights of experts ({experts[0]} and others), and PEFT has plain "
            "LoRA on these. Choose target_modules without experts (qkvo)"
        )
    if experts and settings.engine == "packed":
        raise ModelError(
            f"engine: packed: the arm adapts the weights of experts ({experts[0]} and others), which the reference engine "
            "trains alone so far. Set engine: auto, or choose target_modules without experts (qkvo)"
        )
    return chosen


def _check_pattern(key: str, patterns: Iterable[str], *, chosen: Sequence[str]) -> None:
    """Refuse keys that match no adapted layer, and two that match the same one: which acts would depend on their order.

    Raises:
        ModelError: names the key, and the nearest name of an adapted layer.
    """
    matched_by: dict[str, str] = {}
    for pattern in patterns:
        found = [name for name in chosen if is_matched(name, pattern=pattern)]
        if not found:
            leaves = sorted({_leaf(name) for name in chosen})
            near = did_you_mean(pattern, leaves) or f"; these are adapted: {', '.join(leaves)}"
            raise ModelError(f"{key}: {pattern}: matches none of the layers that the arm adapts{near}")
        for name in found:
            other = matched_by.setdefault(name, pattern)
            if other != pattern:
                raise ModelError(
                    f"{key}: {name} matches both {other} and {pattern}; make them exclude each other"
                )


def resolve_targets(
    layers: Sequence[TargetLayer],
    *,
    target_modules: str | Sequence[str],
    layers_to_transform: Sequence[int] | None,
    exclude_modules: Sequence[str] = (),
) -> tuple[str, ...]:
    """Full names of the layers an arm adapts, in the model's order.

    Args:
        layers: the model's layers, in its order.
        target_modules: a preset, or names. A name matches a layer that is called `name` or ends in `.name`. A name with
            signs of a regular expression must match a layer's full name. Both are PEFT's rules.
        layers_to_transform: keep only modules of these layers, counted from 0.
        exclude_modules: names as in `target_modules`, to leave out what they match. It is PEFT's key.

    Raises:
        ModelError: a name or preset matches nothing that can be adapted; the message lists the model's layers. Or a name in
            `exclude_modules` matches none of the chosen layers, or they match all of them.
    """
    if isinstance(target_modules, str) and target_modules in TARGET_PRESETS:
        chosen = _by_preset(target_modules, layers=layers)
    else:
        wanted = [target_modules] if isinstance(target_modules, str) else target_modules
        chosen = _by_name(wanted, layers=layers)
    if layers_to_transform is not None:
        chosen = _in_layers(chosen, layers=layers_to_transform)
    return tuple(_not_excluded(chosen, exclude_modules))


def _not_excluded(chosen: Sequence[str], exclude_modules: Sequence[str]) -> list[str]:
    leaves = sorted({_leaf(name) for name in chosen})
    for excluded in exclude_modules:
        if not any(_matches(name, excluded) for name in chosen):
            near = did_you_mean(excluded, leaves)
            raise ModelError(
                f"exclude_modules: {excluded}: matches none of the selected layers{near}; these are {', '.join(leaves)}"
            )
    kept = [name for name in chosen if not any(_matches(name, excluded) for excluded in exclude_modules)]
    if not kept:
        raise ModelError(
            f"exclude_modules: {', '.join(exclude_modules)}: leaves no layer to adapt; the selected layers are {', '.join(leaves)}"
        )
    return kept


@dataclass(frozen=True, kw_only=True)
class AdapterSize:
    """The numbers of an adapter's parameters: those that train, all of them, and those in its file."""

    num_trainable: int
    num_parameters: int
    num_saved: int


@dataclass(frozen=True, kw_only=True)
class CountedSize:
    """The size of what an arm trains, counted by PEFT on the model. Some of it is in the base's precision."""

    num_trainable: int
    held_bytes: int
    """Weights beside the base: the adapter, and copies of whole modules. Biases are the base's own."""
    gradient_bytes: int
    saved_bytes: int
    num_beside: int
    """Parameters of the wrapped model beyond those of the base."""


def arm_size(
    layers: Iterable[TargetLayer], *, r: int, method: ArmMethod, num_base_parameters: int
) -> AdapterSize:
    """The size of what an arm trains: of an adapter on these layers, or of the whole base model in full fine-tuning."""
    if method.is_full:
        return AdapterSize(
            num_trainable=num_base_parameters,
            num_parameters=num_base_parameters,
            num_saved=num_base_parameters,
        )
    return adapter_size(layers, r=r, method=method)


def adapter_size(layers: Iterable[TargetLayer], *, r: int, method: ArmMethod) -> AdapterSize:
    """The size of an adapter of rank r on these layers.

    lora_A is (r, inputs), lora_B (outputs, r), for each expert. DoRA adds a norm for each output, LoRA-FA freezes
    lora_A, and an adapter that starts from the frozen weights is saved with twice the rank.
    """
    chosen = list(layers)
    ranks = [layer.num_experts * method.rank_of(layer.name, r=r) for layer in chosen]
    num_A = sum(rank * layer.in_features for rank, layer in zip(ranks, chosen, strict=True))
    num_B = sum(rank * layer.out_features for rank, layer in zip(ranks, chosen, strict=True))
    norms = sum(layer.out_features for layer in chosen) if method.use_dora else 0
    return AdapterSize(
        num_trainable=(0 if method.is_lorafa else num_A) + num_B + norms,
        num_parameters=num_A + num_B + norms,
        num_saved=(num_A + num_B) * method.saved_ranks + norms,
    )


def count_by_role(names: Iterable[str], *, layers: Sequence[TargetLayer]) -> dict[str, int]:
    """By role, in the order of `ROLES`: the number of these layers."""
    roles = {layer.name: layer.role for layer in layers}
    counts = Counter(roles[name] for name in names)
    return {role: counts[role] for role in ROLES if counts[role]}


def in_words(counts: Mapping[str, int]) -> str:
    """`q 2, k 2, v 2, o 2`: the number of adapted layers of each role."""
    return ", ".join(f"{role.replace('_', ' ')} {count}" for role, count in counts.items())


def names_digest(names: Iterable[str]) -> str:
    """A hash that is equal for equal sets of layers."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def left_out(names: Iterable[str], *, layers: Sequence[TargetLayer], target_modules: object) -> list[str]:
    """The layers that a preset names but no arm may adapt: a line per reason, with names without layer numbers.

    Full fine-tuning adapts no layers (`names` is empty) and leaves none out.
    """
    chosen = set(names)
    if not chosen or not isinstance(target_modules, str) or target_modules not in _ROLES_BY_PRESET:
        return []
    roles = _ROLES_BY_PRESET[target_modules]
    by_reason: dict[str, list[str]] = {}
    for layer in layers:
        if layer.left_out is not None and layer.role in roles and layer.name not in chosen:
            by_reason.setdefault(layer.left_out, []).append(without_layer_number(layer.name))
    return [f"{', '.join(dict.fromkeys(which))}: {reason}" for reason, which in by_reason.items()]


def peft_names(chosen: Sequence[str], *, modules: Sequence[str]) -> list[str]:
    """The value for PEFT's `target_modules`: leaf names if they select exactly `chosen`, else full names.

    Args:
        chosen: the names of the layers to adapt.
        modules: the names of all modules of the model, of any kind. PEFT matches against all of them, so CTRL's leaf
            name `0` would also select the layer `h.0`.
    """
    leaves = sorted({name.rpartition(".")[2] for name in chosen})
    return leaves if selected_by(leaves, modules=modules) == set(chosen) else sorted(chosen)


def selected_by(names: Iterable[str], *, modules: Iterable[str]) -> set[str]:
    """The modules that PEFT selects by a list of names: those equal to a name or ending in `.name`."""
    wanted = set(names)
    return {module for module in modules if any(part in wanted for part in _endings(module))}


def _endings(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _by_preset(preset: str, *, layers: Sequence[TargetLayer]) -> list[str]:
    roles = _ROLES_BY_PRESET[preset]
    present = {layer.role for layer in layers if layer.left_out is None}
    lacking = [part for part in _PARTS_BY_PRESET[preset] if not present & set(part)]
    chosen = [layer.name for layer in layers if layer.role in roles and layer.left_out is None]
    if chosen and not lacking:
        return chosen
    if preset in {"q", "v"}:
        held = "qkv" if "qkv" in present or preset == "q" else "kv"
        joint = sorted({_leaf(layer.name) for layer in layers if layer.role == held})
        if joint:
            raise ModelError(
                f"target_modules: {preset}: this model holds {'query, key and value' if held == 'qkv' else 'key and value'} "
                f"in one layer ({', '.join(joint)}); {preset} alone cannot be adapted. Use qv or qkvo."
            )
    if chosen:
        missing = "; ".join(" or ".join(part) for part in lacking)
        raise ModelError(
            f"target_modules: {preset}: this model has no layer that is known as {missing}, so {preset} would adapt a part of "
            f"what it says. Name modules instead. Its layers: {_listing(layers)}"
        )
    raise ModelError(
        f"target_modules: {preset}: no such role among this model's linear layers: {_listing(layers)}"
    )


def _by_name(wanted: Sequence[str], *, layers: Sequence[TargetLayer]) -> list[str]:
    matched = {name: [layer for layer in layers if _matches(layer.name, name)] for name in wanted}
    missing = [name for name, found in matched.items() if not found]
    if any(_NOT_ADAPTED.search(name) for name in missing):
        raise ModelError(
            f"target_modules: {', '.join(missing)}: embeddings and the output head are not adapted here: both are shared with "
            f"the loss, and often one weight. Choose among: {_listing(layers)}; presets: {', '.join(TARGET_PRESETS)}"
        )
    if missing:
        near = (
            did_you_mean(missing[0], map(_leaf, (layer.name for layer in layers)))
            if len(missing) == 1
            else ""
        )
        raise ModelError(
            f"target_modules: {', '.join(missing)}: not in this model{near}. "
            f"Its linear layers: {_listing(layers)}; presets: {', '.join(TARGET_PRESETS)}"
        )
    for name, found in matched.items():
        if all(layer.left_out is not None for layer in found):
            raise ModelError(
                f"target_modules: {name}: cannot be adapted in this model: {found[0].left_out}. "
                f"Its layers that can: {_listing(layers)}"
            )
    chosen = {layer.name for found in matched.values() for layer in found if layer.left_out is None}
    return [layer.name for layer in layers if layer.name in chosen]


def _in_layers(chosen: Sequence[str], *, layers: Sequence[int]) -> list[str]:
    numbers: Mapping[str, int | None] = {name: _layer_number(name) for name in chosen}
    kept = [name for name in chosen if numbers[name] in set(layers)]
    absent = set(layers) - {number for number in numbers.values() if number is not None}
    if absent:
        have = sorted({number for number in numbers.values() if number is not None})
        bounds = f"{have[0]} to {have[-1]}" if have else "none that are numbered"
        raise ModelError(f"layers_to_transform: {sorted(absent)}: this model's layers are {bounds}")
    return kept


def _matches(module: str, wanted: str) -> bool:
    if is_pattern(wanted):
        return re.fullmatch(wanted, module) is not None
    return module == wanted or module.endswith(f".{wanted}")


def is_pattern(name: str) -> bool:
    r"""Whether a target is a regular expression: it holds a sign that no module name has (`* + ? | ( [ \ ^ $`)."""
    return any(sign in name for sign in r"*+?|([\^$")


def without_layer_number(name: str) -> str:
    """A module's name with `*` for its layer's number, so that the same module of every layer has one name."""
    number = _layer_number(name)
    return name if number is None else name.replace(f".{number}.", ".*.", 1)


def _layer_number(name: str) -> int | None:
    numbers = [part for part in name.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else None


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _listing(layers: Sequence[TargetLayer]) -> str:
    return ", ".join(sorted({_leaf(layer.name) for layer in layers if layer.left_out is None})) or "none"
