"""YAML files as trees of values that know their line and column, and the problems found in them.

The tree is built from the parser's events, without a constructor. So every key and value keeps its position, a
duplicate key is reported with both lines, and size, depth and aliases are bounded during reading, before memory runs
out. The reader accepts only a part of YAML: no tags, only text keys, one document. Plain scalars follow the core schema
of YAML 1.2 (section 10.3.2): `1e-4` is a number; `off`, `no` and `1_000` are text.

A user who can fix only one mistake per attempt loses patience at the third. So the readers of a file note each problem
with its place and continue; `Problems.raise_if_any` finally raises one error with all of them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorastudy.errors import SuiteFileError
from lorastudy.suite.safe_text import printable

#: The most problems that are shown. A file with more has one mistake, repeated many times.
MAX_TOLD = 100
#: The longest line of a message. Without a limit it could be as long as the file, because a key or value can be.
MAX_CHARACTERS = 500


MAX_BYTES = 1_000_000

MAX_DEPTH = 20

#: Aliases count as expanded: ten lines of aliases to aliases make a billion values ("billion laughs").
MAX_VALUES = 100_000


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place in a file, with line and column (both from 1), or a source without lines, such as flags."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problems:
    """The problems found so far. They are shown by file in the order of discovery, then by line and column."""

    _found: list[tuple[Place, str]] = field(default_factory=list)

    def add(self, place: Place, *, cause: str, path: str = "") -> None:
        """Note one problem. `path` names the key or the flag, such as `experiments[0].lora_rank`."""
        self._found.append((place, f"{path}: {cause}" if path else cause))

    @property
    def are_none(self) -> bool:
        """Whether there is no problem so far."""
        return not self._found

    @property
    def are_enough(self) -> bool:
        """Whether there are more problems than will be shown, so that further checks are useless."""
        return len(self._found) > MAX_TOLD

    def raise_if_any(self) -> None:
        """Raise one error with all problems.

        Raises:
            SuiteFileError: there is a problem.
        """
        if not self._found:
            return
        sources = list(dict.fromkeys(place.source for place, _ in self._found))
        in_order = sorted(
            self._found,
            key=lambda found: (sources.index(found[0].source), found[0].line or 0, found[0].column or 0),
        )
        if len(in_order) > MAX_TOLD:
            place, _ = in_order[MAX_TOLD]
            in_order[MAX_TOLD:] = [(place, "and more problems from here on; fix those above first")]
        told = (printable(f"{place}: {_shortened(text)}") for place, text in in_order)
        raise SuiteFileError(list(dict.fromkeys(told)))


def _shortened(text: str) -> str:
    half = MAX_CHARACTERS // 2
    return text if len(text) <= MAX_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A value with the place where it begins, and, in a mapping, the place of its key."""

    value: "str | int | float | bool | tuple[Node, ...] | Mapping[str, Node] | None"
    place: Place
    key_place: Place


def read_yaml(path: Path, problems: Problems) -> Node | None:
    """The file's document; None if it cannot be read, with the reason added to `problems`."""
    text = _text(path, problems)
    if text is None:
        return None
    builder = _Builder(source=str(path), problems=problems)
    try:
        for event in _events(text):
            builder.take(event)
    except _UnreadableError as error:
        line, column = error.at
        problems.add(Place(source=str(path), line=line, column=column), cause=error.cause)
        return None
    if builder.document is None:
        problems.add(Place(source=str(path), line=1, column=1), cause="the file is empty")
    return builder.document


class _UnreadableError(Exception):
    """The rest of the file cannot be read. `at` is line and column, counted from 1."""

    def __init__(self, cause: str, *, at: tuple[int, int]) -> None:
        super().__init__(cause)
        self.cause = cause
        self.at = at


def _text(path: Path, problems: Problems) -> str | None:
    content = _content(path, problems)
    if content is None:
        return None
    start = Place(source=str(path), line=1, column=1)
    if len(content) > MAX_BYTES:
        problems.add(start, cause=f"has more than {MAX_BYTES} bytes; a suite file has at most that many")
        return None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        problems.add(start, cause="is UTF-16 text; save the file as UTF-8")
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _line_and_column(content[: error.start].decode("utf-8", "replace"))
        place = Place(source=str(path), line=line, column=column)
        problems.add(place, cause="is not UTF-8 text; save the file as UTF-8")
        return None


def _content(path: Path, problems: Problems) -> bytes | None:
    """The file's bytes, at most one more than allowed, because a device such as /dev/zero never ends."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        problems.add(Place(source=str(path)), cause="there is no such file" + _suites_in(path.parent))
    except IsADirectoryError:
        problems.add(Place(source=str(path)), cause="is a folder, not a file" + _suites_in(path))
    except (OSError, ValueError) as error:
        problems.add(Place(source=str(path)), cause=f"cannot be read: {error}")
    return None


def _suites_in(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("[!.]*.yaml"))[:10] if folder.is_dir() else []
    return f"; in {folder} there are: {', '.join(names)}" if names else ""


def _line_and_column(text_before: str) -> tuple[int, int]:
    return text_before.count("\n") + 1, len(text_before) - text_before.rfind("\n")


def _position(mark: Any) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def _events(text: str) -> Iterator[Any]:
    """The parser's events. Its errors become `_UnreadableError`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError
    from ruamel.yaml.reader import ReaderError

    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise _UnreadableError(f"is not YAML: {reason}", at=_position(mark) if mark else (1, 1)) from error
    except ReaderError as error:
        at = _line_and_column(text[: error.position])
        raise _UnreadableError("holds a character that YAML does not allow", at=at) from error
    except (ValueError, OverflowError) as error:  # the scanner's own chr() on an escape such as "\UFFFFFFFF"
        raise _UnreadableError(f"is not YAML: {error}", at=(1, 1)) from error


@dataclass(kw_only=True)
class _Frame:
    """A list or mapping that is still open. In a mapping, keys and values alternate."""

    event: Any
    nodes: list[Node] = field(default_factory=list)


@dataclass(kw_only=True)
class _Builder:
    """Builds the tree from events, in order; holds the lists and mappings that are still open."""

    source: str
    problems: Problems
    document: Node | None = None
    _open: list[_Frame] = field(default_factory=list)
    _anchors: dict[str, Node] = field(default_factory=dict)
    _num_values: int = 0

    def take(self, event: Any) -> None:
        """Add one event to the tree. Events of the stream itself carry no value."""
        kind = type(event).__name__
        if kind == "DocumentStartEvent" and self.document is not None:
            raise _UnreadableError(
                "a second document begins; a suite is one document", at=_position(event.start_mark)
            )
        if kind in {"MappingStartEvent", "SequenceStartEvent"}:
            self._open.append(_Frame(event=event))
            self._refuse_deeper(len(self._open), event)
        elif kind in {"MappingEndEvent", "SequenceEndEvent"}:
            self._close()
        elif kind == "ScalarEvent":
            self._put(self._scalar(event), event)
        elif kind == "AliasEvent":
            self._put(self._alias(event), event)

    def _place(self, event: Any) -> Place:
        line, column = _position(event.start_mark)
        return Place(source=self.source, line=line, column=column)

    def _node(self, value: Any, event: Any) -> Node:
        place = self._place(event)
        if event.tag is not None:
            self.problems.add(
                place, cause=f"the tag {event.tag} is not allowed; a suite file holds plain values"
            )
        return Node(value=value, place=place, key_place=place)

    def _scalar(self, event: Any) -> Node:
        value = event.value
        if any("\ud800" <= character <= "\udfff" for character in value):
            self.problems.add(self._place(event), cause="holds half of a surrogate pair, which is not text")
        if event.implicit[0] or (event.tag is not None and not event.style):
            try:
                value = resolve_scalar(value)
            except ValueError as error:
                self.problems.add(self._place(event), cause=str(error))
                value = None
        return self._node(value, event)

    def _alias(self, event: Any) -> Node:
        if event.anchor not in self._anchors:
            raise _UnreadableError(
                f"the alias *{event.anchor} has no anchor &{event.anchor} that is complete above it",
                at=_position(event.start_mark),
            )
        node = self._anchors[event.anchor]
        num_values, height = _size(node)
        self._num_values += num_values - 1
        self._refuse_deeper(len(self._open) + height, event)
        place = self._place(event)
        return Node(value=node.value, place=place, key_place=place)

    def _close(self) -> None:
        frame = self._open.pop()
        is_mapping = type(frame.event).__name__ == "MappingStartEvent"
        value = self._mapping(frame.nodes) if is_mapping else tuple(frame.nodes)
        self._put(self._node(value, frame.event), frame.event)

    def _mapping(self, nodes: list[Node]) -> Mapping[str, Node]:
        values: dict[str, Node] = {}
        for key, node in zip(nodes[::2], nodes[1::2], strict=True):
            if not isinstance(key.value, str):
                self.problems.add(key.place, cause="a key must be text; put it in quotes to make it text")
            elif key.value in values:
                first = values[key.value].key_place.line
                cause = f"this key appears twice, first in line {first}; keep one"
                self.problems.add(key.place, path=key.value, cause=cause)
            else:
                values[key.value] = Node(value=node.value, place=node.place, key_place=key.place)
        return values

    def _put(self, node: Node, event: Any) -> None:
        self._num_values += 1
        if self._num_values > MAX_VALUES:
            cause = f"holds more than {MAX_VALUES} values, aliases expanded"
            raise _UnreadableError(cause, at=_position(event.start_mark))
        if event.anchor is not None and type(event).__name__ != "AliasEvent":
            self._anchors[event.anchor] = node
        if self._open:
            self._open[-1].nodes.append(node)
        else:
            self.document = node

    def _refuse_deeper(self, depth: int, event: Any) -> None:
        if depth > MAX_DEPTH:
            cause = f"is nested more than {MAX_DEPTH} levels deep"
            raise _UnreadableError(cause, at=_position(event.start_mark))


def _size(node: Node) -> tuple[int, int]:
    """The number of values in a tree, and its depth in lists and mappings. The reader bounds both."""
    if isinstance(node.value, Mapping):
        inner = [_size(child) for child in node.value.values()]
    elif isinstance(node.value, tuple):
        inner = [_size(child) for child in node.value]
    else:
        return 1, 0
    return 1 + sum(size for size, _ in inner), 1 + max((height for _, height in inner), default=0)


#: Below Python's own limit of 4300 digits, which raises another kind of error.
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


def node_from_value(value: object, place: Place) -> Node:
    """The tree of a Python value, as if read from a file; every part has the same place."""
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
    """The value of a plain scalar.

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
