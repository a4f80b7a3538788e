"""Names of arms from what is varied: `r16_lr0.0002`. They are folder names; people read labels (`suite/labels.py`)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorastudy.suite.methods import METHOD_KEYS
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
    "lr_scheduler_kwargs": "",
    "optim": "",
    "neftune_noise_alpha": "neftune",
    "base_model": "",
    "dataset_path": "",
}


def label(key: str, value: Any) -> str:
    """A setting and its value as part of a name: `r16`, `lr0.0002`, `qkvo`, `warmup_ratio0.1`."""
    return _SHORT.get(key, key) + value_in_name(value)


def names_of_varied(settings: Settings, varied: Sequence[str]) -> list[str]:
    """The parts of a name that say the varied settings: `[r16, lr0.0002]`. All keys of the method are one part: `dora`.

    Full fine-tuning has no keys of an adapter, so only its method and the other keys say something: `[full, lr2e-05]`.
    """
    varied = [key for key in varied if key not in settings.arm_method.idle_keys - METHOD_KEYS.keys()]
    parts = [
        _without_odd_characters(settings.arm_method.in_name)
        if key in METHOD_KEYS
        else label(key, getattr(settings, key))
        for key in varied
    ]
    return list(dict.fromkeys(parts))


def value_in_name(value: Any) -> str:
    """A value as part of a name. Equal numbers give equal names: `32` and `32.0` are both `32`.

    A path is shortened to the stem of its last part. Characters that a folder's name cannot have become a dash.
    """
    if isinstance(value, float):
        text = repr(value).removesuffix(".0")
    elif isinstance(value, tuple):
        text = "-".join(str(item) for item in value)
    elif isinstance(value, Mapping):
        text = "-".join(f"{key}{value_in_name(item)}" for key, item in value.items()) or "default"
    elif isinstance(value, bool) or value is None:
        text = {True: "-on", False: "-off", None: "-none"}[value]
    else:
        text = re.sub(r"\.(jsonl?|csv|parquet)$", "", str(value).rstrip("/").rpartition("/")[2])
    return _without_odd_characters(text)


def _without_odd_characters(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def varied_keys(settings: Sequence[Settings]) -> tuple[str, ...]:
    """The keys in which these settings differ, in the order of the fields."""
    return tuple(
        key
        for key in Settings.model_fields
        if any(getattr(one, key) != getattr(settings[0], key) for one in settings[1:])
    )
