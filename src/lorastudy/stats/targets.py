"""What kind of module an arm adapts, from its `target_modules`: needed to ask whether the MLP is necessary."""

from typing import Literal

from lorastudy.stats.study import Arm

Role = Literal["attention", "mlp"]

ATTENTION_ONLY: frozenset[Role] = frozenset({"attention"})

_PRESET_ROLES: dict[str, frozenset[Role]] = {
    "q": ATTENTION_ONLY,
    "v": ATTENTION_ONLY,
    "qv": ATTENTION_ONLY,
    "qkvo": ATTENTION_ONLY,
    "mlp": frozenset({"mlp"}),
    "all": frozenset({"attention", "mlp"}),
}
#: Parts of module names in the architectures of transformers: Llama, Qwen, Phi, GPT-2, GPT-NeoX, Falcon, OPT.
_MLP_NAMES = frozenset(
    [
        "mlp",
        "gate_proj",
        "up_proj",
        "down_proj",
        "gate_up_proj",
        "fc1",
        "fc2",
        "fc_in",
        "fc_out",
        "c_fc",
        "dense_h_to_4h",
        "dense_4h_to_h",
    ]
)
_ATTENTION_NAMES = frozenset(
    [
        "attn",
        "self_attn",
        "attention",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "qkv_proj",
        "out_proj",
        "query_key_value",
        "c_attn",
        "dense",
    ]
)


def target_roles(arm: Arm) -> frozenset[Role] | None:
    """The roles that the arm adapts; None when a module's name does not say (GPT-2's `c_proj` is in both)."""
    targets = arm.settings["target_modules"]
    if isinstance(targets, str):
        return _PRESET_ROLES[targets]
    roles = [_role_of(name) for name in targets]
    return None if None in roles else frozenset(role for role in roles if role is not None)


def _role_of(module_name: str) -> Role | None:
    """By the last part of the name that is known: `mlp.c_proj` is the MLP's, `attn.c_proj` is attention's."""
    for part in reversed(module_name.split(".")):
        if part in _MLP_NAMES:
            return "mlp"
        if part in _ATTENTION_NAMES:
            return "attention"
    return None
