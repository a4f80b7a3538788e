"""What a figure draws is what its table says: values stand where the axis says, and an arm has one colour everywhere."""

import itertools
import json
from dataclasses import fields, replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lorastudy.protocol.records import MemoryPrediction, MemoryTerms
from lorastudy.report.document import Figure, Table, unfolded
from lorastudy.report.figures import static
from lorastudy.report.figures.data import frontier_figure, study_figures
from lorastudy.report.figures.evidence import predictions_figure, rates_figure, rows_figure
from lorastudy.report.figures.interactive import vega_lite_specs
from lorastudy.report.read import read_report
from lorastudy.report.row_differences import rows_of_deciding_pair
from lorastudy.report.sections.costs import prediction_blocks
from lorastudy.report.sections.results import results_blocks
from lorastudy.report.sections.row_by_row import row_blocks
from lorastudy.report.sections.tuning import rate_blocks

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


def cells_of(blocks, *, heading: str) -> list[dict[str, object]]:
    """The rows of the table under that heading: by column title, the value of each cell, or its text without one."""
    under = list(itertools.dropwhile(lambda block: getattr(block, "text", None) != heading, unfolded(blocks)))
    table = next(block for block in under if isinstance(block, Table))
    titles = [column.title for column in table.columns]
    return [
        {
            title: cell.text if cell.value is None else cell.value
            for title, cell in zip(titles, row, strict=True)
        }
        for row in table.rows
    ]


def test_the_chart_of_loss_memory_and_time_agrees_with_the_table_of_results(make_rank_results, make_tracker):
    (studied,) = read_report(make_tracker(make_rank_results())).studies
    figure = frontier_figure(studied.analysis)
    rows = cells_of(results_blocks(studied.analysis, level=2), heading="Results")
    assert (figure.x_label, figure.size_label) == ("Peak memory, arm alone (MiB)", "One step (ms)")
    for point in figure.points:
        (row,) = [row for row in rows if str(row["Arm"]).split(" (")[0] == point.arm]
        assert point.loss == row["Held-out loss (nats/token)"]
        assert point.memory * 2**20 == pytest.approx(row["Peak memory (MiB)"], rel=1e-3)  # mean and median
        assert point.time / 1000 == pytest.approx(row["Step (ms)"])
        assert dict(point.configuration)["lora_rank"] == point.arm.removeprefix("r=")
    (spec,) = vega_lite_specs(figure)
    titles = [one["title"] for layer in spec["layer"] for one in layer["encoding"].get("tooltip", [])]
    assert {"Arm", "One step (ms)", "lora_rank", "lora_alpha", "target_modules", "learning_rate"} <= set(
        titles
    )


def test_the_chart_of_learning_rates_agrees_with_its_table(make_result, make_tracker):
    """The best of three rates is marked; a rate at which training diverged has no point."""
    losses = {(4, 1e-4): 2.0, (4, 1e-3): 1.5, (4, 1e-2): 1.9, (8, 1e-4): 1.2, (8, 1e-3): 1.4}
    results = [
        make_result(
            f"r{rank}_{rate:g}",
            seed,
            settings={"lora_rank": rank, "learning_rate": rate},
            scores={("eval", "loss"): loss + 0.01 * seed},
        )
        for (rank, rate), loss in losses.items()
        for seed in range(2)
    ]
    lost = make_result("r8_0.01", 0, settings={"lora_rank": 8, "learning_rate": 1e-2})
    results.append(replace(lost, status="failed", failure_kind="diverged", scores={}))
    (studied,) = read_report(make_tracker(results)).studies
    figure = rates_figure(studied.analysis)
    rows = cells_of(rate_blocks(studied.analysis, level=2), heading="Learning rates")
    drawn = {}
    for row in figure.rates:
        drawn.setdefault(row.arm, []).append(row)
    assert len(drawn) == len(rows) == 2
    for of_arm, row in zip(drawn.values(), rows, strict=True):
        for point in of_arm:
            assert point.mean == row[f"{point.rate:g}"]
        assert [point.rate for point in of_arm if point.is_taken] == [row["taken"]]
    assert [len(of_arm) for of_arm in drawn.values()] == [3, 2]
    assert rows[1]["0.01"] == "diverged"


def test_the_chart_of_predicted_memory_agrees_with_its_table(make_rank_results, make_tracker):
    def predicted(result):
        terms = [field.name for field in fields(MemoryTerms)]
        prediction = MemoryPrediction(
            experiment_id=result.experiment_id,
            memory_kind="cpu_tensors",
            num_tokens=100,
            num_labels=50,
            alone_bytes=9 * 2**20 + result.settings["lora_rank"],
            pack_bytes=20 * 2**20,
            step_seconds=None,
            **dict.fromkeys(terms, 0),
        )
        return replace(result, prediction=prediction)

    (studied,) = read_report(make_tracker(list(map(predicted, make_rank_results(ranks=(2, 8)))))).studies
    figure = predictions_figure(studied.analysis)
    rows = cells_of(
        prediction_blocks(studied.analysis.study, level=2), heading="Predicted against measured memory"
    )
    assert [row.arm for row in figure.predictions] == ["r=2", "r=8"]
    for drawn, row in zip(figure.predictions, rows, strict=True):
        assert f"{drawn.name}, alone" == row["What trained"]
        assert drawn.predicted * 2**20 == pytest.approx(row["Predicted (MiB)"])
        assert drawn.measured * 2**20 == pytest.approx(row["Measured (MiB)"])


def test_the_chart_of_rows_agrees_with_its_table_and_with_the_paired_difference(
    make_rank_results, make_tracker
):
    (studied,) = read_report(make_tracker(make_rank_results())).studies
    analysis = studied.analysis
    found, figure = rows_of_deciding_pair(analysis), rows_figure(analysis)
    total = sum(row.weight for row in found.rows)
    assert sum(row.weight * row.difference for row in found.rows) / total == pytest.approx(found.pair.mean)
    by_row = {row.row: row for row in figure.rows}
    assert len(by_row) == 100  # as many items as were scored
    rows = cells_of(row_blocks(analysis, found, figures=[figure], level=2), heading="Row by row")
    assert len(rows) == 10
    unit = f"Difference ({analysis.primary.unit})"
    for row in rows:
        assert by_row[row["Row"]].difference == row[unit]
        assert by_row[row["Row"]].ours == row[found.pair.arm]
    assert [row[unit] for row in rows] == sorted((row[unit] for row in rows), reverse=True)
    assert max(row.difference for row in figure.rows) == rows[0][unit]


def test_of_many_rows_a_part_is_drawn_and_the_caption_says_so(make_rank_results, make_tracker, monkeypatch):
    monkeypatch.setattr("lorastudy.report.figures.evidence.MAX_ROWS_DRAWN", 30)
    (studied,) = read_report(make_tracker(make_rank_results())).studies
    figure = rows_figure(studied.analysis)
    assert len(figure.rows) == 25
    assert "Of 100 rows every 4th is drawn." in figure.caption
