"""Runs that chose a learning rate: they tell which rate was taken, and report nothing."""

import math
from dataclasses import replace

import pytest

from lorastudy.analysis.overview import analyse
from lorastudy.lint.case import measured_case
from lorastudy.lint.lint import lint, untuned
from lorastudy.report.numbers import ABSENT
from lorastudy.report.sections.tuning import rate_blocks
from lorastudy.stats.rate_choice import best_of, best_rate_within, learning_rates, rates_of
from lorastudy.stats.study import Study, split_studies
from lorastudy.stats.summary import EXACT_MATCH, LOSS, scores_by_seed
from lorastudy.store.views import ScoreValue
from lorastudy.suite.parabola import parabola

TUNING = frozenset({8, 9})


def losses(eval_loss: float, test_loss: float):
    return {
        (split, "loss"): ScoreValue(value=value, unit="nats", version=1, num_items=10)
        for split, value in (("eval", eval_loss), ("test", test_loss))
    }


@pytest.fixture
def searched(make_result) -> Study:
    """Two ranks at three rates each. Tuning runs have a test loss of 100, which nothing may ever show."""
    results = []
    for rank, held_out in ((1, {1e-3: 3.0, 2e-3: 2.0, 5e-3: 2.5}), (8, {1e-3: 1.5, 2e-3: 1.0, 5e-3: None})):
        for rate, loss in held_out.items():
            settings = {"lora_rank": rank, "lora_alpha": "2r", "learning_rate": rate}
            options = {"settings": settings, "experiment_type": "rank_ablation"}
            name = f"r{rank}_lr{rate:g}"
            for seed in TUNING:
                ended = (
                    {"scores": losses(loss, 100.0)}
                    if loss
                    else {"scores": {}, "status": "failed", "failure_kind": "diverged"}
                )
                results.append(make_result(name, seed, **options, **ended))
            if rate == 2e-3:
                results += [
                    make_result(name, s, scores=losses(9.0, 1 / rank + s / 100), **options) for s in range(6)
                ]
    (study,) = split_studies(results)
    return replace(study, tuning_seeds=TUNING)


def test_only_the_chosen_rates_and_the_other_seeds_are_reported(searched):
    assert [arm.name for arm in searched.reported_arms] == ["r1_lr0.002", "r8_lr0.002"]
    assert set(scores_by_seed(searched.arm("r1_lr0.002"), searched, metric=LOSS)) == set(range(6))
    analysis = analyse(searched)
    assert [summary.arm.name for summary in analysis.summaries] == ["r1_lr0.002", "r8_lr0.002"]
    (comparison,) = analysis.comparisons[LOSS.key]
    assert (comparison.arm, comparison.reference, comparison.n) == ("r1_lr0.002", "r8_lr0.002", 6)
    assert comparison.mean == pytest.approx(1 - 1 / 8)


def a_search(make_result, *, tuning, reported, extra=()):
    """Configurations by name: the held-out loss by rate with seed 8, and at 2e-3 those of the seeds that report."""
    results = []
    for number, (name, by_rate) in enumerate(tuning.items(), start=1):
        for rate, loss in by_rate.items():
            options = {"settings": {"lora_rank": number, "lora_alpha": "2r", "learning_rate": rate}}
            arm = f"{name}_lr{rate:g}"
            ended = {"scores": losses(loss, 100.0)} if loss else {"status": "failed", "scores": {}}
            if loss is None:
                ended["failure_kind"] = "diverged" if name in extra else "crashed"
            results.append(make_result(arm, 8, **options, **ended))
            if rate == 2e-3:
                results += [
                    make_result(arm, seed, scores=losses(held_out, 1.0), **options)
                    for seed, held_out in enumerate(reported[name])
                ]
    (study,) = split_studies(results)
    return replace(study, tuning_seeds=frozenset({8}))


SYMMETRIC = {1e-3: 1.1, 2e-3: 1.0, 4e-3: 1.1}


def within(study, rate=2e-3, *, metric=LOSS):
    return [
        best_rate_within(study, rates_of(study, arm), metric=metric)
        for arm in study.arms
        if arm.settings["learning_rate"] == rate
    ]


def test_how_near_the_best_rate_is_follows_from_what_arms_of_one_seed_have_each_of_their_own(make_result):
    """Two arms with two seeds: the residual of each cell is (1.00 - 1.04 - 1.00 + 1.00) / 4 = -.01, with one degree of freedom.

    So the noise is sqrt(4 * .01^2) = .02, and the factor that of the parabola with it.
    """
    study = a_search(
        make_result,
        tuning={"a": SYMMETRIC, "b": SYMMETRIC},
        reported={"a": [1.0, 1.04], "b": [1.0, 1.0]},
    )
    wanted = parabola(list(SYMMETRIC.items())).factor(0.02, taken=2e-3)
    assert within(study) == pytest.approx([wanted, wanted])


def test_how_near_the_best_rate_is_of_a_single_arm_follows_from_its_seeds(make_result):
    study = a_search(make_result, tuning={"a": SYMMETRIC}, reported={"a": [1.0, 1.02]})
    noise = 0.02 / math.sqrt(2)  # the standard deviation of two
    assert within(study) == pytest.approx([parabola(list(SYMMETRIC.items())).factor(noise, taken=2e-3)])


def test_a_lost_neighbour_is_passed_over_and_beside_a_diverged_one_nobody_knows(make_result):
    tuning = {"a": {1e-3: 1.1, 2e-3: 1.0, 4e-3: None, 8e-3: 1.4}}
    reported = {"a": [1.0, 1.0]}
    (lost,) = within(a_search(make_result, tuning=tuning, reported=reported))
    through = parabola([(1e-3, 1.1), (2e-3, 1.0), (8e-3, 1.4)])
    assert lost == pytest.approx(through.factor(0.0, taken=2e-3))
    assert within(a_search(make_result, tuning=tuning, reported=reported, extra=("a",))) == [None]


def test_on_an_edge_and_with_one_seed_nobody_knows_how_near_the_best_rate_is(make_result):
    falling = {"a": {1e-3: 1.1, 2e-3: 1.0}}
    assert within(a_search(make_result, tuning=falling, reported={"a": [1.0, 1.1]})) == [None]
    one = a_search(make_result, tuning={"a": SYMMETRIC}, reported={"a": [1.0]})
    assert within(one) == [None]


def with_exact_matches(study, shares):
    """The study with an exact match for each learning rate, the same with every seed."""
    arms = tuple(
        replace(
            arm,
            results=tuple(
                replace(run, scores={**run.scores, **exact_match(shares[arm.settings["learning_rate"]])})
                for run in arm.results
            ),
        )
        for arm in study.arms
    )
    return replace(study, arms=arms)


def exact_match(share):
    score = ScoreValue(value=share, unit="", version=1, num_items=10)
    return {(split, "exact_match"): score for split in ("eval", "test")}


@pytest.mark.parametrize(
    ("shares", "is_known"),
    [
        ((0.3, 0.3, 0.3), True),
        ((0.0, 0.0, 0.0), True),
        # It is not level, and best on the edge of what was tried: how far beyond the best rate lies nobody knows.
        ((0.3, 0.4, 0.5), False),
    ],
)
def test_where_the_metric_is_level_the_loss_says_how_near_the_best_rate_is(make_result, shares, is_known):
    study = a_search(
        make_result,
        tuning={"a": SYMMETRIC, "b": SYMMETRIC},
        reported={"a": [1.0, 1.04], "b": [1.0, 1.0]},
    )
    study = with_exact_matches(study, dict(zip(SYMMETRIC, shares, strict=True)))
    by_loss = parabola(list(SYMMETRIC.items())).factor(0.02, taken=2e-3)
    wanted = [pytest.approx(by_loss) if is_known else None] * 2
    assert within(study, metric=EXACT_MATCH) == wanted


def test_a_metric_is_level_though_a_lost_run_leaves_means_that_differ_by_rounding(make_result):
    """The means then come from a fit: 0.2999999999999999, 0.2999999999999998 and 0.29999999999999977."""
    results = [
        make_result(
            f"a_lr{rate:g}", seed, scores=losses(loss + seed * wobble, 1.0) | exact_match(0.3),
            settings={"lora_rank": 1, "lora_alpha": "2r", "learning_rate": rate},
        )
        for (rate, loss), wobble in zip(SYMMETRIC.items(), (0.01, 0.02, 0.04), strict=True)
        for seed in range(3)
        if (rate, seed) != (1e-3, 2)
    ]  # fmt: skip
    (study,) = split_studies(results)
    (by_loss,) = within(study)
    assert by_loss is not None
    assert within(study, metric=EXACT_MATCH) == [by_loss]


def test_the_choice_is_told_from_the_tuning_runs_alone(searched):
    arm = searched.arm("r1_lr0.002")
    assert scores_by_seed(arm, searched, metric=LOSS, choosing=True) == {8: 2.0, 9: 2.0}
    assert best_of(searched, rates_of(searched, arm), metric=LOSS) == arm
    rates = learning_rates(searched)
    assert (rates.num_configurations, rates.num_varied, rates.on_edge, rates.were_sought) == (2, 2, (), True)


def test_the_report_lists_what_was_tried(searched):
    heading, about, table = rate_blocks(analyse(searched), level=2)
    assert heading.text == "Learning rates"
    assert "seeds 8 and 9" in about.text[0]
    assert "not the test rows" in about.text[0]
    assert [column.title for column in table.columns] == [
        "Configuration",
        "0.001",
        "0.002",
        "0.005",
        "taken",
        "",
    ]
    assert [[cell.text for cell in row] for row in table.rows] == [
        # Losses 1.0 and .5 above the lowest, ln 2 = .693 below and ln 2.5 = .916 above it: slopes -1.443 and .546, curvature
        # 1.236, lowest .237 above; no noise, and a step of .805. exp(.237 + 1.96 * .37 * .805) = 2.27.
        ["r1", "3.000", "2.000", "2.500", "0.002", "tuned to within a factor of 2.3"],
        ["r8", "1.500", "1.000", "diverged", "0.002", "tuned; how closely is not known"],
    ]


def test_a_rate_that_only_reporting_seeds_ran_has_no_mean_beside_those_tried(make_result):
    """Their losses are of other seeds: 9.0 would look nine times worse than its neighbours."""
    study = a_search(make_result, tuning={"a": SYMMETRIC}, reported={"a": [1.0]})
    settings = {"settings": {"lora_rank": 1, "lora_alpha": "2r", "learning_rate": 3e-3}}
    between = [make_result("a_lr0.003", seed, scores=losses(9.0, 1.0), **settings) for seed in (0, 1)]
    (whole,) = split_studies([*(run for arm in study.arms for run in arm.results), *between])
    *_, table = rate_blocks(analyse(replace(whole, tuning_seeds=frozenset({8}))), level=2)
    titles = [column.title for column in table.columns]
    ((_, *cells),) = [[cell.text for cell in row] for row in table.rows]
    assert cells[titles.index("0.003") - 1] == ABSENT
    assert cells[titles.index("0.002") - 1] == "1.000"


def test_a_search_that_is_still_running_is_said_to_be_and_its_grid_is_not_to_be_extended(make_result):
    """`b` has a rate that reports; of `a` three rates are tried, the largest of which is best so far."""
    tried = {"a": {1e-3: 3.0, 2.1e-3: 2.0, 5e-3: 1.0}, "b": SYMMETRIC}
    study = a_search(make_result, tuning=tried, reported={"b": [1.0]})
    found = {finding.code: finding for finding in lint(measured_case(study))}
    assert "LS102" not in found
    assert found["LS106"].arms == ("a_lr0.001", "a_lr0.0021", "a_lr0.005")
    assert (
        found["LS106"].found == "the search is still running: 3 learning rates tried so far, and none chosen"
    )
    *_, table = rate_blocks(analyse(study), level=2)
    assert {row[0].text: (row[-2].text, row[-1].text) for row in table.rows}["a"] == (
        ABSENT,
        "the search is still running",
    )
    assert untuned(found.values()) == set(found["LS106"].arms)
    over = a_search(make_result, tuning={"b": SYMMETRIC}, reported={"b": [1.0]})
    assert not {"LS102", "LS106"} & {finding.code for finding in lint(measured_case(over))}


def test_a_rate_on_the_edge_is_said_to_be_untuned(make_result):
    results = [
        make_result("a_lr0.001", 0, 2.0, settings={"learning_rate": 1e-3}),
        make_result("a_lr0.002", 0, 1.0, settings={"learning_rate": 2e-3}),
    ]
    (study,) = split_studies(results)
    (row,) = rate_blocks(analyse(study), level=2)[2].rows
    assert row[-1].text == "on the edge of what was tried: not tuned"


def test_a_study_at_one_rate_lists_none(make_study):
    assert rate_blocks(analyse(make_study({"a": [1.0], "b": [2.0]})), level=2) == []
