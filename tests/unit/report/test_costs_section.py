"""The frontier with its probabilities, the tied set and the chosen rates, as the report tells them."""

from dataclasses import replace

import pytest

from lorastudy.analysis.overview import Criterion, analyse
from lorastudy.report.document import Heading, Paragraph, Table
from lorastudy.report.figures.data import MAX_CURVES, curves_figure, pairs_figure, study_figures
from lorastudy.report.figures.interactive import vega_lite_specs
from lorastudy.report.figures.static import save_figure
from lorastudy.report.numbers import ABSENT
from lorastudy.report.sections.costs import frontier_blocks
from lorastudy.report.sections.tuning import rate_blocks
from lorastudy.stats.study import split_studies
from lorastudy.stats.summary import CurvePoint
from tuned import tuned_study

pytestmark = pytest.mark.long


def plain(block):
    return "".join(span if isinstance(span, str) else span.text for span in block.text)


def analysis_of(results, **options):
    (study,) = split_studies(results)
    return analyse(study, **options)


def test_standings_are_those_of_the_analysis(rank_study):
    analysis = analyse(tuned_study(rank_study))
    heading, explained, table, tied_heading, tied = frontier_blocks(analysis, figures=(), level=2)
    assert heading == Heading(level=2, text="Efficiency frontier")
    assert isinstance(explained, Paragraph)
    assert "Counted: score, peak memory, step time, forgetting." in plain(explained)
    assert isinstance(table, Table)
    assert [row[0].text for row in table.rows] == [standing.arm for standing in analysis.standings]
    assert [row[-1].value for row in table.rows] == [standing.probability for standing in analysis.standings]
    assert [row[1].value for row in table.rows] == pytest.approx(
        [analysis.summary(s.arm).score(analysis.primary).mean for s in analysis.standings]
    )
    assert tied_heading == Heading(level=2, text="Which arms may be the best")
    assert plain(tied).startswith(
        "With 95 % confidence the best arm is among r32. Left out: r1, r2, r4, r8 and r16."
    )


def test_untuned_arms_are_on_the_frontier_of_their_rate_and_none_is_best(rank_study):
    analysis = analysis_of(rank_study)
    _, explained, table, _, tied = frontier_blocks(analysis, figures=(), level=2)
    assert "this is the frontier at the one learning rate that was tried (0.0002)" in plain(explained)
    assert [row[0].text for row in table.rows] == [f"{one.arm} (untuned)" for one in analysis.standings]
    assert plain(tied).startswith(
        "With 95 % confidence at the one learning rate that was tried (0.0002) the arm of the best score is among r32."
    )
    figure = pairs_figure(analysis)
    assert figure is not None
    assert {row.verdict for row in figure.pairs} == {"reference ahead, untuned"}
    assert not any(row.decided for row in figure.pairs)
    assert "or it holds at untuned rates only" in figure.caption


def test_forgetting_has_the_digits_that_differ(rank_study):
    def after(run, loss):
        key = ("forgetting", "loss")
        return replace(run, scores=run.scores | {key: replace(run.scores[key], value=loss)})

    losses = {"r1": 0.2101, "r2": 0.2103, "r4": 0.5, "r8": 0.6, "r16": 0.7, "r32": 0.8}
    _, _, table, *_ = frontier_blocks(
        analysis_of([after(run, losses[run.arm]) for run in rank_study]), figures=(), level=2
    )
    assert [row[4].text for row in table.rows] == ["0.2101", "0.2103", "0.5000", "0.6000", "0.7000", "0.8000"]


def test_what_one_seed_cannot_give_is_said(make_rank_results):
    analysis = analyse(tuned_study(make_rank_results(num_seeds=1)))
    _, explained, table, _, tied = frontier_blocks(analysis, figures=(), level=2)
    assert plain(explained).endswith("With one seed there is no probability.")
    assert {row[-1].text for row in table.rows} == {ABSENT}
    assert plain(tied).startswith("No set: it takes at least 6 seeds")


def test_a_single_arm_has_no_frontier(make_result):
    assert frontier_blocks(analysis_of([make_result("a", 0)]), figures=(), level=2) == []


def test_chosen_rates_are_listed_with_their_optimism(make_result):
    results = [
        make_result(
            f"r{rank}_lr{rate:g}",
            seed,
            settings={"lora_rank": rank, "lora_alpha": "2r", "learning_rate": rate},
            scores={("eval", "loss"): 1 / rank + extra + 0.01 * seed},
        )
        for rank in (2, 4)
        for rate, extra in ((1e-4, 0.2), (1e-3, 0.0), (1e-2, 0.3))
        for seed in range(3)
    ]
    heading, about, table = rate_blocks(analysis_of(results), level=2)
    assert heading == Heading(level=2, text="Learning rates")
    assert "Mean loss on the held-out rows, which also report" in plain(about)
    assert "Optimism: how much better" in plain(about)
    assert [column.title for column in table.columns][-3:] == ["taken", "optimism (nats per token)", ""]
    # Log rates in steps of ln 10 = 2.303, losses .2 and .3 above the lowest: the parabola is lowest .230 below it
    # (-2.303 / 2 + (.2 / 2.303) / (2 * .04715), with a curvature of (.5 / 2.303) / 4.605 = .04715). Seeds move all alike, so
    # there is no noise; exp(.230 + 1.96 * .37 * 2.303) = 6.69.
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["r2", "0.710", "0.510", "0.810", "0.001", "0.0000", "tuned to within a factor of 6.7"],
        ["r4", "0.460", "0.260", "0.560", "0.001", "0.0000", "tuned to within a factor of 6.7"],
    ]


def test_one_rate_each_is_no_choice(rank_study):
    assert rate_blocks(analysis_of(rank_study), level=2) == []


def test_the_forest_plot_has_the_comparisons_the_margin_and_the_words(rank_study):
    analysis = analyse(tuned_study(rank_study), criterion=Criterion(margin=0.05))
    figure = pairs_figure(analysis)
    assert figure is not None
    assert figure.margin == 0.05
    assert figure.x_label == "Held-out loss, arm minus reference (nats per token)"
    assert "arm minus r32;" in figure.caption
    for row, comparison in zip(figure.pairs, analysis.primary_comparisons, strict=True):
        assert (row.arm, row.mean, (row.low, row.high)) == (
            comparison.arm,
            comparison.mean,
            comparison.interval,
        )
        assert row.decided
    assert figure.pairs[0].verdict == "reference is better"
    assert figure.pairs[-1].verdict == "as good within the margin"
    (spec,) = vega_lite_specs(figure)
    band = spec["layer"][0]
    assert band["mark"]["type"] == "rect"
    assert band["data"]["values"] == [{"low": -0.05, "high": 0.05}]


def test_the_forest_plot_of_one_seed_has_dots_and_no_interval(make_rank_results):
    figure = pairs_figure(analysis_of(make_rank_results(num_seeds=1)))
    assert figure is not None
    assert {(row.low, row.high, row.decided) for row in figure.pairs} == {(None, None, False)}
    assert "one seed gives no interval" in figure.caption


def every_curve(analysis):
    point = CurvePoint(step=1, mean=1.0, low=None, high=None, n=1)
    return curves_figure(analysis, {arm.name: [point] for arm in analysis.study.arms})


@pytest.fixture(scope="module")
def sixty_arms(make_rank_results):
    return analysis_of(make_rank_results(ranks=range(1, 61), num_seeds=2))


def test_sixty_arms_are_drawn_in_full(sixty_arms, tmp_path):
    """Where a layout does not fit matplotlib warns, and a warning fails a test."""
    figures = {figure.name: figure for figure in study_figures(sixty_arms, {})}
    assert len(figures["pairs"].arms) == 59
    for name in ("pairs", "parameters", "efficiency_frontier"):
        png, _ = save_figure(figures[name], tmp_path)
        assert png.stat().st_size > 0


def test_a_legend_of_as_many_arms_as_can_be_told_apart_fits(make_rank_results, tmp_path):
    figure = every_curve(analysis_of(make_rank_results(ranks=range(1, MAX_CURVES + 1), num_seeds=1)))
    assert len(figure.arms) == MAX_CURVES == 28
    save_figure(figure, tmp_path)


def test_of_more_curves_than_can_be_told_apart_the_reference_and_the_frontier_are_drawn(sixty_arms):
    figure = every_curve(sixty_arms)
    assert 1 < len(figure.arms) <= MAX_CURVES
    assert set(figure.arms) <= {*sixty_arms.frontier, "r60"}
    assert "Of 60 arms, the reference and those on the frontier." in figure.caption
