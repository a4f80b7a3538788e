"""The figures on paper: PNG and SVG by matplotlib. The same figure gives the same bytes.

Seven inches wide with 11 pt type, which stays readable when a phone shows it at half a page.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)
from matplotlib.transforms import Bbox

from lorastudy.report.document import GREY, SKY, Estimate, Figure, FrontierPoint, Kind, Panel, dash
from lorastudy.report.numbers import decimals_of_size, number

WIDTH_INCHES = 7.0
#: More arms than these get smaller type and less room each, and only some of their names stand in a scatter plot.
MANY_ARMS = 16
LONGEST_NAME = 28
_LEGEND_COLUMNS = 3
#: Offsets in points with the alignment that goes with them, tried in this order. Above-left comes late: there the
#: frontier's step comes down to its point.
_PLACES: tuple[tuple[float, float, str], ...] = (
    (8, 4, "left"),
    (8, -14, "left"),
    (-8, -14, "right"),
    (-8, 4, "right"),
    (8, 20, "left"),
    (-8, 20, "right"),
    (8, -30, "left"),
    (-8, -30, "right"),
)
_MARKER_PIXELS = 6.0
#: Diameter in points of the dot of the slowest arm.
_LARGEST_DOT = 10.0
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.dpi": 100,
    "figure.constrained_layout.h_pad": 0.1,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "lorastudy",
    "text.parse_math": False,
    # With an offset, equal values of .375 stand at a tick labelled 0.
    "axes.formatter.useoffset": False,
}


def save_figure(figure: Figure, folder: Path) -> list[Path]:
    """Write `<name>.png` and `<name>.svg` and return their paths."""
    with house_style():
        canvas = _DRAWINGS[figure.kind](figure)
        FigureCanvasAgg(canvas)
        png, svg = folder / f"{figure.name}.png", folder / f"{figure.name}.svg"
        # No date and no version: the same results give the same bytes.
        canvas.savefig(png, metadata={"Software": None})
        canvas.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]


@contextmanager
def house_style() -> Iterator[None]:
    """Within the block, whatever is drawn looks like a report's figure, on every machine."""
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc would change the bytes
        mpl.rcParams.update(_RC)
        yield


def _ranks(figure: Figure) -> Canvas:
    """Panels above one another over a logarithmic rank axis."""
    canvas = Canvas(figsize=(WIDTH_INCHES, 0.9 + 2.1 * len(figure.panels)), layout="constrained")
    every = list(canvas.subplots(len(figure.panels), 1, sharex=True, squeeze=False)[:, 0])
    for axes, panel in zip(every, figure.panels, strict=True):
        ranks = [row.known_rank for row in panel.rows]
        axes.plot(ranks, [row.mean for row in panel.rows], color=GREY, linewidth=1.2, zorder=1)
        for row in panel.rows:
            _seeds(axes, [row.known_rank] * row.n, y=row.values)
            if row.low is not None and row.high is not None:
                axes.plot(
                    [row.known_rank, row.known_rank],
                    [row.low, row.high],
                    color=figure.colour_of(row.arm),
                    linewidth=2,
                    zorder=2,
                )
            axes.plot(
                [row.known_rank], [row.mean], "o", color=figure.colour_of(row.arm), markersize=6, zorder=3
            )
        axes.set_ylabel(_folded(panel.label))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    last, ticks = every[-1], sorted({row.known_rank for panel in figure.panels for row in panel.rows})
    last.set_xscale("log", base=2)
    last.set_xticks(ticks, [str(rank) for rank in ticks])
    last.xaxis.set_minor_locator(NullLocator())
    last.set_xlabel(figure.x_label)
    every[0].set_title(figure.title, loc="left")
    return canvas


def _dots(figure: Figure) -> Canvas:
    """Panels above one another, one line for each arm, with its interval and its seeds."""
    canvas, every = _stacked(figure)
    for axes, panel in zip(every, figure.panels, strict=True):
        for row in panel.rows:
            y = figure.arms.index(row.arm)
            _seeds(axes, row.values, y=[y] * row.n)
            _interval(axes, row, y=y, shade=figure.colour_of(row.arm))
            axes.plot([row.mean], [y], "o", color=figure.colour_of(row.arm), markersize=6, zorder=3)
        _arm_axis(axes, figure.arms)
        axes.set_xlabel(panel.label)
    return canvas


def _bars(figure: Figure) -> Canvas:
    """Panels above one another, one bar for each arm, with its value written at the end."""
    canvas, every = _stacked(figure)
    for axes, panel in zip(every, figure.panels, strict=True):
        for row in panel.rows:
            y = figure.arms.index(row.arm)
            axes.barh([y], [row.mean], height=0.62, color=figure.colour_of(row.arm))
            if row.low is not None and row.high is not None and row.low < row.high:
                axes.plot([row.low, row.high], [y, y], color="black", linewidth=1.6)
            end = max(row.mean, row.high or 0.0)
            value = number(row.mean, decimals_of_size(row.mean))
            axes.annotate(value, (end, y), xytext=(5, 0), textcoords="offset points", va="center")
        _arm_axis(axes, figure.arms)
        axes.set_xlim(0, 1.15 * _largest(panel))
        axes.set_xlabel(panel.label)
    return canvas


def _frontier(figure: Figure) -> Canvas:
    """Loss over memory, the frontier joined by steps: each point on it bounds what is reachable."""
    canvas = Canvas(figsize=(WIDTH_INCHES, 4.8), layout="constrained")
    axes = canvas.subplots()
    best = [point for point in figure.points if point.on_frontier]
    best.sort(key=lambda point: point.memory)
    slowest = max((point.time for point in figure.points if point.time is not None), default=None)
    axes.step(
        [p.memory for p in best],
        [p.loss for p in best],
        where="post",
        color=GREY,
        linewidth=1.4,
        zorder=1,
    )
    for point in figure.points:
        shade = figure.colour_of(point.arm)
        if point.loss_low is not None and point.loss_high is not None:
            axes.plot(
                [point.memory] * 2, [point.loss_low, point.loss_high], color=shade, linewidth=1.8, zorder=2
            )
        fill = shade if point.on_frontier else "white"
        size = _dot_size(point, slowest)
        axes.plot(
            [point.memory], [point.loss], "o", color=shade, markerfacecolor=fill, markersize=size, zorder=3
        )
        if point.arm == figure.marked:
            axes.plot(
                [point.memory],
                [point.loss],
                "o",
                color="black",
                markerfacecolor="none",
                markersize=17,
                markeredgewidth=1.6,
                zorder=4,
            )
    axes.margins(0.12)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel("Held-out loss (nats per token)")
    axes.set_title(figure.title, loc="left")
    # Beyond the names that fit, only those of the frontier: the table has the others.
    named = figure.points if len(figure.points) <= MANY_ARMS else best
    labels = {figure.marked: f" ({figure.marked_as})"}
    place_labels(
        axes,
        [
            (point.memory, point.loss, f"{_shortened(point.arm)}{labels.get(point.arm, '')}")
            for point in named
        ],
    )
    return canvas


def _dot_size(point: FrontierPoint, slowest: float | None) -> float:
    """The diameter of the dot in points: its area grows with the time of a step."""
    share = 0.5 if point.time is None or slowest is None else point.time / slowest
    return _LARGEST_DOT * math.sqrt(share)


def _parameters(figure: Figure) -> Canvas:
    """Trainable (filled) and total (hollow) parameters on a logarithmic axis."""
    canvas, (axes,) = _stacked(figure, num_panels=1)
    for row in figure.parameters:
        y = figure.arms.index(row.arm)
        axes.plot([row.trainable, row.total], [y, y], color="#C8C8C8", linewidth=2, zorder=1)
        first = row is figure.parameters[0]
        shade = figure.colour_of(row.arm)
        axes.plot([row.trainable], [y], "o", color=shade, markersize=8, label="trainable" if first else None)
        axes.plot(
            [row.total],
            [y],
            "o",
            color=GREY,
            markerfacecolor="white",
            markersize=8,
            label="total" if first else None,
        )
        axes.annotate(
            f"{100 * row.share:.2g} %",
            ((row.trainable * row.total) ** 0.5, y),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _arm_axis(axes, figure.arms)
    axes.set_xlabel(figure.x_label)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.1)
    return canvas


def _curves(figure: Figure) -> Canvas:
    """Loss over steps, one line with its band for each arm, and a dot where a point is marked."""
    canvas = Canvas(figsize=(WIDTH_INCHES, 4.6 + _legend_inches(figure.arms)), layout="constrained")
    axes = canvas.subplots()
    for arm in figure.arms:
        points = [row.point for row in figure.curves if row.arm == arm]
        if points:
            steps = [point.step for point in points]
            (line,) = axes.plot(
                steps,
                [point.mean for point in points],
                color=figure.colour_of(arm),
                linewidth=1.8,
                label=_shortened(arm),
            )
            if dash(figure.place(arm)):
                line.set_dashes(dash(figure.place(arm)))
            axes.fill_between(
                steps,
                [point.mean if point.low is None else point.low for point in points],
                [point.mean if point.high is None else point.high for point in points],
                color=figure.colour_of(arm),
                alpha=0.15,
                linewidth=0,
            )
            marked = [row.point for row in figure.curves if row.arm == arm and row.is_marked]
            for point in marked:
                axes.plot([point.step], [point.mean], "o", color=figure.colour_of(arm), markersize=7)
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    axes.set_title(figure.title, loc="left")
    axes.margins(x=0.02)
    _legend(canvas, axes, arms=figure.arms)
    return canvas


def _rates(figure: Figure) -> Canvas:
    """Mean score over the learning rate, one line for each configuration, with a ring at the rate taken."""
    canvas = Canvas(figsize=(WIDTH_INCHES, 4.6 + _legend_inches(figure.arms)), layout="constrained")
    axes = canvas.subplots()
    for arm in figure.arms:
        rows = [row for row in figure.rates if row.arm == arm]
        shade = figure.colour_of(arm)
        rates, means = [row.rate for row in rows], [row.mean for row in rows]
        (line,) = axes.plot(rates, means, "o-", color=shade, markersize=5, label=_shortened(arm))
        if dash(figure.place(arm)):
            line.set_dashes(dash(figure.place(arm)))
        for row in rows:
            if row.is_taken:
                axes.plot([row.rate], [row.mean], "o", color=shade, markerfacecolor="none", markersize=12)
    axes.set_xscale("log")
    ticks = sorted({row.rate for row in figure.rates})
    axes.set_xticks(ticks, [f"{rate:.2g}" for rate in ticks], rotation=30 if len(ticks) > 6 else 0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    axes.set_title(figure.title, loc="left")
    _legend(canvas, axes, arms=figure.arms)
    return canvas


def _predictions(figure: Figure) -> Canvas:
    """Peak memory as predicted (hollow) and as measured (filled), one line for each arm and pack."""
    rows = figure.predictions
    height = 1.55 + _row_inches([row.name for row in rows]) * len(rows)
    canvas = Canvas(figsize=(WIDTH_INCHES, height), layout="constrained")
    axes = canvas.subplots()
    for y, row in enumerate(rows):
        shade = GREY if row.arm is None else figure.colour_of(row.arm)
        axes.plot([row.predicted, row.measured], [y, y], color="#C8C8C8", linewidth=2, zorder=1)
        label = None if y else "predicted"
        axes.plot([row.predicted], [y], "o", color=GREY, markerfacecolor="none", markersize=10, label=label)
        axes.plot([row.measured], [y], "o", color=shade, markersize=7, label=None if y else "measured")
    _arm_axis(axes, [row.name for row in rows])
    axes.set_xlabel(figure.x_label)
    axes.set_title(figure.title, loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.1)
    return canvas


def _rows(figure: Figure) -> Canvas:
    """One bar for each row, in order of cost."""
    canvas = Canvas(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
    axes = canvas.subplots()
    (arm,) = figure.arms
    places = [row.place for row in figure.rows]
    axes.vlines(
        places, 0, [row.difference for row in figure.rows], color=figure.colour_of(arm), linewidth=1.2
    )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(figure.x_label)
    axes.set_ylabel(figure.y_label)
    axes.set_title(figure.title, loc="left")
    axes.margins(x=0.02)
    return canvas


def _forgetting(figure: Figure) -> Canvas:
    """Base-domain loss before (hollow) and after (filled) training."""
    canvas, (axes,) = _stacked(figure, num_panels=1)
    for row in figure.forgetting:
        y = figure.arms.index(row.arm)
        first = row is figure.forgetting[0]
        axes.plot([row.before, row.after], [y, y], color="#C8C8C8", linewidth=2, zorder=1)
        axes.plot(
            [row.before],
            [y],
            "o",
            color=GREY,
            markerfacecolor="white",
            markersize=8,
            label="before" if first else None,
        )
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [y, y], color=figure.colour_of(row.arm), linewidth=2.4, zorder=2)
        shade = figure.colour_of(row.arm)
        axes.plot([row.after], [y], "o", color=shade, markersize=8, label="after" if first else None)
    _arm_axis(axes, figure.arms)
    axes.set_xlabel(figure.x_label)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.1)
    return canvas


def _pairs(figure: Figure) -> Canvas:
    """A forest plot, with the verdict to the right of each interval."""
    canvas, (axes,) = _stacked(figure, num_panels=1)
    axes.axvline(0, color="black", linewidth=1, zorder=1)
    if figure.margin is not None:
        axes.axvspan(-figure.margin, figure.margin, color=SKY, alpha=0.25, linewidth=0, zorder=0)
    for y, row in enumerate(figure.pairs):
        shade = figure.colour_of(row.arm)
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [y, y], color=shade, linewidth=2.4, zorder=2)
        fill = shade if row.decided else "white"
        axes.plot([row.mean], [y], "o", color=shade, markerfacecolor=fill, markersize=5.5, zorder=3)
    _arm_axis(axes, figure.arms)
    axes.set_xlabel(figure.x_label)
    verdicts = axes.twinx()
    verdicts.set_yticks(range(len(figure.pairs)), [_shortened(row.verdict) for row in figure.pairs])
    verdicts.set_ylim(axes.get_ylim())
    verdicts.grid(visible=False)
    verdicts.tick_params(axis="y", length=0, labelsize=axes.yaxis.get_ticklabels()[0].get_fontsize())
    return canvas


def _stacked(figure: Figure, *, num_panels: int | None = None) -> tuple[Canvas, list[Axes]]:
    """A canvas with one panel above another, each tall enough for its arms; the title on top."""
    panels = len(figure.panels) if num_panels is None else num_panels
    height = 0.7 + panels * (0.85 + _row_inches(figure.arms) * len(figure.arms))
    canvas = Canvas(figsize=(WIDTH_INCHES, height), layout="constrained")
    every = list(canvas.subplots(panels, 1, squeeze=False)[:, 0])
    every[0].set_title(figure.title, loc="left")
    return canvas, every


def _arm_axis(axes: Axes, arms: Sequence[str]) -> None:
    """Arms from top to bottom; horizontal, so that long names stay readable."""
    axes.set_yticks(range(len(arms)), [_shortened(arm) for arm in arms])
    axes.tick_params(axis="y", labelsize=11 if len(arms) <= MANY_ARMS else 8)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _row_inches(arms: Sequence[str]) -> float:
    """The height that one arm takes: less for many, so that sixty of them still fit on two pages."""
    return 0.34 if len(arms) <= MANY_ARMS else 0.2


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _seeds(axes: Axes, x: Sequence[float], *, y: Sequence[float]) -> None:
    if len(x) > 1:
        axes.plot(x, y, "o", color=GREY, markersize=3.5, alpha=0.55, linewidth=0, zorder=2)


def _interval(axes: Axes, row: Estimate, *, y: float, shade: str) -> None:
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [y, y], color=shade, linewidth=2, zorder=2)


def _largest(panel: Panel) -> float:
    return max((max(row.mean, row.high or 0.0) for row in panel.rows), default=1.0) or 1.0


def _folded(label: str) -> str:
    """The unit on a line of its own."""
    return label.replace(" (", "\n(")


def _legend(canvas: Canvas, axes: Axes, *, arms: Sequence[str]) -> None:
    """Inside the axes for few arms; below them for many, on a canvas that grew by as much."""
    if len(arms) <= 7:
        axes.legend(loc="best")
    else:
        canvas.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS, fontsize=9)


def _legend_inches(arms: Sequence[str]) -> float:
    return 0 if len(arms) <= 7 else 0.19 * math.ceil(len(arms) / _LEGEND_COLUMNS)


def place_labels(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name beside its point, at the first place that touches no other name and no point.

    Where no place is free the first is taken: a name that overlaps is still better than none.
    """
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Canvas)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    dots = [_around(*axes.transData.transform((x, y))) for x, y, _ in points]
    taken: list[Bbox] = []
    for index, (x, y, name) in enumerate(points):
        others = dots[:index] + dots[index + 1 :] + taken
        taken.append(_place(axes, (x, y), name=name, others=others))


def _place(axes: Axes, point: tuple[float, float], *, name: str, others: Sequence[Bbox]) -> Bbox:
    boxes: list[Bbox] = []
    for dx, dy, align in (*_PLACES, _PLACES[0]):
        label = axes.annotate(name, point, xytext=(dx, dy), textcoords="offset points", ha=align)
        box = label.get_window_extent()
        free = axes.bbox.padded(12).containsx(box.x0) and axes.bbox.padded(12).containsx(box.x1)
        if (free and not any(box.overlaps(other) for other in others)) or len(boxes) == len(_PLACES):
            return box
        boxes.append(box)
        label.remove()
    raise AssertionError("the last place is always taken")


def _around(x: float, y: float) -> Bbox:
    return Bbox.from_extents(x - _MARKER_PIXELS, y - _MARKER_PIXELS, x + _MARKER_PIXELS, y + _MARKER_PIXELS)


_DRAWINGS: dict[Kind, Callable[[Figure], Canvas]] = {
    "ranks": _ranks,
    "dots": _dots,
    "bars": _bars,
    "frontier": _frontier,
    "parameters": _parameters,
    "curves": _curves,
    "held_out": _curves,
    "forgetting": _forgetting,
    "pairs": _pairs,
    "rates": _rates,
    "predictions": _predictions,
    "rows": _rows,
}
