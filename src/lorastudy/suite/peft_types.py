"""PEFT's other adapters, which an arm takes by PEFT's own configuration: `peft: {peft_type: IA3}`.

The keys and defaults are PEFT's; a test compares them with PEFT's classes, since importing PEFT takes a second. Left out are
the keys that a suite has under their own names (`target_modules`, `modules_to_save`, ...) and those for debugging.
A configuration is kept without keys at their defaults, so that each spelling is one experiment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorastudy.suite.wording import as_written, did_you_mean, shown

Value = int | float | bool | tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class PeftType:
    """One of PEFT's adapters."""

    title: str
    config: str
    """The name of its class of configuration in PEFT."""
    keys: Mapping[str, Value]
    """Its keys with PEFT's defaults."""
    has_quantised_layers: bool = False
    """Whether PEFT has it for layers of bitsandbytes."""


PEFT_TYPES: Mapping[str, PeftType] = {
    "IA3": PeftType(title="IA3", config="IA3Config", keys={"feedforward_modules": None}, has_quantised_layers=True),
    "LOHA": PeftType(
        title="LoHa", config="LoHaConfig", keys={"r": 8, "alpha": 8, "rank_dropout": 0.0, "module_dropout": 0.0}
    ),
    "LOKR": PeftType(
        title="LoKr", config="LoKrConfig",
        keys={
            "r": 8, "alpha": 8, "rank_dropout": 0.0, "module_dropout": 0.0, "decompose_both": False, "decompose_factor": -1,
            "rank_dropout_scale": False,
        },
    ),
    "VERA": PeftType(
        title="VeRA", config="VeraConfig",
        keys={"r": 256, "projection_prng_key": 0, "save_projection": True, "vera_dropout": 0.0, "d_initial": 0.1},
    ),
    "OFT": PeftType(
        title="OFT", config="OFTConfig",
        keys={
            "r": 0, "oft_block_size": 32, "module_dropout": 0.0, "coft": False, "eps": 6e-05, "block_share": False,
            "use_cayley_neumann": True, "num_cayley_neumann_terms": 5,
        },
    ),
    "HRA": PeftType(title="HRA", config="HRAConfig", keys={"r": 8, "apply_GS": False}),
    "FOURIERFT": PeftType(
        title="FourierFT", config="FourierFTConfig", keys={"n_frequency": 1000, "scaling": 150.0, "random_loc_seed": 777}
    ),
    "RANDLORA": PeftType(
        title="RandLoRA", config="RandLoraConfig",
        keys={
            "r": 32, "projection_prng_key": 0, "save_projection": True, "sparse": False, "very_sparse": False,
            "randlora_dropout": 0.0, "randlora_alpha": 640,
        },
        has_quantised_layers=True,
    ),
    "C3A": PeftType(title="C3A", config="C3AConfig", keys={"block_size": 256}),
    "DELORA": PeftType(title="DeLoRA", config="DeloraConfig", keys={"r": 8, "delora_lambda": 15, "module_dropout": 0.0}),
}  # fmt: skip

_VIRTUAL_TOKENS = "puts tokens of its own before each row, and rows here are those that the other arms see"

#: PEFT's adapters that no arm can have, with the reason.
REFUSED_TYPES: Mapping[str, str] = {
    "LORA": "has keys of its own here, such as lora_rank; remove peft",
    "ADALORA": "changes its ranks between the steps of PEFT's own loop",
    "BOFT": "reads numbers while it is made, so its size cannot be counted before training",
    **dict.fromkeys(
        ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"),
        _VIRTUAL_TOKENS,
    ),
}


def canonical(given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with its type in capitals and without keys at PEFT's defaults. An empty one stays empty.

    Raises:
        ValueError: the type or a key is not known, or a value is of the wrong kind. The message begins with the inner key.
    """
    if not given:
        return {}
    name = given.get("peft_type")
    if name is None:
        raise ValueError(f"needs peft_type, one of {', '.join(PEFT_TYPES)}")
    upper = str(name).upper()
    if upper in REFUSED_TYPES:
        raise ValueError(f"peft_type: {upper} {REFUSED_TYPES[upper]}")
    if upper not in PEFT_TYPES:
        raise ValueError(
            f"peft_type: must be one of {', '.join(PEFT_TYPES)}, not {name!r}{did_you_mean(upper, PEFT_TYPES)}"
        )
    keys = PEFT_TYPES[upper].keys
    values = {key: _checked(key, value, upper=upper) for key, value in given.items() if key != "peft_type"}
    return {
        "peft_type": upper,
        **{key: values[key] for key in keys if key in values and values[key] != keys[key]},
    }


def _checked(key: str, value: Any, *, upper: str) -> Value:
    keys = PEFT_TYPES[upper].keys
    if key in _OF_THE_SUITE:
        raise ValueError(f"{key}: is a key of the suite; write it beside peft")
    if key not in keys:
        raise ValueError(f"{key}: {upper} has no such key{did_you_mean(key, keys)}; it has {', '.join(keys)}")
    default = keys[key]
    if isinstance(default, bool):
        is_right, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        is_right, wanted = type(value) is int, "a whole number"
    elif isinstance(default, float):
        is_right, wanted = type(value) in {int, float}, "a number"
    else:
        is_right = value is None or (
            isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
        )
        wanted = "a list of text"
    if not is_right:
        raise ValueError(f"{key}: must be {wanted}, not {shown(value)}")
    if isinstance(default, float):
        return float(value)
    return tuple(sorted(set(value))) if isinstance(value, list | tuple) else value


#: Keys of PEFT's configurations that a suite has under the same names.
_OF_THE_SUITE = frozenset({"target_modules", "layers_to_transform", "exclude_modules", "modules_to_save"})


def peft_title(peft: Mapping[str, Any]) -> str:
    """`LoHa (r 4)`: the adapter in the field's words, with what is not at its default. Empty without a configuration."""
    if not peft:
        return ""
    own = [f"{key} {_as_words(value)}" for key, value in peft.items() if key != "peft_type"]
    title = PEFT_TYPES[peft["peft_type"]].title
    return f"{title} ({', '.join(own)})" if own else title


def _as_words(value: Value) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(value)
    return as_written(value)
