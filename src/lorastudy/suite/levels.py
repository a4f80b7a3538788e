"""The levels of a suite file, and how a nearer level overrides a farther one.

types' defaults < `configs/default_config.yaml` < the top of the suite < an entry (or `factors`).

A key has one value or several; each of several values makes an arm. A level is a dict from keys to such `Given`s. So
`experiments`, `factors` and a list of learning rates all work the same way: merge the levels, then combine the values.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from lorastudy.suite.methods import SAID_BY_METHOD
from lorastudy.suite.safe_text import odd_letter
from lorastudy.suite.schedules import WARMUP_KEYS
from lorastudy.suite.settings import AUTO, LENGTH_KEYS, AskedSettings
from lorastudy.suite.suite import MAX_EXPERIMENTS, EntryKeys, SuiteKeys
from lorastudy.suite.wording import checked, did_you_mean, in_words, properties, shown
from lorastudy.suite.yaml_reading import Node, Place, Problems, plain

#: Settings that may be a list at every level. Under `factors`, every setting is a list.
LISTABLE = frozenset({"learning_rate"})

#: Other names for our keys, from other tools or from haste.
FOREIGN_NAMES: Mapping[str, str] = {
    "r": "lora_rank", "lora_r": "lora_rank", "rank": "lora_rank", "ranks": "lora_rank",
    "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora", "dora": "use_dora",
    "peft_method": "method", "peft_type": "method", "loraplus_ratio": "loraplus_lr_ratio", "init_weights": "init_lora_weights",
    "lr": "learning_rate", "learning_rates": "learning_rate", "scheduler": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type", "scheduler_kwargs": "lr_scheduler_kwargs", "lr_scheduler_args": "lr_scheduler_kwargs",
    "num_warmup_steps": "warmup_steps", "optimizer": "optim", "neftune_alpha": "neftune_noise_alpha",
    "label_smoothing": "label_smoothing_factor",
    "train_sampling_strategy": "group_by_length",
    "epochs": "num_train_epochs", "num_epochs": "num_train_epochs", "steps": "max_steps",
    "batch_size": "per_device_train_batch_size", "micro_batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size", "grad_accum": "gradient_accumulation_steps",
    "max_length": "max_seq_length", "seq_length": "max_seq_length", "sequence_len": "max_seq_length",
    "cutoff_len": "max_seq_length", "model": "base_model", "model_name": "base_model",
    "model_name_or_path": "base_model", "dataset": "dataset_path", "data_path": "dataset_path",
    "train_file": "dataset_path", "eval_dataset": "eval_dataset_path", "validation_file": "eval_dataset_path",
    "modules": "target_modules", "lora_target_modules": "target_modules",
    "load_in_4bit": "quantization", "load_in_8bit": "quantization", "precision": "quantization",
    "seed": "seeds", "arms": "experiments", "runs": "experiments",
    "grid": "factors", "sweep": "factors", "parameters": "factors",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Given:
    """The checked values of one key, and its place in the file."""

    values: tuple[Any, ...]
    place: Place
    path: str


Level = dict[str, Given]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The keys that a level allows, and their names in messages."""

    models: tuple[type[BaseModel], ...]
    prefix: str = ""
    misplaced: Mapping[str, str] = field(default_factory=dict)
    """Keys that belong to another level, with the message for each."""
    lists: bool = False
    """Whether every key takes a list of values, as under `factors`."""
    label: Callable[[str], str] | None = None
    """Makes a key's name in messages, such as its flag; None uses prefix and key."""

    def path(self, key: str) -> str:
        """The key's name in messages."""
        return self.label(key) if self.label else self.prefix + key

    def known(self) -> list[str]:
        """All keys of this level."""
        return [key for model in self.models for key in properties(model)]


_AT_THE_TOP = dict.fromkeys(properties(SuiteKeys), "stands at the top of the file, not here")


def read_level(values: Mapping[str, Node], *, scope: Scope, problems: Problems) -> Level:
    """The keys of a level with their values. Wrong keys and values are noted and left out."""
    level: Level = {}
    for key, node in values.items():
        if problems.are_enough:
            break
        model = next((model for model in scope.models if key in model.model_fields), None)
        if model is None or key in scope.misplaced:
            problems.add(node.key_place, path=scope.path(key), cause=_why_not_known(key, scope))
            continue
        found = _values(model, key, node=node, scope=scope, problems=problems)
        if found is not None:
            level[key] = Given(values=found, place=node.place, path=scope.path(key))
    _refuse_two_lengths(level, problems)
    return level


def merge(*levels: Level) -> Level:
    """The merged levels; later ones override. A length in epochs also replaces one in steps, and vice versa.

    So does a warm-up as a share replace one in steps. A short name of a method replaces keys of methods that a farther level gives at their defaults, as a file of all
    defaults does.
    """
    merged: Level = {}
    for level in levels:
        if any(_says_something(level.get(key)) for key in LENGTH_KEYS):
            for key in LENGTH_KEYS:
                merged.pop(key, None)
        if any(key in level for key in WARMUP_KEYS):
            for key in WARMUP_KEYS:
                merged.pop(key, None)
        if _says_something(level.get("method")):
            for key, default in SAID_BY_METHOD.items():
                if key in merged and merged[key].values == (default,):
                    merged.pop(key)
        for key, given in level.items():
            merged.pop(key, None)  # so that combinations follow the key order of the nearest level
            merged[key] = given
    return merged


def num_combinations(level: Level) -> int:
    """The number of `combinations`."""
    return math.prod(len(given.values) for given in level.values())


def combinations(level: Level) -> Iterator[dict[str, Any]]:
    """Every combination of one value for each key; the last key varies fastest."""
    for values in itertools.product(*(given.values for given in level.values())):
        yield dict(zip(level, values, strict=True))


def entry_scope(prefix: str) -> Scope:
    """Keys of an entry under `experiments`."""
    return Scope(models=(EntryKeys, AskedSettings), prefix=prefix, misplaced=_AT_THE_TOP)


def factors_scope() -> Scope:
    """Keys under `factors`."""
    beside = dict.fromkeys(properties(EntryKeys), "is not a factor; it stands at the top of the file")
    no_name = {"name": "is not a factor; arms of factors are named by the values that differ"}
    return Scope(
        models=(AskedSettings,), prefix="factors.", misplaced={**_AT_THE_TOP, **beside, **no_name}, lists=True
    )


def defaults_scope() -> Scope:
    """Keys of a file of defaults: the settings and `seeds`."""
    here = "is not a default; it belongs in a suite file"
    return Scope(
        models=(EntryKeys, AskedSettings), misplaced=dict.fromkeys([*properties(SuiteKeys), "name"], here)
    )


def top_scope() -> Scope:
    """Keys at the top of a suite file."""
    name = "names an entry under experiments; did you mean suite_name?"
    return Scope(models=(SuiteKeys, EntryKeys, AskedSettings), misplaced={"name": name})


def _why_not_known(key: str, scope: Scope) -> str:
    if key in scope.misplaced:
        return scope.misplaced[key]
    if key == "<<":
        return "YAML 1.2 has no merge keys; an entry takes over the top of the file without one"
    known = [name for name in scope.known() if name not in scope.misplaced]
    translated = FOREIGN_NAMES.get(key.casefold())
    if translated in known:
        return f"unknown key (did you mean {translated}?)"
    near = did_you_mean(key, known) or "; docs/suite-file.md lists all keys"
    return f"unknown key{near}{odd_letter(key)}"


def _values(
    model: type[BaseModel], key: str, *, node: Node, scope: Scope, problems: Problems
) -> tuple[Any, ...] | None:
    """The checked value or values; None if one of them is wrong."""
    items: tuple[Node, ...] = (node,)
    several = scope.lists or (key in LISTABLE and isinstance(node.value, tuple))
    if several:
        if not isinstance(node.value, tuple) or not node.value:
            wanted = f"a list of values, each {in_words(properties(model)[key])}"
            cause = f"must be {wanted}, not {shown(plain(node))}"
            problems.add(node.place, path=scope.path(key), cause=cause)
            return None
        items = node.value
    if len(items) > MAX_EXPERIMENTS:
        cause = f"has {len(items)} values; a suite has at most {MAX_EXPERIMENTS} experiments"
        problems.add(node.place, path=scope.path(key), cause=cause)
        return None
    values: list[Any] = []
    for number, item in enumerate(items):
        path = f"{scope.path(key)}[{number}]" if several else scope.path(key)
        try:
            value = checked(model, key, value=plain(item))
        except ValueError as error:
            _note(item, path, cause=str(error), problems=problems)
            continue
        if value in values:
            problems.add(
                item.place, path=path, cause=f"{shown(value)} appears twice; equal values give equal arms"
            )
        values.append(value)
    if len(values) > 1 and AUTO in values:
        cause = f"{AUTO} makes a list of its own; give it alone, or the rates without it"
        problems.add(node.place, path=scope.path(key), cause=cause)
    return tuple(values) if len(values) == len(items) else None


def _note(item: Node, path: str, *, cause: str, problems: Problems) -> None:
    """Note what is wrong with a value; in a mapping, at the key with which the cause begins."""
    inner, _, rest = cause.partition(": ")
    if isinstance(item.value, Mapping) and inner in item.value:
        problems.add(item.value[inner].key_place, path=f"{path}.{inner}", cause=rest)
    else:
        problems.add(item.place, path=path, cause=cause)


def _refuse_two_lengths(level: Level, problems: Problems) -> None:
    first, second = (level.get(key) for key in LENGTH_KEYS)
    if first and second and _says_something(first) and _says_something(second):
        cause = f"{first.path} and {second.path} both say how long to train; keep one"
        later = max(first, second, key=lambda given: (given.place.line or 0, given.place.column or 0))
        problems.add(later.place, path=later.path, cause=cause)


def _says_something(given: Given | None) -> bool:
    return given is not None and any(value is not None for value in given.values)
