"""The values of a row, the same whichever kind of file held them.

JSON is read strictly. Python's JSON reader accepts some bad input and crashes on other; here both are errors with a
place. A repeated key would lose one of its values. A number of thousands of digits, or brackets thousands of levels
deep, make the reader itself fail.

A container adds things that nobody wrote: a null where another row's struct has a field, NaN for an empty cell, an
object of lists in place of a list of objects, or a list inside a CSV cell as JSON or as Python's notation. They are
removed, so the same rows have the same values in every container.
"""

import ast
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lorastudy.errors import DataError
from lorastudy.suite.wording import shown

#: Nested lists and objects within a row. Conversations with function schemas have about ten levels.
MAX_LEVELS = 50

_LIST_START = re.compile(r'\s*(?:\{\s*"data"\s*:\s*)?\[\s*')

_SPACE = re.compile(r"[ \t\n\r]*")

#: The start of a list is sought in at least `_START_LENGTH` characters. A piece cuts tokens of at most `_TOKEN_LENGTH`.
_START_LENGTH, _TOKEN_LENGTH = 4096, 16

_NESTED = (dict, list)


class _KeyTwiceError(ValueError):
    """An object has the same key twice."""


def parsed_line(line: str, where: str) -> Any:
    """The value of one line of JSONL; `where` is `file:line`.

    Raises:
        DataError: as `file:line: cause`, with a column where there is one.
    """
    try:
        return _decoded(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}:{error.colno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {_cause(error)}") from error


def _decoded(text: str) -> Any:
    """The same as the decoder's own `decode`, and faster where no white space surrounds the value."""
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError:
        return _DECODER.decode(text)
    return value if end == len(text) else _DECODER.decode(text)


def list_values(pieces: Iterator[str], name: str) -> Iterator[tuple[Any, str]]:
    """Each element of the one list in a text, or each line of JSONL under the wrong name, with its place.

    The list is the whole text or the value of the key `data`. Only the current element is in memory, unless the text
    begins with another key.

    Raises:
        DataError: as `file:line:column: cause`, or `file[row]: cause` where only the row is known.
    """
    window = _Window(pieces, name)
    while len(window.text) < _START_LENGTH and window.more():
        pass
    start = _LIST_START.match(window.text)
    if start is None:
        yield from _without_list_in_front(window)
        return
    window.position = start.end()
    is_wrapped = window.text[: start.end()].lstrip().startswith("{")
    number = 0
    while window.next_character() != "]" or number:
        yield window.value(number), f"{name}[{number}]"
        number += 1
        if window.next_character() == "]":
            break
        window.expect_comma()
    window.position += 1
    _check_after_list(window, opening='{"data": []' if is_wrapped else "[]")


def _check_after_list(window: "_Window", *, opening: str) -> None:
    """Check that the text after the list closes what was opened before it."""
    rest = window.rest()
    try:
        _DECODER.decode(opening + rest)
    except json.JSONDecodeError as error:
        raise window.invalid(error.msg, window.position + error.pos - len(opening)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{window.name}: {_cause(error)}") from error


def _without_list_in_front(window: "_Window") -> Iterator[tuple[Any, str]]:
    """The elements of a list that is not at the front of its object; else the values of JSONL."""
    while "\n" not in window.text and window.more():
        pass
    first, _, after = window.text.partition("\n")
    is_jsonl = isinstance(parsed_or_none(first), dict) and (after.strip() or window.more())
    if is_jsonl or (values := _inner_list(window)) is None:
        for number, line in enumerate(window.lines(), start=1):
            if line.strip():
                where = f"{window.name}:{number}"
                yield parsed_line(line, where), where
        return
    yield from ((value, f"{window.name}[{index}]") for index, value in enumerate(values))


def _inner_list(window: "_Window") -> list[Any] | None:
    """The list in an object that is the whole text; empty for an empty text. None if more values follow."""
    text = window.rest()
    if not text.strip():
        return []
    try:
        content = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        raise window.invalid(error.msg, window.position + error.pos) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{window.name}: {_cause(error)}") from error
    values = content.get("data", content) if isinstance(content, dict) else content
    if not isinstance(values, list):
        raise DataError(f'{window.name}: expected a list of objects, or {{"data": [...]}}')
    return values


class _Window:
    """The part of a text in memory. `position` is the place of the next character to read."""

    def __init__(self, pieces: Iterator[str], name: str) -> None:
        self.name = name
        self.text = ""
        self.position = 0
        self._pieces = pieces
        self._line, self._column = 1, 1

    def more(self) -> bool:
        """Replace the part already read by another piece; False at the end of the text."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._line, self._column = self._place(self.position)
        self.text = self.text[self.position :] + piece
        self.position = 0
        return True

    def rest(self) -> str:
        """All text not read yet, without moving the position."""
        while self.more():
            pass
        return self.text[self.position :]

    def lines(self) -> Iterator[str]:
        """The lines not read yet."""
        *whole, tail = self.text[self.position :].split("\n")
        yield from whole
        for piece in self._pieces:
            *whole, tail = (tail + piece).split("\n")
            yield from whole
        yield tail

    def next_character(self) -> str:
        """Move to the next character that is not white space, and return it; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.position)
            assert space is not None
            self.position = space.end()
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def expect_comma(self) -> None:
        """Read a comma."""
        if self.next_character() != ",":
            raise self.invalid("Expecting ',' delimiter", self.position)
        self.position += 1
        self.next_character()

    def value(self, number: int) -> Any:
        """Read the next value, element `number` of the list."""
        while True:
            try:
                value, self.position = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                may_go_on = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _TOKEN_LENGTH
                if not (may_go_on and self.more()):
                    raise self.invalid(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{self.name}[{number}]: {_cause(error)}") from error
            else:
                return value

    def invalid(self, cause: str, position: int) -> DataError:
        """The error for a position in the window."""
        line, column = self._place(position)
        return DataError(f"{self.name}:{line}:{column}: not valid JSON: {cause}")

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column of a position in the window."""
        num_breaks = self.text.count("\n", 0, position)
        if not num_breaks:
            return self._line, self._column + position
        return self._line + num_breaks, position - self.text.rindex("\n", 0, position)


def parsed_or_none(text: str) -> Any:
    """The value of JSON inside a row's text; None for text that is not JSON, or too odd to be meant as JSON."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return None if is_too_deep(value) else value


def is_too_deep(value: Any) -> bool:
    """Whether lists and objects are nested more than `MAX_LEVELS` levels deep."""
    level = [value]
    for _ in range(MAX_LEVELS + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Sequence[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, _NESTED)]


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _KeyTwiceError(f"the key {shown(twice)} appears twice in one object; keep one")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_each_key_once)


def _cause(error: Exception) -> str:
    if isinstance(error, _KeyTwiceError):
        return str(error)
    if isinstance(error, RecursionError):
        return "is nested too deep to be read"
    return "holds a number with thousands of digits"


_SWITCHED_OFF = {0, "0", "0.0", "false"}

_SWITCHED_ON = {1, "1", "1.0", "true"}


def is_filled(value: Any) -> bool:
    """Whether the cell has content: not null, NaN, blank text, or an empty list or object."""
    if isinstance(value, str):
        return bool(value.strip())
    value = _of_python(value)
    return not _is_null(value) and value not in ([], {}, ())


def text_of(value: Any) -> str | None:
    """The text of a cell: "" for an empty one, None for a value that is not text.

    A number becomes the text that a CSV file has for it. True and false are refused, because files spell them in
    several ways.
    """
    if isinstance(value, str):
        return value
    value = _of_python(value)
    if _is_null(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(value)


def structure_of(value: Any) -> Any:
    """The list or object of a cell, without what a container adds; None for an empty cell.

    Text is read as JSON, or as a Python literal as pandas writes it into CSV. Text that is neither stays text.
    """
    value = without_nulls(value)
    if isinstance(value, str):
        if not value.strip():
            return None
        value = without_nulls(_parsed(value))
    return None if value in ([], {}) else value


def records_of(value: Any) -> Any:
    """The same as `structure_of`, and an object of equally long lists becomes a list of objects.

    Arrow turns a list of objects into such an object.
    """
    value = structure_of(value)
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        return value
    lengths = {len(column) for column in value.values()}
    if len(lengths) != 1:
        return value
    rows = zip(*value.values(), strict=True)
    return [without_nulls(dict(zip(value, row, strict=True))) for row in rows]


def switch(value: Any) -> bool | None:
    """Whether a cell turns something on or off; None if it does neither."""
    value = _of_python(value)
    key = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(key, str | int | float):
        return None
    return False if key in _SWITCHED_OFF else True if key in _SWITCHED_ON else None


def without_nulls(value: Any) -> Any:
    """The value with plain lists and objects, and without null fields.

    Arrow gives every struct of a column the fields of all structs, so a null field looks like a missing one.
    """
    if isinstance(value, str):
        return value
    value = _of_python(value)
    if isinstance(value, dict):
        items = ((key, without_nulls(item)) for key, item in value.items())
        return {key: item for key, item in items if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return None if _is_null(value) else value


def _of_python(value: Any) -> Any:
    """Scalars and arrays of numpy as plain Python values, without importing numpy."""
    return value.tolist() if type(value).__module__ == "numpy" else value


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _parsed(text: str) -> Any:
    parsed = parsed_or_none(text)
    if parsed is not None or text.lstrip()[:1] not in "[{(":
        return text if parsed is None else parsed
    try:
        literal = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return text
    return text if is_too_deep(literal) else literal
