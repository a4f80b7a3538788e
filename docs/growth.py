"""How cost grows: one figure and one sentence for each thing that grows, from the results files alone."""

import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from speed import NOT_MEASURED, newest_growth

from lorastudy.report.document import BLUE, GREY, VERMILLION
from lorastudy.report.figures.static import WIDTH_INCHES, house_style
from lorastudy.report.numbers import count, duration, number


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Something that grows, in words."""

    name: str
    title: str
    x_label: str
    unit: str
    seconds_of: str


QUANTITIES = (
    Quantity(
        name="arms",
        title="A step, as arms join the pack",
        x_label="Arms in the pack",
        unit="arm",
        seconds_of="A step",
    ),
    Quantity(
        name="tokens",
        title="A step, as its batch grows",
        x_label="Tokens of a step, for each arm",
        unit="token",
        seconds_of="A step",
    ),
    Quantity(
        name="length",
        title="A step of a fixed number of tokens, as its rows grow longer",
        x_label="Tokens of a row",
        unit="token of a row's length",
        seconds_of="A step",
    ),
    Quantity(
        name="store",
        title="Storing a study",
        x_label="Experiments",
        unit="experiment",
        seconds_of="Storing a study",
    ),
    Quantity(
        name="report",
        title="Reporting a study",
        x_label="Experiments",
        unit="experiment",
        seconds_of="Its report",
    ),
)


def growth_block(root: Path) -> str:
    """Per quantity the figure and what the fit says; one sentence where nothing was measured."""
    found = newest_growth(root)
    if found is None:
        return f"{NOT_MEASURED.capitalize()}."
    where, measured = found
    parts = [f"Measured on {where}. Dots: single measurements. Line: least squares through their medians."]
    for quantity in QUANTITIES:
        if quantity.name in measured:
            parts.append(f"![{quantity.title}](../benchmarks/figures/growth_{quantity.name}.svg)")
            parts.append(statement(quantity, measured[quantity.name]))
    return "\n\n".join(parts)


def statement(quantity: Quantity, found: Mapping[str, Any]) -> str:
    """What the points and their fit say, in one sentence or two."""
    points, fit = found["points"], found["fit"]
    first, last = points[0], points[-1]
    return (
        f"{quantity.seconds_of} took {duration(_median(first))} at {count(first['size'])} and "
        f"{duration(_median(last))} at {count(last['size'])}: {duration(max(fit['slope'], 0.0))} for each {quantity.unit} "
        f"more, R² = {number(fit['r_squared'], 4)}. {judgement(fit['last_exponent'])}"
    )


def judgement(exponent: float) -> str:
    """What the exponent between the two largest sizes says of growth."""
    said = f"Between the two largest sizes seconds grow as size to the power {number(exponent, 2)}"
    if exponent > 1.15:
        return f"{said}: faster than linearly."
    return f"{said}: {'linearly' if exponent >= 0.85 else 'slower than linearly'}."


def growth_figures(root: Path) -> dict[Path, Mapping[str, Any]]:
    """Where each figure belongs, and the data that it is drawn from."""
    found = newest_growth(root)
    if found is None:
        return {}
    folder = root / "benchmarks" / "figures"
    return {
        folder / f"growth_{quantity.name}.svg": {
            "quantity": quantity.name,
            "points": found[1][quantity.name]["points"],
            "fit": found[1][quantity.name]["fit"],
        }
        for quantity in QUANTITIES
        if quantity.name in found[1]
    }


def drawn_growth(data: Mapping[str, Any]) -> str:
    """The figure as SVG: points and the fitted line on logarithmic axes, where a power of 1 has slope 1."""
    quantity = next(each for each in QUANTITIES if each.name == data["quantity"])
    points = data["points"]
    sizes = [point["size"] for point in points]
    with house_style():
        canvas = Canvas(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
        axes = canvas.subplots()
        for point in points:
            axes.plot(
                [point["size"]] * len(point["seconds"]),
                point["seconds"],
                "o",
                color=GREY,
                markersize=4,
                alpha=0.6,
            )
        axes.plot(sizes, [_median(point) for point in points], "o", color=BLUE, markersize=7, zorder=3)
        axes.plot(*_line(data["fit"], sizes=sizes), color=VERMILLION, linewidth=1.6, zorder=2)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [count(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: duration(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(quantity.x_label)
        axes.set_title(quantity.title, loc="left")
        FigureCanvasAgg(canvas)
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _line(fit: Mapping[str, float], *, sizes: Sequence[int]) -> tuple[list[float], list[float]]:
    """The fitted line between the smallest and the largest size, as far as a logarithmic axis can show it."""
    places = [sizes[0] * (sizes[-1] / sizes[0]) ** (step / 64) for step in range(65)]
    kept = [(place, y) for place in places if (y := fit["intercept"] + fit["slope"] * place) > 0]
    return [place for place, _ in kept], [y for _, y in kept]


def _median(point: Mapping[str, Any]) -> float:
    return float(statistics.median(point["seconds"]))
