"""A report as values: blocks of text, tables and figures that know nothing of Markdown or HTML.

All text in them is plain. The renderers escape it, so a name with `|` or `<` in it is safe everywhere. `presentable` makes
finished blocks fit to be shown to others: it hides what is private and removes characters that hide or reorder text. It runs
once, on the whole report, so no section has to think of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

from lorastudy.report.figures.figure import Figure
from lorastudy.suite.safe_text import Privacy, printable_lines

Value = TypeVar("Value")


@dataclass(frozen=True)
class Code:
    """Text to be shown as code."""

    text: str


@dataclass(frozen=True)
class Strong:
    """Text to be shown with emphasis."""

    text: str


Span = str | Code | Strong
Text = tuple[Span, ...]


def plain(text: Text) -> str:
    """The text without emphasis."""
    return "".join(span if isinstance(span, str) else span.text for span in text)


@dataclass(frozen=True, kw_only=True)
class Heading:
    """`level` 1 is the report's title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """One paragraph."""

    text: Text


@dataclass(frozen=True)
class Bullets:
    """A list without order."""

    items: tuple[Text, ...]


@dataclass(frozen=True)
class CodeBlock:
    """Lines to type or save. `language` is a hint for highlighting."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Cell:
    """A table cell. It sorts by `value`, or by its text without one."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class TableColumn:
    """A table column. Numeric columns are right-aligned."""

    title: str
    numeric: bool = True


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells, one for each column."""

    columns: tuple[TableColumn, ...]
    rows: tuple[tuple[Cell, ...], ...]


Block = Heading | Paragraph | Bullets | CodeBlock | Table | Figure


def paragraph(*spans: Span) -> Paragraph:
    """A paragraph of these spans."""
    return Paragraph(spans)


def presentable(blocks: Sequence[Block], privacy: Privacy) -> list[Block]:
    """The same blocks with every text in them made fit to be shown to others."""
    return [_presentable(block, privacy) for block in blocks]


def fit_to_be_shown(value: Value, privacy: Privacy) -> Value:
    """The same value with every text in it made fit to be shown to others."""
    changed: Value = _presentable(value, privacy)
    return changed


def _presentable(value: Any, privacy: Privacy) -> Any:
    changed = value
    if isinstance(value, str):
        changed = printable_lines(privacy.hidden(value))
    elif isinstance(value, tuple):
        changed = tuple(_presentable(item, privacy) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        new = {name: _presentable(part, privacy) for name, part in parts.items()}
        changed = replace(value, **new) if new != parts else value
    return changed
