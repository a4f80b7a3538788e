"""Test rows report, held-out rows choose; without test rows the held-out rows do both."""

import pytest

from lorastudy.analysis.overview import analyse
from lorastudy.stats.rate_choice import best_of
from lorastudy.stats.study import obstacle, reporting_split, split_studies, stored_split
from lorastudy.stats.summary import EXACT_MATCH, LOSS, LOSS_BEFORE, scores_by_seed
from lorastudy.store.views import ScoreValue


def scored(value: float) -> ScoreValue:
    return ScoreValue(value=value, unit="nats", version=1, num_items=10)


def loss_on(**by_split: float):
    return {(split, "loss"): scored(value) for split, value in by_split.items()}


@pytest.fixture
def rates(make_result):
    """One configuration at two rates: the second is better where one chooses, the first on the test rows."""

    def make(**splits):
        return [
            make_result(f"r8_lr{rate:g}", seed, settings={"learning_rate": rate}, scores=loss_on(**values))
            for seed in (0, 1)
            for rate, values in ((1e-4, {"eval": 2.0, "test": 1.0}), (2e-4, {"eval": 1.5, "test": 1.25}))
        ]

    return make


def test_the_choice_is_made_on_held_out_rows_and_reported_on_test_rows(rates):
    (study,) = split_studies(rates())
    assert reporting_split(study) == "test"
    chosen = best_of(study, study.arms, metric=LOSS)
    assert chosen is not None
    assert chosen.name == "r8_lr0.0002"
    assert scores_by_seed(chosen, study, metric=LOSS) == {0: 1.25, 1: 1.25}
    assert scores_by_seed(chosen, study, metric=LOSS, choosing=True) == {0: 1.5, 1: 1.5}
    summary = analyse(study).summary("r8_lr0.0002").score(LOSS)
    assert summary is not None
    assert summary.mean == 1.25


def test_one_run_without_test_rows_and_the_study_reports_on_the_held_out_ones(rates, make_result):
    (study,) = split_studies([*rates(), make_result("old", 0, 3.0)])
    assert reporting_split(study) == "eval"
    assert scores_by_seed(study.arm("r8_lr0.0001"), study, metric=LOSS) == {0: 2.0, 1: 2.0}


def test_a_failed_run_without_scores_does_not_move_the_report(rates, make_result):
    (study,) = split_studies([*rates(), make_result("broken", 0, None, status="failed")])
    assert reporting_split(study) == "test"


@pytest.mark.parametrize(
    ("split", "there"),
    [("eval", "test"), ("eval_before", "test_before"), ("forgetting", "forgetting"), ("forgetting_before", "forgetting_before")],
)  # fmt: skip
def test_where_the_store_holds_what_reports(rates, split, there):
    (study,) = split_studies(rates())
    assert stored_split(split, study) == there
    assert stored_split(split, study, choosing=True) == split


def test_every_held_out_metric_moves_to_the_test_rows(make_result):
    scores = loss_on(eval=2.0, test=1.0, eval_before=4.0, test_before=3.0)
    scores |= {("eval", "exact_match"): scored(0.25), ("test", "exact_match"): scored(0.5)}
    (study,) = split_studies([make_result("a", 0, scores=scores)])
    values = [
        scores_by_seed(study.arms[0], study, metric=metric)[0] for metric in (LOSS, LOSS_BEFORE, EXACT_MATCH)
    ]
    assert values == [1.0, 3.0, 0.5]


def test_runs_on_other_test_rows_are_not_compared(make_result):
    one = make_result("a", 0, settings={"test_fraction": 0.1})
    other = make_result("b", 0, settings={"test_fraction": 0.2})
    assert obstacle(one, other) == "scored on different rows"
    assert obstacle(one, make_result("b", 0, settings={"test_fraction": 0.1})) is None
