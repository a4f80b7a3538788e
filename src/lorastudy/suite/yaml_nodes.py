"""Values that know where they stand, and what an unquoted scalar means.

Plain scalars are resolved by the core schema of YAML 1.2 (section 10.3.2): `1e-4` is a number; `off`, `no`
and `1_000` are text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorastudy.suite.problems import Place

#: Python itself stops at 4300 digits, with an error of another kind.
_MAX_DIGITS = 100

_CONSTANTS: dict[str, bool | float | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((s + w for s in ("", "+") for w in (".inf", ".Inf", ".INF")), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A value with the place where it begins; within a mapping also where its key stands."""

    value: "str | int | float | bool | tuple[Node, ...] | Mapping[str, Node] | None"
    place: Place
    key_place: Place


def node_from_value(value: object, place: Place) -> Node:
    """The tree that a file would give, for a value of Python; every part of it stands at the one place."""
    inner: Any = value
    if isinstance(value, Mapping):
        inner = {str(key): node_from_value(item, place) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        inner = tuple(node_from_value(item, place) for item in value)
    elif isinstance(value, Path):
        inner = str(value)
    return Node(value=inner, place=place, key_place=place)


def plain(node: Node) -> Any:
    """The value without its places: lists, dicts and scalars."""
    if isinstance(node.value, tuple):
        return [plain(item) for item in node.value]
    if isinstance(node.value, Mapping):
        return {key: plain(item) for key, item in node.value.items()}
    return node.value


def resolve_scalar(text: str) -> str | int | float | bool | None:
    """What a plain scalar means.

    Raises:
        ValueError: a number with more than 100 digits.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    is_integer = _INTEGER.fullmatch(text)
    if not is_integer and not _FLOAT.fullmatch(text):
        return text
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number with more than {_MAX_DIGITS} digits")
    if not is_integer:
        return float(text)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
