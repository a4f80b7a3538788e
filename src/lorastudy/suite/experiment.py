"""An experiment, which is one arm with one seed, fully resolved and frozen; and the tagged hash that is its id."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

from lorastudy.suite.methods import METHOD_KEYS, TRAINING_KEYS
from lorastudy.suite.settings import ARM_KEYS, Settings, keys_without_effect

#: Increase this whenever the code turns the same rows into other tokens, masks or splits;
#: `tests/unit/data/test_data_version.py` checks it. The store has no number for version 1.
DATA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Fingerprints of everything that an experiment reads, so that its id depends on contents and not on paths."""

    base_model: str
    dataset: str
    eval_dataset: str | None = None
    forgetting_dataset: str | None = None
    test_dataset: str | None = None
    data_version: int | None = None
    """`DATA_VERSION` of the code that reads the rows; None in runs from before it was recorded."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One arm with one seed. `name`, `arm` and the paths in `settings` are not part of its identity."""

    name: str
    arm: str
    experiment_type: str
    seed: int
    settings: Settings
    sources: Sources

    @cached_property
    def id(self) -> str:
        """`exp-` and 16 hex digits: the hash of the seed, the settings that matter, and the sources (`tagged_hash`)."""
        body = {
            "seed": self.seed,
            "settings": _identifying(self.settings),
            "sources": _without_absent(vars(self.sources), _LATER_SOURCES),
        }
        return tagged_hash("exp", body)

    @property
    def data_seed(self) -> int:
        """The seed for the order of the training rows: `data_seed` of the settings, else the experiment's seed."""
        return self.seed if self.settings.data_seed is None else self.settings.data_seed

    @cached_property
    def data_key(self) -> str:
        """Equal for experiments that differ only in their arm and in the order of their rows."""
        settings = self.settings.model_dump(mode="json")
        shared = {key: value for key, value in settings.items() if key not in {*ARM_KEYS, "data_seed"}}
        return tagged_hash("data", {"settings": shared, "sources": vars(self.sources)})

    @cached_property
    def pack_key(self) -> str:
        """Equal for experiments that may train together: same base, precision, data and batch, in any order of the rows.

        An experiment whose method only the reference engine trains is alone in its pack.
        """
        alone = [] if self.settings.arm_method.only_in_reference is None else [self.id]
        return tagged_hash("pack", [self.data_key, *alone])

    @property
    def alike_key(self) -> str:
        """Equal for experiments whose packs differ only in their arms and in the order of the rows."""
        alone = self.settings.arm_method.only_in_reference is not None
        return tagged_hash("alike", [self.data_key, *([self.arm] if alone else [])])

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values; `from_json` is its inverse."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"settings": self.settings.model_dump(mode="json"), "sources": vars(self.sources)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The experiment that `to_json` wrote."""
        settings = Settings.model_validate_json(json.dumps(values["settings"]))
        return cls(**{**values, "settings": settings, "sources": Sources(**values["sources"])})


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def tagged_hash(tag: str, value: object) -> str:
    """`<tag>-<16 hex digits>`: SHA-256 of the tag and the canonical JSON. Equal values with different tags differ."""
    digest = hashlib.sha256(f"{tag}\n{canonical_json(value)}".encode()).hexdigest()
    return f"{tag}-{digest[:16]}"


#: Keys that are newer than the first stored results, with the value that they had before they existed. They do not enter
#: the hash at that value, so old ids stay valid.
_LATER_SOURCES: Mapping[str, Any] = {"test_dataset": None, "data_version": None}
_LATER_SETTINGS: Mapping[str, Any] = {
    "test_fraction": None,
    "lr_scheduler_kwargs": {},
    "warmup_steps": 0,
    "train_on_inputs": False,
    "group_by_length": False,
    "exclude_modules": None,
    "label_smoothing_factor": 0.0,
    **METHOD_KEYS,
    **TRAINING_KEYS,
}


def without_later(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without newer keys that say what every run did before they existed; older results lack these keys."""
    return _without_absent(settings, _LATER_SETTINGS)


def _without_absent(values: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in before or value != before[key]}


def _identifying(settings: Settings) -> dict[str, Any]:
    """The settings by their effect: alpha as a number, no paths, no layout of the work, no key without effect."""
    values = settings.model_dump(mode="json")
    values["lora_alpha"] = settings.lora_alpha_value
    if settings.max_steps is None and settings.num_train_epochs is None:
        values["num_train_epochs"] = 1.0
    if settings.eval_dataset_path is not None:
        values["eval_fraction"] = None
    if settings.max_generation_samples == 0:
        values["max_new_tokens"] = values["exact_match_pattern"] = None
    if settings.prompt_format == "auto":
        del values["prompt_format"]  # with a chat template, `expand` has replaced `auto` by `chat`
    if settings.quantization != "4bit":
        values["bnb_4bit_quant_type"] = values["bnb_4bit_use_double_quant"] = None
    without_effect = keys_without_effect(values) | settings.arm_method.idle_keys
    acting = {key: value for key, value in values.items() if key not in without_effect}
    return _without_absent(acting, _LATER_SETTINGS)
