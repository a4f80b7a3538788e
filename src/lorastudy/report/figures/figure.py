"""A figure as a value: which rows it shows, under which labels, in which colours. Both drawings start from it."""

from dataclasses import dataclass
from typing import Literal

from lorastudy.stats.summary import CurvePoint

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
Kind = Literal["ranks", "dots", "bars", "frontier", "parameters", "curves", "forgetting", "pairs"]


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
    def rung(self) -> int:
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
    """One arm in the plane of peak memory and held-out loss."""

    arm: str
    memory: float
    loss: float
    loss_low: float | None
    loss_high: float | None
    n: int
    on_frontier: bool


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
    """One arm's training loss at one step."""

    arm: str
    point: CurvePoint


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
    points: tuple[FrontierPoint, ...] = ()
    parameters: tuple[ParameterRow, ...] = ()
    curves: tuple[CurveRow, ...] = ()
    forgetting: tuple[ForgettingRow, ...] = ()
    pairs: tuple[PairRow, ...] = ()
    margin: float | None = None
    """In the unit of the pairs; drawn as a band about no difference."""


def colour(index: int) -> str:
    """The colour of the arm at that place."""
    return PALETTE[index % len(PALETTE)]


def dash(index: int) -> tuple[float, ...]:
    """The dash of the arm at that place."""
    return DASHES[index // len(PALETTE) % len(DASHES)]
