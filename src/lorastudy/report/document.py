"""A report as values: blocks of text, tables and figures that know nothing of Markdown or HTML.

All text in them is plain. Escaping is the renderer's business, so a name with `|` or `<` in it is safe
wherever it turns up.
"""

from dataclasses import dataclass

from lorastudy.report.figures.figure import Figure


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
    """Lines to be typed or saved. `language` is a hint for highlighting."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Cell:
    """A table cell. `value` is what it sorts by; without one it sorts by its text."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class TableColumn:
    """A table column. Numeric ones stand to the right."""

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
