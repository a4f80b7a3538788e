"""JSON from strangers: what Python's own reader lets pass, or breaks at, is an error with its place.

A key that stands twice would lose one of its values; a number of thousands of digits and brackets of thousands
of levels make the reader itself fail.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from lorastudy.errors import DataError
from lorastudy.spec.wording import shown

#: Of lists and objects within a row. Conversations with function schemas have about ten.
MAX_LEVELS = 50

_LIST_START = re.compile(r'\s*(?:\{\s*"data"\s*:\s*)?\[\s*')
_BETWEEN = re.compile(r"\s*,\s*")


class _KeyTwiceError(ValueError):
    """An object has one key twice."""


def parsed_line(line: str, where: str) -> Any:
    """The value of one line of JSONL; `where` is `file:line`.

    Raises:
        DataError: as `file:line: cause`, with a column where there is one.
    """
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}:{error.colno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {_cause(error)}") from error


def parsed_file(text: str, name: str) -> Any:
    """The value of a whole file.

    Raises:
        DataError: as `file:line:column: cause`, or `file[row]: cause` where only the row can be told.
        json.JSONDecodeError: further values follow the first.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise
        raise DataError(f"{name}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        row = _first_bad_row(text)
        raise DataError(f"{name}{'' if row is None else f'[{row}]'}: {_cause(error)}") from error


def parsed_or_none(text: str) -> Any:
    """The value of JSON within a row's text; None for what is no JSON, or too odd to be meant as such."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return None if is_too_deep(value) else value


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects lie in each other more than `MAX_LEVELS` levels deep."""
    level = [value]
    for _ in range(MAX_LEVELS + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterator[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in inner if isinstance(item, dict | list))


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _KeyTwiceError(f"the key {shown(twice)} stands twice in one object; keep one")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_each_key_once)


def _cause(error: Exception) -> str:
    if isinstance(error, _KeyTwiceError):
        return str(error)
    if isinstance(error, RecursionError):
        return "is nested too deep to be read"
    return "holds a number with thousands of digits"


def _first_bad_row(text: str) -> int | None:
    """The position of the first element of the file's list that cannot be read; None where it has no list."""
    start = _LIST_START.match(text)
    position, row = (start.end() if start else len(text)), 0
    while position < len(text):
        try:
            _, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return row
        between = _BETWEEN.match(text, position)
        position = between.end() if between else len(text)
        row += 1
    return None
