"""The figures on screen: Vega-Lite specifications by altair, drawn by the script that the page carries.

Each panel is a chart of its own that takes the width it gets, so that a phone shows it whole.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt

from lorastudy.report.document import GREY, SKY, Estimate, Figure, FrontierPoint, Kind, Panel, dash

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, object]]
#: Pixels that a row of the forest plot takes, and by how many its verdict stands above its bar.
_PAIR_HEIGHT, _VERDICT_ABOVE = 54, 20
#: Square pixels of the dot of the slowest arm.
_LARGEST_AREA = 180
#: Points of a scatter plot that all have their names beside them.
_MOST_NAMED = 12
#: Pixels of a legend on a phone, of a letter in it, and of what stands beside a label.
_LEGEND_WIDTH, _LETTER_WIDTH, _BESIDE_LABEL = 300, 7, 34
_CONFIG: Mapping[str, Any] = {
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "gridColor": "#E4E4E4"},
    "axisX": {"tickCount": 6},
    "legend": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "orient": "bottom",
        "symbolOpacity": 1,
    },
}


def vega_lite_specs(figure: Figure) -> list[Spec]:
    """One specification for each panel of the figure."""
    return [_spec(chart) for chart in _CHARTS[figure.kind](figure)]


def vega_lite_version() -> str:
    """The Vega-Lite version of the specifications, as `6.4`: the script in the page must be of the same."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _spec(chart: Any) -> Spec:
    spec: Spec = chart.properties(
        width="container", autosize={"type": "fit-x", "contains": "padding"}
    ).to_dict()
    spec["config"] = dict(_CONFIG)
    return spec


def _ranks(figure: Figure) -> list[Any]:
    return [_rank_panel(panel, figure) for panel in figure.panels]


def _rank_panel(panel: Panel, figure: Figure) -> Any:
    ranks = sorted({row.known_rank for row in panel.rows})
    x = alt.X(
        "rank:Q",
        title=figure.x_label,
        scale=alt.Scale(type="log", base=2, nice=False, padding=20),
        axis=alt.Axis(values=ranks, format="d", grid=False),
    )
    y = alt.Y("mean:Q", title=panel.label, scale=_value_scale(panel))
    base = alt.Chart(_inline(_estimates(panel.rows))).encode(x=x)
    line = base.mark_line(color=GREY, strokeWidth=1.2).encode(y=y)
    low, shade = alt.Y("low:Q", title=panel.label), _shades(figure)
    bars = base.mark_rule(strokeWidth=2).encode(y=low, y2="high:Q", color=shade)
    dots = base.mark_circle(size=90, opacity=1).encode(
        y=y, color=shade, tooltip=_estimate_tooltip(panel.label)
    )
    seeds = alt.Chart(_inline(_seeds(panel.rows))).mark_circle(color=GREY, size=18, opacity=0.6)
    return alt.layer(seeds.encode(x=x, y=alt.Y("value:Q", title=panel.label)), line, bars, dots).properties(
        height=190
    )


def _dots(figure: Figure) -> list[Any]:
    return [_dot_panel(panel, figure) for panel in figure.panels]


def _dot_panel(panel: Panel, figure: Figure) -> Any:
    arms, shade = figure.arms, _shades(figure)
    y = _arm_axis(arms)
    x = alt.X("mean:Q", title=panel.label, scale=_value_scale(panel))
    base = alt.Chart(_inline(_estimates(panel.rows))).encode(y=y)
    low = alt.X("low:Q", title=panel.label)
    bars = base.mark_rule(strokeWidth=2).encode(x=low, x2="high:Q", color=shade)
    dots = base.mark_circle(size=90, opacity=1).encode(
        x=x, color=shade, tooltip=_estimate_tooltip(panel.label)
    )
    seeds = alt.Chart(_inline(_seeds(panel.rows))).mark_circle(color=GREY, size=18, opacity=0.6)
    layered = alt.layer(seeds.encode(y=y, x=alt.X("value:Q", title=panel.label)), bars, dots)
    return layered.properties(height=_height(arms))


def _value_scale(panel: Panel) -> Any:
    """The scale of a panel's values. If all are equal it is given room, since Vega labels the one tick of such a scale 0."""
    drawn = [value for row in panel.rows for value in (row.mean, row.low, row.high, *row.values)]
    values = {value for value in drawn if value is not None}
    if len(values) > 1:
        return alt.Scale(zero=False)
    (value,) = values
    room = abs(value) / 10 or 1.0
    return alt.Scale(zero=False, domain=[value - room, value + room])


def _bars(figure: Figure) -> list[Any]:
    return [_bar_panel(panel, figure) for panel in figure.panels]


def _bar_panel(panel: Panel, figure: Figure) -> Any:
    arms = figure.arms
    base = alt.Chart(_inline(_estimates(panel.rows))).encode(y=_arm_axis(arms))
    bars = base.mark_bar(height={"band": 0.65}).encode(
        color=_shades(figure),
        x=alt.X("mean:Q", title=panel.label),
        tooltip=_estimate_tooltip(panel.label, centre="median"),
    )
    ranges = base.mark_rule(color="black", strokeWidth=1.5).encode(
        x=alt.X("low:Q", title=panel.label), x2="high:Q"
    )
    return alt.layer(bars, ranges).properties(height=_height(arms))


def _frontier(figure: Figure) -> list[Any]:
    rows = [_point_row(point, figure) for point in figure.points]
    loss = "Held-out loss (nats per token)"
    x = alt.X("memory:Q", title=figure.x_label, scale=alt.Scale(zero=False, padding=28))
    y = alt.Y("loss:Q", title=loss, scale=alt.Scale(zero=False, padding=16))
    base = alt.Chart(_inline(rows)).encode(x=x)
    shade, tooltip = _shades(figure), _point_tooltip(figure, loss=loss)
    area = alt.Size("area:Q", scale=None)
    steps = base.mark_line(color=GREY, interpolate="step-after").encode(y=y)
    bars = base.mark_rule(strokeWidth=2).encode(
        y=alt.Y("loss_low:Q", title=loss), y2="loss_high:Q", color=shade
    )
    dots = base.mark_point(opacity=1).encode(
        y=y, color=shade, size=area, fill=_fills(figure, when="datum.on_frontier"), tooltip=tooltip
    )
    ring = base.mark_point(size=2.6 * _LARGEST_AREA, stroke="black", strokeWidth=1.6).encode(
        y=y, tooltip=tooltip
    )
    marked = [] if figure.marked is None else [ring.transform_filter("datum.is_marked")]
    has_intervals = any(point.loss_low is not None for point in figure.points)
    layers = [
        steps.transform_filter("datum.on_frontier"),
        *([bars] if has_intervals else []),
        dots,
        *marked,
        *_frontier_names(base, rows, y=y),
    ]
    return [alt.layer(*layers).properties(height=280)]


def _point_row(point: FrontierPoint, figure: Figure) -> dict[str, object]:
    """The point with its name as the chart shows it, the area of its dot, and its settings as columns of their own."""
    row = {key: value for key, value in vars(point).items() if key != "configuration"}
    is_marked = point.arm == figure.marked
    # Of more arms than have room for their names, those of the frontier have theirs; the others answer to hover.
    is_named = is_marked or point.on_frontier or len(figure.points) <= _MOST_NAMED
    slowest = max((each.time for each in figure.points if each.time is not None), default=None)
    share = 0.5 if point.time is None or slowest is None else point.time / slowest
    return {
        **row,
        "is_marked": is_marked,
        "label": f"{point.arm} ({figure.marked_as})" if is_marked else point.arm if is_named else "",
        "area": _LARGEST_AREA * share,
        **{f"setting_{key}": value for key, value in point.configuration},
    }


def _point_tooltip(figure: Figure, *, loss: str) -> list[Any]:
    """What was measured of the arm, then its whole configuration."""
    keys = dict.fromkeys(key for point in figure.points for key, _ in point.configuration)
    return [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("loss:Q", title=loss, format=".5g"),
        alt.Tooltip("memory:Q", title=figure.x_label, format=".4g"),
        *([alt.Tooltip("time:Q", title=figure.size_label, format=".3g")] if figure.size_label else []),
        alt.Tooltip("on_frontier:N", title="On the frontier"),
        alt.Tooltip("n:Q", title="Seeds"),
        *(alt.Tooltip(f"setting_{key}:N", title=key) for key in keys),
    ]


def _frontier_names(base: Any, rows: Rows, *, y: Any) -> list[Any]:
    """Names right of points on the left and left of points on the right, so that none is cut off at the edge.

    Above on the one side and below on the other: there the steps of the frontier never run.
    """
    memories = [float(str(row["memory"])) for row in rows]
    middle = (min(memories) + max(memories)) / 2
    right_of = base.mark_text(align="left", dx=11, dy=-10, fontSize=12).encode(y=y, text="label:N")
    left_of = base.mark_text(align="right", dx=-11, dy=12, fontSize=12).encode(y=y, text="label:N")
    return [
        right_of.transform_filter(f"datum.memory <= {middle!r}"),
        left_of.transform_filter(f"datum.memory > {middle!r}"),
    ]


def _parameters(figure: Figure) -> list[Any]:
    rows = [
        {**vars(row), "share": row.share, "middle": (row.trainable * row.total) ** 0.5}
        for row in figure.parameters
    ]
    base = alt.Chart(_inline(rows)).encode(
        y=_arm_axis(figure.arms),
        tooltip=[
            alt.Tooltip("arm:N", title="Arm"),
            alt.Tooltip("trainable:Q", title="Trainable", format=","),
            alt.Tooltip("total:Q", title="Total", format=","),
            alt.Tooltip("share:Q", title="Trainable share", format=".3%"),
        ],
    )
    x = alt.X("trainable:Q", title=figure.x_label, scale=alt.Scale(type="log"), axis=alt.Axis(format="~s"))
    lines = base.mark_rule(color="#C8C8C8", strokeWidth=2).encode(x=x, x2="total:Q")
    trainable = base.mark_point(size=90, filled=True, opacity=1).encode(x=x, color=_shades(figure))
    total = base.mark_point(size=90, fill="white", color=GREY, opacity=1).encode(
        x=alt.X("total:Q", title=figure.x_label)
    )
    shares = base.mark_text(dy=-7, fontSize=11).encode(
        x=alt.X("middle:Q", title=figure.x_label), text=alt.Text("share:Q", format=".2~%")
    )
    return [alt.layer(lines, trainable, total, shares).properties(height=_height(figure.arms))]


def _curves(figure: Figure) -> list[Any]:
    rows = [{"arm": row.arm, "is_marked": row.is_marked, **vars(row.point)} for row in figure.curves]
    shade, dashes = _legend(figure)
    loss = figure.y_label
    base = alt.Chart(_inline(rows)).encode(x=alt.X("step:Q", title=figure.x_label), color=shade)
    bands = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", title=loss), y2="high:Q")
    lines = base.mark_line(strokeWidth=2).encode(
        y=alt.Y("mean:Q", title=loss, scale=alt.Scale(zero=False)), strokeDash=dashes
    )
    marked = (
        base.mark_circle(size=110, opacity=1)
        .encode(y=alt.Y("mean:Q", title=loss))
        .transform_filter("datum.is_marked")
    )
    points = base.mark_circle(size=40, opacity=0).encode(
        y=alt.Y("mean:Q", title=loss),
        tooltip=[
            alt.Tooltip("arm:N", title="Arm"),
            alt.Tooltip("step:Q", title="Step"),
            alt.Tooltip("mean:Q", title=loss, format=".5g"),
            alt.Tooltip("n:Q", title="Seeds"),
        ],
    )
    layers = [bands, lines, *([marked] if any(row.is_marked for row in figure.curves) else []), points]
    return [alt.layer(*layers).properties(height=320)]


def _rates(figure: Figure) -> list[Any]:
    rows = [vars(row) for row in figure.rates]
    x = alt.X(
        "rate:Q",
        title=figure.x_label,
        scale=alt.Scale(type="log", nice=False, padding=20),
        axis=alt.Axis(
            values=sorted({row.rate for row in figure.rates}), format=".2~e", grid=False, labelOverlap=True
        ),
    )
    y = alt.Y("mean:Q", title=figure.y_label, scale=alt.Scale(zero=False))
    shade, dashes = _legend(figure)
    base = alt.Chart(_inline(rows)).encode(x=x, y=y, color=shade)
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=dashes)
    dots = base.mark_circle(size=60, opacity=1).encode(
        tooltip=[
            alt.Tooltip("arm:N", title="Arm"),
            alt.Tooltip("rate:Q", title=figure.x_label, format=".3~e"),
            alt.Tooltip("mean:Q", title=figure.y_label, format=".5g"),
            alt.Tooltip("is_taken:N", title="Taken"),
        ]
    )
    taken = base.mark_point(size=220, strokeWidth=2, opacity=1).transform_filter("datum.is_taken")
    return [alt.layer(lines, dots, taken).properties(height=320)]


def _predictions(figure: Figure) -> list[Any]:
    names = [row.name for row in figure.predictions]
    rows = [{**vars(row), "error": row.predicted / row.measured - 1} for row in figure.predictions]
    base = alt.Chart(_inline(rows)).encode(
        y=alt.Y("name:N", title=None, sort=names, axis=alt.Axis(labelLimit=220)),
        tooltip=[
            alt.Tooltip("name:N", title="What trained"),
            alt.Tooltip("predicted:Q", title="Predicted", format=".5g"),
            alt.Tooltip("measured:Q", title="Measured", format=".5g"),
            alt.Tooltip("error:Q", title="Error", format="+.1%"),
        ],
    )
    x = alt.X("predicted:Q", title=figure.x_label, scale=alt.Scale(zero=False, padding=12))
    lines = base.mark_rule(color="#C8C8C8", strokeWidth=2).encode(x=x, x2="measured:Q")
    at = alt.X("measured:Q", title=figure.x_label)
    packs = base.mark_point(size=70, filled=True, opacity=1, color=GREY).encode(x=at)
    arms = base.mark_point(size=70, filled=True, opacity=1).encode(x=at, color=_shades(figure))
    predicted = base.mark_point(size=140, color=GREY, opacity=1).encode(x=x)
    layers = (
        lines,
        packs.transform_filter("datum.arm === null"),
        arms.transform_filter("datum.arm !== null"),
        predicted,
    )
    return [alt.layer(*layers).properties(height=_height(names))]


def _rows(figure: Figure) -> list[Any]:
    (arm,) = figure.arms
    rows = [{"arm": arm, **vars(row)} for row in figure.rows]
    bars = (
        alt.Chart(_inline(rows))
        .mark_rule(strokeWidth=max(1.0, 300 / len(rows)))
        .encode(
            x=alt.X(
                "place:Q", title=figure.x_label, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format=".0%")
            ),
            y=alt.Y("difference:Q", title=figure.y_label),
            y2=alt.Y2Datum(0),
            color=_shades(figure),
            tooltip=[
                alt.Tooltip("row:Q", title="Row"),
                alt.Tooltip("ours:Q", title=arm, format=".4g"),
                alt.Tooltip("theirs:Q", title=figure.marked or "", format=".4g"),
                alt.Tooltip("difference:Q", title="Difference", format="+.4g"),
            ],
        )
    )
    return [alt.layer(bars).properties(height=260)]


def _forgetting(figure: Figure) -> list[Any]:
    base = alt.Chart(_inline([vars(row) for row in figure.forgetting])).encode(
        y=_arm_axis(figure.arms),
        tooltip=[
            alt.Tooltip("arm:N", title="Arm"),
            alt.Tooltip("before:Q", title="Before", format=".5g"),
            alt.Tooltip("after:Q", title="After", format=".5g"),
            alt.Tooltip("n:Q", title="Seeds"),
        ],
    )
    x = alt.X("before:Q", title=figure.x_label, scale=alt.Scale(zero=False))
    lines = base.mark_rule(color="#C8C8C8", strokeWidth=2).encode(x=x, x2="after:Q")
    bars = base.mark_rule(strokeWidth=2.4).encode(
        color=_shades(figure), x=alt.X("low:Q", title=figure.x_label), x2="high:Q"
    )
    before = base.mark_point(size=90, fill="white", color=GREY, opacity=1).encode(x=x)
    after = base.mark_point(size=90, filled=True, opacity=1).encode(
        color=_shades(figure), x=alt.X("after:Q", title=figure.x_label)
    )
    return [alt.layer(lines, bars, before, after).properties(height=_height(figure.arms))]


def _pairs(figure: Figure) -> list[Any]:
    rows = [{**vars(row), "state": "decided" if row.decided else "open"} for row in figure.pairs]
    label = _folded(figure.x_label)
    base = alt.Chart(_inline(rows)).encode(y=_arm_axis(figure.arms))
    shade = _shades(figure)
    x = alt.X("mean:Q", title=label, scale=alt.Scale(zero=True, padding=12))
    bars = base.mark_rule(strokeWidth=2.4).encode(x=alt.X("low:Q", title=label), x2="high:Q", color=shade)
    dots = base.mark_point(size=45, opacity=1).encode(
        x=x,
        color=shade,
        fill=_fills(figure, when="datum.decided"),
        tooltip=[
            alt.Tooltip("arm:N", title="Arm"),
            alt.Tooltip("mean:Q", title="Difference", format="+.4g"),
            alt.Tooltip("low:Q", title="From", format="+.4g"),
            alt.Tooltip("high:Q", title="To", format="+.4g"),
            alt.Tooltip("n:Q", title="Pairs"),
            alt.Tooltip("verdict:N", title="Verdict"),
        ],
    )
    # Above its bar and clear of it, wherever the bar lies: beside it there is no room on a phone.
    verdicts = base.mark_text(align="right", dy=-_VERDICT_ABOVE, fontSize=12, color="black").encode(
        x=alt.value("width"), text="verdict:N"
    )
    zero = alt.Chart(_inline([{"at": 0}])).mark_rule(color="black").encode(x=alt.X("at:Q", title=label))
    has_intervals = any(row.low is not None for row in figure.pairs)
    layers = [*_margin_band(figure), zero, *([bars] if has_intervals else []), dots, verdicts]
    return [alt.layer(*layers).properties(height=_PAIR_HEIGHT * len(figure.arms) + 10)]


def _scale(figure: Figure) -> Any:
    arms = list(figure.arms)
    return alt.Scale(domain=arms, range=[figure.colour_of(arm) for arm in arms])


def _legend(figure: Figure) -> tuple[Any, Any]:
    """Each arm in its colour and its dash, with a legend of both."""
    arms = list(figure.arms)
    dashes = [list(dash(figure.place(arm))) or [1, 0] for arm in arms]
    widest = _LETTER_WIDTH * max(map(len, arms)) + _BESIDE_LABEL
    legend = alt.Legend(columns=max(1, min(4, _LEGEND_WIDTH // widest)))
    return (
        alt.Color("arm:N", title="Arm", sort=arms, scale=_scale(figure), legend=legend),
        alt.StrokeDash(
            "arm:N", title="Arm", sort=arms, scale=alt.Scale(domain=arms, range=dashes), legend=legend
        ),
    )


def _shades(figure: Figure) -> Any:
    """Each arm in its colour, which is the same in every figure."""
    return alt.Color("arm:N", scale=_scale(figure), legend=None)


def _fills(figure: Figure, *, when: str) -> Any:
    """The arm's colour where the condition holds, else white."""
    return alt.condition(when, alt.Fill("arm:N", scale=_scale(figure), legend=None), alt.value("white"))


def _margin_band(figure: Figure) -> list[Any]:
    if figure.margin is None:
        return []
    band = alt.Chart(_inline([{"low": -figure.margin, "high": figure.margin}])).mark_rect(
        color=SKY, opacity=0.25
    )
    return [band.encode(x=alt.X("low:Q", title=_folded(figure.x_label)), x2="high:Q")]


def _folded(label: str) -> list[str]:
    """The unit on a line of its own, so that a phone shows it."""
    name, bracket, unit = label.partition(" (")
    return [name, f"({unit}"] if bracket else [name]


def _arm_axis(arms: Sequence[str]) -> Any:
    return alt.Y("arm:N", title=None, sort=list(arms), axis=alt.Axis(labelLimit=220))


def _estimate_tooltip(label: str, *, centre: str = "mean") -> list[Any]:
    return [
        alt.Tooltip("arm:N", title="Arm"),
        alt.Tooltip("mean:Q", title=f"{label}, {centre}", format=".5g"),
        alt.Tooltip("low:Q", title="From", format=".5g"),
        alt.Tooltip("high:Q", title="To", format=".5g"),
        alt.Tooltip("n:Q", title="Seeds"),
    ]


def _estimates(rows: Sequence[Estimate]) -> Rows:
    return [
        {"arm": row.arm, "rank": row.rank, "mean": row.mean, "low": row.low, "high": row.high, "n": row.n}
        for row in rows
    ]


def _seeds(rows: Sequence[Estimate]) -> Rows:
    """The single seeds, if there is more than one."""
    return [
        {"arm": row.arm, "rank": row.rank, "value": value}
        for row in rows
        if row.n > 1
        for value in row.values
    ]


def _inline(rows: Rows) -> Any:
    return alt.Data(values=[dict(row) for row in rows])


def _height(arms: Sequence[str]) -> int:
    return 26 * len(arms) + 10


_CHARTS: dict[Kind, Callable[[Figure], list[Any]]] = {
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
