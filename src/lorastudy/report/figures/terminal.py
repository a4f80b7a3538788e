"""The first chart of a report in plain characters, for a terminal: the same rows as the drawn figure, one line for each arm.

r=1   -----o----       :         r=64 is better
r=8                  --*--       as good within the margin
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.report.document import Figure
from lorastudy.report.numbers import decimals_of_size, number

#: Longer names are cut, and with less room than this for the bars there is no chart.
_LONGEST_NAME, _LEAST_ROOM = 24, 16
_GAP = "  "


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """One line: a mean with its interval, and what stands beside it."""

    name: str
    low: float
    mean: float
    high: float
    dot: str
    beside: str


def terminal_chart(figure: Figure, *, width: int) -> list[str]:
    """The lines of the chart, none wider than `width`; empty for another kind of figure, or where there is too little room.

    Paired differences have the verdict beside them: a star if one was reached, else a circle. A colon is no difference. Scores
    have their mean beside them.
    """
    bars = _pairs(figure) if figure.kind == "pairs" else _scores(figure)
    if not bars:
        return []
    names = [bar.name[:_LONGEST_NAME] for bar in bars]
    before, beside = max(map(len, names)), max(len(bar.beside) for bar in bars)
    room = width - before - beside - 2 * len(_GAP)
    if room < _LEAST_ROOM:
        beside, room = 0, width - before - len(_GAP)
    if room < _LEAST_ROOM:
        return []
    zero = [0.0] if figure.kind == "pairs" else []
    ends = (min([*zero, *(bar.low for bar in bars)]), max([*zero, *(bar.high for bar in bars)]))
    lines = [
        f"{name:<{before}}{_GAP}{_drawn(bar, ends, room=room, zero=bool(zero))}"
        + (f"{_GAP}{bar.beside}" if beside else "")
        for name, bar in zip(names, bars, strict=True)
    ]
    title = figure.x_label if figure.kind == "pairs" else figure.panels[0].label
    return [
        title[:width],
        *(line.rstrip() for line in lines),
        f"{'':<{before}}{_GAP}{_axis(ends, room=room)}",
    ]


def _pairs(figure: Figure) -> list[_Bar]:
    return [
        _Bar(
            name=row.arm,
            low=row.mean if row.low is None else row.low,
            mean=row.mean,
            high=row.mean if row.high is None else row.high,
            dot="*" if row.decided else "o",
            beside=row.verdict,
        )
        for row in figure.pairs
    ]


def _scores(figure: Figure) -> list[_Bar]:
    """The rows of the first panel, if the figure has scores by arm or by rank."""
    if figure.kind not in {"ranks", "dots"}:
        return []
    return [
        _Bar(
            name=row.arm,
            low=row.mean if row.low is None else row.low,
            mean=row.mean,
            high=row.mean if row.high is None else row.high,
            dot="o",
            beside=number(row.mean, decimals_of_size(row.mean)),
        )
        for row in figure.panels[0].rows
    ]


def _drawn(bar: _Bar, ends: tuple[float, float], *, room: int, zero: bool) -> str:
    cells = [" "] * room
    if zero:
        cells[_column(0.0, ends, room=room)] = ":"
    for column in range(_column(bar.low, ends, room=room), _column(bar.high, ends, room=room) + 1):
        cells[column] = "-"
    cells[_column(bar.mean, ends, room=room)] = bar.dot
    return "".join(cells)


def _column(value: float, ends: tuple[float, float], *, room: int) -> int:
    low, high = ends
    share = 0.5 if high <= low else (value - low) / (high - low)
    return math.floor(share * (room - 1) + 0.5)


def _axis(ends: Sequence[float], *, room: int) -> str:
    """The values at both ends of the chart."""
    low, high = (number(end, decimals_of_size(end)) for end in ends)
    return f"{low}{high:>{max(0, room - len(low))}}"
