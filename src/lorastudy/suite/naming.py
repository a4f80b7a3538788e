"""How settings read in the name of an arm."""

import re
from collections.abc import Sequence
from typing import Any

from lorastudy.suite.settings import Settings

_SHORT = {
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "learning_rate": "lr",
    "target_modules": "",
    "quantization": "",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "lora_dropout": "dropout",
    "base_model": "",
    "dataset_path": "",
}


def label(key: str, value: Any) -> str:
    """A setting and its value as part of a name: `r16`, `lr0.0002`, `qkvo`, `warmup_ratio0.1`."""
    return _SHORT.get(key, key) + value_in_name(value)


def value_in_name(value: Any) -> str:
    """A value as part of a name. Equal numbers read alike, so `32` and `32.0` give one name.

    A path is shortened to the last part's stem; what cannot stand in a folder's name becomes a dash.
    """
    if isinstance(value, float):
        text = repr(value).removesuffix(".0")
    elif isinstance(value, tuple):
        text = "-".join(str(item) for item in value)
    elif isinstance(value, bool) or value is None:
        text = {True: "-on", False: "-off", None: "-none"}[value]
    else:
        text = re.sub(r"\.(jsonl?|csv|parquet)$", "", str(value).rstrip("/").rpartition("/")[2])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def varied_keys(settings: Sequence[Settings]) -> tuple[str, ...]:
    """The settings in which these differ, in the order of the reference."""
    return tuple(
        key
        for key in Settings.model_fields
        if any(getattr(one, key) != getattr(settings[0], key) for one in settings[1:])
    )
