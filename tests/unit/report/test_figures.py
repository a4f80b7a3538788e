"""What the figures show, before and after drawing."""

from dataclasses import replace

import pytest

from lorastudy.analysis.overview import analyse
from lorastudy.report.figures import static
from lorastudy.report.figures.data import MAX_DRAWN, study_figures
from lorastudy.report.figures.interactive import vega_lite_specs
from lorastudy.report.figures.static import save_figure
from lorastudy.stats.study import split_studies
from lorastudy.stats.summary import LOSS, CurvePoint

CURVES = {
    "r1": (
        CurvePoint(step=5, mean=2.0, low=1.9, high=2.1, n=6),
        CurvePoint(step=9, mean=1.0, low=None, high=None, n=1),
    )
}


@pytest.fixture(scope="module")
def figures(make_rank_results):
    (study,) = split_studies(make_rank_results())
    return {figure.name: figure for figure in study_figures(analyse(study), CURVES)}


@pytest.fixture(scope="module")
def charts(figures):
    """The specifications by figure; a schema checks each as it is made, which takes a tenth of a second."""
    return {name: vega_lite_specs(figure) for name, figure in figures.items()}


@pytest.fixture
def bare(make_result):
    (study,) = split_studies([make_result("a", 0, experiment_type="own")])
    return analyse(study)


def test_the_plots_of_the_specification_and_three_more(figures):
    assert list(figures) == [
        "pairs",
        "rank_comparison",
        "efficiency_frontier",
        "training_time",
        "adapter_size",
        "parameters",
        "training_curves",
        "forgetting",
    ]


def test_rank_comparison_shows_loss_accuracy_and_memory_by_rank(figures, rank_study):
    loss, match, memory = figures["rank_comparison"].panels
    assert (loss.label, memory.label) == ("Held-out loss (nats per token)", "Peak memory (MiB)")
    assert match.label == "Exact match (share)"
    assert [row.rank for row in loss.rows] == [1, 2, 4, 8, 16, 32]
    losses = [r.scores["eval", "loss"].value for r in rank_study if r.arm == "r4"]
    assert loss.rows[2].values == tuple(losses)
    assert loss.rows[2].mean == pytest.approx(sum(losses) / 6)
    assert loss.rows[2].low < loss.rows[2].mean < loss.rows[2].high
    # 9,000,000 + 60,000 x 4 + 500 x (0 + ... + 5) / 6 bytes
    assert memory.rows[2].mean == pytest.approx(9_241_250 / 2**20)


def test_frontier_marks_what_nothing_beats(figures):
    figure = figures["efficiency_frontier"]
    assert figure.x_label == "Peak memory, arm alone (MiB)"
    assert [point.on_frontier for point in figure.points] == [True] * 6


def test_training_time_is_a_median_with_its_range(figures):
    share, step = figures["training_time"].panels
    assert share.label == "Training time, share of the pack (s)"
    row = share.rows[0]
    # 3.0, 3.1, ... 3.5 seconds
    assert (row.low, row.mean, row.high) == (3.0, pytest.approx(3.25), 3.5)
    assert step.label == "One step, arm alone (ms)"
    assert step.rows[0].mean == pytest.approx(12.1)


def test_adapter_size_and_parameters(figures):
    (panel,) = figures["adapter_size"].panels
    assert panel.label == "Adapter file (KiB)"
    assert panel.rows[-1].mean == pytest.approx((4 * 2304 * 32 + 800) / 1024)
    row = figures["parameters"].parameters[0]
    assert (row.trainable, row.total, row.share) == (2304, 312_304, 2304 / 312_304)


def test_forgetting_goes_from_before_to_after(figures):
    rows = figures["forgetting"].forgetting
    assert {row.before for row in rows} == {0.21}
    assert rows[0].after < rows[-1].after


def test_curves_keep_the_order_of_arms_and_their_points(figures):
    assert [(row.arm, row.point.step) for row in figures["training_curves"].curves] == [("r1", 5), ("r1", 9)]


def test_of_several_rates_the_curve_of_the_rate_taken_is_drawn(make_result):
    losses = {(4, 1e-4): 2.0, (4, 1e-3): 1.5, (8, 1e-4): 1.2, (8, 1e-3): 1.4}
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
    (study,) = split_studies(results)
    points = [CurvePoint(step=1, mean=1.0, low=None, high=None, n=1)]
    drawn = study_figures(analyse(study), {result.arm: points for result in results})
    (curves,) = (figure for figure in drawn if figure.kind == "curves")
    assert curves.arms == ("r4_0.001", "r8_0.0001")
    assert "Of 4 arms, those at the learning rate at which they are compared." in curves.caption


def test_values_at_the_end_of_bars_have_the_digits_of_the_tables(figures):
    figure = figures["adapter_size"]
    panel = figure.panels[0]
    rows = [replace(row, mean=mean) for row, mean in zip(panel.rows, (11.9, 39.0, 147.0), strict=False)]
    with static.house_style():
        canvas = static._bars(replace(figure, panels=(replace(panel, rows=tuple(rows)),)))
    assert [text.get_text() for text in canvas.axes[0].texts] == ["11.9", "39.0", "147"]


def test_what_was_not_measured_is_not_drawn(bare):
    assert [figure.name for figure in study_figures(bare, {})] == ["arm_comparison", "training_time"]


def test_one_seed_has_no_interval(bare):
    (figure, _) = study_figures(bare, {})
    row = figure.panels[0].rows[0]
    assert (row.n, row.low, row.high) == (1, None, None)


def test_names_that_look_like_mathematics_are_drawn_as_they_are(make_result, tmp_path):
    (study,) = split_studies([make_result("$a_b$ \\frac", 0, experiment_type="own")])
    for figure in study_figures(analyse(study), {}):
        png, svg = save_figure(figure, tmp_path)
        assert png.read_bytes().startswith(b"\x89PNG")
        assert b"<dc:date>" not in svg.read_bytes()


def test_charts_carry_the_same_rows_as_the_figures(figures, charts):
    spec = charts["rank_comparison"][0]
    dots = next(layer for layer in spec["layer"] if "tooltip" in layer["encoding"])
    drawn = [row["mean"] for row in dots["data"]["values"]]
    assert drawn == [row.mean for row in figures["rank_comparison"].panels[0].rows]


def test_every_chart_fits_its_width_and_is_labelled(charts):
    for specs in charts.values():
        for spec in specs:
            assert spec["width"] == "container"
            titles = [
                channel.get("title")
                for layer in spec["layer"]
                for name, channel in layer["encoding"].items()
                if name in {"x", "y"} and isinstance(channel, dict) and channel.get("type") == "quantitative"
            ]
            assert titles
            assert all(titles)


def test_names_on_the_frontier_stand_beside_their_points_within_the_chart(figures, charts):
    (spec,) = charts["efficiency_frontier"]
    names = [layer for layer in spec["layer"] if layer["mark"]["type"] == "text"]
    filters = [layer["transform"][0]["filter"] for layer in names]
    # Half way between 9,001,250 + 60,000 and 9,001,250 + 32 x 60,000 bytes.
    middle = (9_001_250 + 16.5 * 60_000) / 2**20
    assert [layer["mark"]["align"] for layer in names] == ["left", "right"]
    assert [text.split(" ")[1] for text in filters] == ["<=", ">"]
    assert all(float(text.split(" ")[2]) == pytest.approx(middle) for text in filters)


def test_of_many_points_only_those_on_the_frontier_and_the_named_arm_have_names(figures):
    figure = figures["efficiency_frontier"]
    points = [replace(figure.points[0], arm=f"arm {n}", on_frontier=n < 2) for n in range(13)]
    arms = tuple(point.arm for point in points)
    many = replace(
        figure, points=tuple(points), arms=arms, coloured=arms, marked="arm 9", marked_as="for now"
    )
    (spec,) = vega_lite_specs(many)
    named = [row["label"] for row in spec["data"]["values"]]
    assert [label for label in named if label] == ["arm 0", "arm 1", "arm 9 (for now)"]


@pytest.mark.parametrize(("label", "columns"), [("r=1", 4), ("r=16, q,v, lr 2e-4", 1)])
def test_a_legend_is_as_wide_as_a_phone(figures, label, columns):
    figure = figures["training_curves"]
    rows = tuple(replace(row, arm=label) for row in figure.curves)
    (spec,) = vega_lite_specs(replace(figure, arms=(label,), coloured=(label,), curves=rows))
    found = {
        channel["legend"]["columns"]
        for layer in spec["layer"]
        for channel in layer["encoding"].values()
        if "legend" in channel
    }
    assert found == {columns}


def test_without_intervals_no_bars_are_drawn(figures):
    figure = figures["pairs"]
    single = replace(figure, pairs=tuple(replace(row, low=None, high=None) for row in figure.pairs))
    (before,), (after,) = vega_lite_specs(figure), vega_lite_specs(single)
    assert len(before["layer"]) - len(after["layer"]) == 1


def test_charts_are_the_same_twice(figures, charts):
    assert {name: vega_lite_specs(figure) for name, figure in figures.items()} == charts


def test_of_very_many_arms_the_foremost_are_drawn_and_the_caption_says_so(make_rank_results):
    (study,) = split_studies(make_rank_results(ranks=range(1, MAX_DRAWN + 6), num_seeds=2))
    analysis = analyse(study)
    drawn = {figure.name: figure for figure in study_figures(analysis, {})}
    bars = drawn["adapter_size"]
    assert len(bars.arms) == MAX_DRAWN
    assert analysis.reference.name in bars.arms
    assert set(analysis.frontier) <= set(bars.arms)
    assert f"Of {MAX_DRAWN + 5} arms, the reference" in bars.caption
    # Left out are the worst of those that are neither.
    scores = {summary.arm.name: summary.score(LOSS).mean for summary in analysis.completed}
    chosen = set(bars.arms) - set(analysis.frontier) - {analysis.reference.name}
    assert max(scores[name] for name in chosen) <= min(
        scores[name] for name in scores.keys() - set(bars.arms)
    )
    assert len(drawn["efficiency_frontier"].points) == MAX_DRAWN + 5
    assert [row.arm for row in drawn["pairs"].pairs] == [a for a in bars.arms if a != analysis.reference.name]
