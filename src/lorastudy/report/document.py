"""A report as values: blocks of text, tables and figures that know nothing of Markdown or HTML.

All text in them is plain. The renderers escape it, so a name with `|` or `<` in it is safe everywhere. `presentable` makes
finished blocks fit to be shown to others: it hides what is private and removes characters that hide or reorder text. It runs
once, on the whole report, so no section has to think of it.

A figure says which rows it shows, under which labels, in which colours. Both of its drawings start from it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from lorastudy.stats.summary import CurvePoint
from lorastudy.suite.safe_text import Privacy, printable_lines

#: Okabe and Ito's palette (2008) can be told apart with any common colour blindness. Its yellow vanishes on white and is left
#: out. Arms beyond the seventh repeat the colours with another dash.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
GREY = "#6B6B6B"
#: Lengths in points of line and gap; the empty one is solid.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1, 1.5), (6, 2, 1, 2))
#: The number of combinations of colour and dash.
MAX_CURVES = len(PALETTE) * len(DASHES)
Kind = Literal[
    "ranks",
    "dots",
    "bars",
    "frontier",
    "parameters",
    "curves",
    "held_out",
    "forgetting",
    "pairs",
    "rates",
    "predictions",
    "rows",
]

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One arm's value in one panel. `values` are the single seeds; `rank` is the arm's, if it has one."""

    arm: str
    rank: int | None
    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.values)

    @property
    def known_rank(self) -> int:
        """The rank, in a figure along rank, where every arm has one."""
        assert self.rank is not None
        return self.rank


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One axis of values, labelled with its unit."""

    label: str
    rows: tuple[Estimate, ...]
    from_zero: bool = False


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One arm in the plane of peak memory and held-out loss. `time` is that of one step, None if it is unknown."""

    arm: str
    memory: float
    time: float | None
    loss: float
    loss_low: float | None
    loss_high: float | None
    n: int
    on_frontier: bool
    configuration: tuple[tuple[str, str], ...] = ()
    """The arm's settings, as text."""


@dataclass(frozen=True, kw_only=True)
class ParameterRow:
    """One arm's trainable parameters beside all of the model's."""

    arm: str
    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable share of the total."""
        return self.trainable / self.total


@dataclass(frozen=True, kw_only=True)
class CurveRow:
    """One arm's loss at one step."""

    arm: str
    point: CurvePoint
    is_marked: bool = False
    """Whether the point gets a dot."""


@dataclass(frozen=True, kw_only=True)
class ForgettingRow:
    """One arm's base-domain loss, before and after training."""

    arm: str
    before: float
    after: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class RateRow:
    """One configuration's mean score at one learning rate. `arm` is the one that stands for the configuration."""

    arm: str
    rate: float
    mean: float
    is_taken: bool


@dataclass(frozen=True, kw_only=True)
class PredictionRow:
    """Predicted and measured peak memory of one arm alone, or of a pack, for which `arm` is None."""

    name: str
    arm: str | None
    predicted: float
    measured: float


@dataclass(frozen=True, kw_only=True)
class ScoredRow:
    """The scores of two arms on one row. `place` is the row's share of all rows when they are in order of cost."""

    row: int
    place: float
    ours: float
    theirs: float
    difference: float


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """One arm's difference from the reference. A single seed gives no interval."""

    arm: str
    mean: float
    low: float | None
    high: float | None
    n: int
    verdict: str
    """The verdict, short enough to fit beside the interval."""
    decided: bool
    """Whether the verdict makes a claim."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure, ready to be drawn. Which of the row fields is filled follows from `kind`.

    `name` is the file name's stem; `alt` says in words what is to be seen.
    """

    name: str
    kind: Kind
    title: str
    caption: str
    alt: str
    arms: tuple[str, ...]
    panels: tuple[Panel, ...] = ()
    x_label: str = ""
    y_label: str = ""
    size_label: str = ""
    points: tuple[FrontierPoint, ...] = ()
    parameters: tuple[ParameterRow, ...] = ()
    curves: tuple[CurveRow, ...] = ()
    forgetting: tuple[ForgettingRow, ...] = ()
    pairs: tuple[PairRow, ...] = ()
    rates: tuple[RateRow, ...] = ()
    predictions: tuple[PredictionRow, ...] = ()
    rows: tuple[ScoredRow, ...] = ()
    marked: str | None = None
    """The arm that is marked, as the one that the study names."""
    marked_as: str = ""
    """What the mark means, in a word or two."""
    margin: float | None = None
    """In the unit of the pairs; drawn as a band about no difference."""
    coloured: tuple[str, ...] = ()
    """All arms of the study. An arm's place among them gives its colour and dash, so it has the same in every figure."""

    def place(self, arm: str) -> int:
        """The arm's place among all that have a colour."""
        return (self.coloured or self.arms).index(arm)

    def colour_of(self, arm: str) -> str:
        """The arm's colour."""
        return colour(self.place(arm))


def colour(index: int) -> str:
    """The colour of the arm at that place."""
    return PALETTE[index % len(PALETTE)]


def dash(index: int) -> tuple[float, ...]:
    """The dash of the arm at that place."""
    return DASHES[index // len(PALETTE) % len(DASHES)]


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
    """Lines to type or save. `language` is a hint for highlighting.

    `copied_as` says in a word or two what they are; the page then has a button for them in its head, too.
    """

    text: str
    language: str = ""
    copied_as: str = ""


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


@dataclass(frozen=True, kw_only=True)
class Details:
    """Blocks that a reader opens by a click on `summary`.

    Markdown has no such thing. There, `in_markdown` stands in their place: by default the blocks themselves.
    """

    summary: str
    blocks: "tuple[Block, ...]"
    in_markdown: "tuple[Block, ...] | None" = None

    @property
    def unfolded(self) -> "tuple[Block, ...]":
        """What Markdown shows."""
        return self.blocks if self.in_markdown is None else self.in_markdown


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One key figure. `note` says what it is compared with, or how it was measured."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The key figures of a study, side by side. Markdown leaves them out, since its tables have them all."""

    status: Literal["decided", "open", "none"]
    """Whether the first one is an answer, the arm to use meanwhile, or no arm."""
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class Versus:
    """Arms side by side, of which the page shows any two. Markdown leaves it out."""

    arms: tuple[str, ...]
    chosen: tuple[str, str]
    """The two that are shown first."""
    table: Table
    """The first column says what is compared, then there is one for each arm."""
    differences: tuple[tuple[str, str, str], ...]
    """Two arms and how the first differs from the second, for all pairs that were compared, in both orders."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Blocks that stand in one place on the page and in another in Markdown."""

    on_page: "tuple[Block, ...]" = ()
    in_markdown: "tuple[Block, ...]" = ()


@dataclass(frozen=True, kw_only=True)
class StudyPart:
    """One study's part of a report. On the page, its arms have their colours there, and a reader chooses among them."""

    arms: tuple[str, ...]
    """All arms that have a colour, in the order of their colours."""
    blocks: "tuple[Block, ...]"


Block = (
    Heading | Paragraph | Bullets | CodeBlock | Table | Figure | Details | Tiles | Versus | Shown | StudyPart
)


def folded(blocks: "Sequence[Block]") -> "list[Block]":
    """A section of which a page shows the heading, and the rest at a click."""
    if not blocks:
        return []
    heading, *rest = blocks
    assert isinstance(heading, Heading)
    return [heading, Details(summary=f"Show: {heading.text.lower()}", blocks=tuple(rest))]


def unfolded(blocks: "Sequence[Block]") -> "Iterator[Block]":
    """All blocks of the page in their order, those that a click opens included."""
    for block in blocks:
        if isinstance(block, Details | StudyPart):
            yield from unfolded(block.blocks)
        elif isinstance(block, Shown):
            yield from unfolded(block.on_page)
        else:
            yield block


def unfolded_in_markdown(blocks: "Sequence[Block]") -> "Iterator[Block]":
    """All blocks of the Markdown file in their order."""
    for block in blocks:
        match block:
            case Details():
                yield from unfolded_in_markdown(block.unfolded)
            case StudyPart():
                yield from unfolded_in_markdown(block.blocks)
            case Shown():
                yield from unfolded_in_markdown(block.in_markdown)
            case Tiles() | Versus():
                pass
            case _:
                yield block


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
