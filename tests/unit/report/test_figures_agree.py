"""What a figure draws is what its table says: values stand where the axis says, and an arm has one colour everywhere."""

import json
from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lorastudy.report.document import Figure
from lorastudy.report.figures import static
from lorastudy.report.figures.data import study_figures
from lorastudy.report.figures.interactive import vega_lite_specs
from lorastudy.report.read import read_report

LOSS, MATCH = ("eval", "loss"), ("eval", "exact_match")


@pytest.fixture
def figures(make_rank_results, make_tracker) -> dict[str, Figure]:
    """Of three arms that all answer .375 of the rows, but for a hair."""
    results = [
        replace(
            result,
            scores={
                **result.scores,
                MATCH: replace(result.scores[MATCH], value=0.375 + 1e-7 * result.seed),
            },
        )
        for result in make_rank_results(ranks=(2, 8, 16))
    ]
    (studied,) = read_report(make_tracker(results)).studies
    found = {figure.name: figure for figure in study_figures(studied.analysis, {})}
    for summary in studied.analysis.summaries:
        for panel in found["rank_comparison"].panels[:1]:
            (row,) = [row for row in panel.rows if row.arm == summary.arm.name]
            assert row.mean == pytest.approx(sum(row.values) / len(row.values))
    return found


def drawn(figure: Figure):
    with static.house_style():
        canvas = static._DRAWINGS[figure.kind](figure)
        FigureCanvasAgg(canvas).draw()
    return canvas


def test_every_tick_says_where_it_stands(figures):
    """With matplotlib's offset, values of .375 stood at a tick labelled 0."""
    for figure in figures.values():
        for axes in drawn(figure).axes:
            for axis in (axes.xaxis, axes.yaxis):
                assert axis.get_offset_text().get_text() == ""
                if axis.get_scale() == "linear":
                    for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True):
                        text = label.get_text().replace("\N{MINUS SIGN}", "-")
                        if text.lstrip("-").replace(".", "", 1).isdigit():
                            assert float(text) == pytest.approx(place, abs=5e-7)


def colours_of(figure: Figure) -> dict[str, str]:
    """By arm: the colour that the page's chart gives it."""
    found = {}

    def look(value):
        if isinstance(value, dict):
            scale = value.get("scale", {})
            if isinstance(scale, dict) and "range" in scale and value.get("field") == "arm":
                pairs = zip(scale["domain"], scale["range"], strict=True)
                found.update((arm, shade) for arm, shade in pairs if isinstance(shade, str))
            for part in value.values():
                look(part)
        if isinstance(value, list):
            for part in value:
                look(part)

    look(json.loads(json.dumps(vega_lite_specs(figure))))
    return found


def test_an_arm_has_one_colour_in_every_figure(figures):
    seen = {arm: {} for arm in ("r=2", "r=8", "r=16")}
    for name, figure in figures.items():
        shades = colours_of(figure)
        assert set(shades) == set(figure.arms), name
        for arm, shade in shades.items():
            assert figure.colour_of(arm) == shade
            seen[arm][name] = shade
    assert all(len(set(of_arm.values())) == 1 for of_arm in seen.values()), seen
    assert len({next(iter(of_arm.values())) for of_arm in seen.values()}) == 3


@pytest.mark.parametrize("value", [0.375, 0.0])
@pytest.mark.parametrize("kind", ["dots", "ranks"])
def test_a_chart_of_equal_values_has_room_about_them(figures, kind, value):
    """A scale from .375 to .375 has one tick, which Vega labels 0."""
    figure = figures["rank_comparison"]
    panel = next(panel for panel in figure.panels if panel.label.startswith("Exact match"))
    rows = tuple(
        replace(row, mean=value, low=value, high=value, values=(value,) * row.n) for row in panel.rows
    )
    (spec,) = vega_lite_specs(replace(figure, kind=kind, panels=(replace(panel, rows=rows),)))
    channel = "x" if kind == "dots" else "y"
    found = [layer["encoding"][channel].get("scale", {}).get("domain") for layer in spec["layer"]]
    (low, high) = next(domain for domain in found if domain is not None)
    assert low < value < high
