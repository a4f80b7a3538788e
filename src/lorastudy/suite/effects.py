"""Keys that are right by themselves and change nothing in this suite.

A line without effect is a line that its author believes in. One that another setting makes void is refused;
one that every entry overrides is legal, since that is how entries say what differs, and becomes a note.
The project's file of defaults serves many suites and is not looked at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lorastudy.suite.levels import Given, Level
from lorastudy.suite.printable import printable
from lorastudy.suite.problems import Problems
from lorastudy.suite.settings import Settings


@dataclass(frozen=True, kw_only=True)
class _Needs:
    """Another setting that decides whether a key has an effect, and what to say where it has none."""

    key: str
    holds: Callable[[Any], bool]
    cause: str


_ONLY_4BIT = _Needs(
    key="quantization",
    holds=lambda value: value == "4bit",
    cause="has no effect without quantization: 4bit; remove it",
)
_ONLY_ANSWERS = _Needs(
    key="max_generation_samples",
    holds=lambda value: value > 0,
    cause="has no effect, as max_generation_samples is 0 and nothing is generated; remove it",
)
NEEDED = {
    "bnb_4bit_quant_type": _ONLY_4BIT,
    "bnb_4bit_use_double_quant": _ONLY_4BIT,
    "max_new_tokens": _ONLY_ANSWERS,
    "exact_match_pattern": _ONLY_ANSWERS,
    "eval_fraction": _Needs(
        key="eval_dataset_path",
        holds=lambda value: value is None,
        cause="has no effect, as eval_dataset_path names the held-out rows; keep one",
    ),
    "warmup_ratio": _Needs(
        key="lr_scheduler_type",
        holds=lambda value: value != "constant",
        cause="has no effect with lr_scheduler_type: constant; write constant_with_warmup",
    ),
}


def check_effects(given: Sequence[Given], *, levels: Sequence[Level], problems: Problems) -> None:
    """Note keys that some other setting makes void in every arm that takes them."""
    for key, one in _by_key(given, levels):
        need = NEEDED.get(key)
        if need is None or one.values == (Settings.model_fields[key].default,):
            continue
        takers = [level for level in levels if level.get(key) is one]
        if takers and not any(map(need.holds, _values(takers, need.key))):
            problems.add(one.place, path=one.path, cause=need.cause)


def overridden(given: Sequence[Given], *, levels: Sequence[Level]) -> tuple[str, ...]:
    """One line for each key that no arm takes, because every entry says something else."""
    taken = {id(one) for level in levels for one in level.values()}
    return tuple(
        printable(f"{one.place}: {one.path}: no arm takes this; every entry gives its own")
        for one in given
        if id(one) not in taken and any(value is not None for value in one.values)
    )


def _by_key(given: Sequence[Given], levels: Sequence[Level]) -> list[tuple[str, Given]]:
    keys = {id(one): key for level in levels for key, one in level.items()}
    return [(keys[id(one)], one) for one in given if id(one) in keys]


def _values(levels: Sequence[Level], key: str) -> list[Any]:
    default = Settings.model_fields[key].default
    return [value for level in levels for value in (level[key].values if key in level else (default,))]
