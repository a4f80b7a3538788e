"""JSON from strangers: what Python's own reader lets pass, or breaks at, is an error with its place.

A key that stands twice would lose one of its values; a number of thousands of digits and brackets of thousands
of levels make the reader itself fail.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lorastudy.errors import DataError
from lorastudy.suite.wording import shown

#: Of lists and objects within a row. Conversations with function schemas have about ten.
MAX_LEVELS = 50

_LIST_START = re.compile(r'\s*(?:\{\s*"data"\s*:\s*)?\[\s*')
_SPACE = re.compile(r"[ \t\n\r]*")
#: Characters among which a list begins, and of the longest token that a piece of the text may cut in two.
_START_LENGTH, _TOKEN_LENGTH = 4096, 16
_NESTED = (dict, list)


class _KeyTwiceError(ValueError):
    """An object has one key twice."""


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
    """As the decoder's own `decode`, faster where no white space stands around the value."""
    try:
        value, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError:
        return _DECODER.decode(text)
    return value if end == len(text) else _DECODER.decode(text)


def list_values(pieces: Iterator[str], name: str) -> Iterator[tuple[Any, str]]:
    """Each element of the one list in a text, and where it stands; or, under the wrong name, each line of JSONL.

    The list is the whole of the text or stands under the key `data`. Only the element under way is held, except of a
    text that begins with another key.

    Raises:
        DataError: as `file:line:column: cause`, or `file[row]: cause` where only the row can be told.
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
    """Nothing, when what follows the list ends what was opened before it."""
    rest = window.rest()
    try:
        _DECODER.decode(opening + rest)
    except json.JSONDecodeError as error:
        raise window.invalid(error.msg, window.position + error.pos - len(opening)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{window.name}: {_cause(error)}") from error


def _without_list_in_front(window: "_Window") -> Iterator[tuple[Any, str]]:
    """Of one object with the list further inside; else of JSONL, several values one after another."""
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
    """The list of an object that is the whole text; none of its elements in an empty text. None where more values follow."""
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
    """The part of a text that is under way; `position` is how far it is read."""

    def __init__(self, pieces: Iterator[str], name: str) -> None:
        self.name = name
        self.text = ""
        self.position = 0
        self._pieces = pieces
        self._line, self._column = 1, 1

    def more(self) -> bool:
        """Take another piece in place of what was read; False at the end of the text."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._line, self._column = self._place(self.position)
        self.text = self.text[self.position :] + piece
        self.position = 0
        return True

    def rest(self) -> str:
        """All of the text that is not read yet; it stays to be read."""
        while self.more():
            pass
        return self.text[self.position :]

    def lines(self) -> Iterator[str]:
        """The lines that are not read yet."""
        *whole, tail = self.text[self.position :].split("\n")
        yield from whole
        for piece in self._pieces:
            *whole, tail = (tail + piece).split("\n")
            yield from whole
        yield tail

    def next_character(self) -> str:
        """The next one that is no white space, which becomes the next to be read; empty at the end."""
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
        """What to raise of the text at a position of the window."""
        line, column = self._place(position)
        return DataError(f"{self.name}:{line}:{column}: not valid JSON: {cause}")

    def _place(self, position: int) -> tuple[int, int]:
        """Line and column of a position in the window."""
        num_breaks = self.text.count("\n", 0, position)
        if not num_breaks:
            return self._line, self._column + position
        return self._line + num_breaks, position - self.text.rindex("\n", 0, position)


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


def _inside(value: Any) -> Sequence[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, _NESTED)]


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
