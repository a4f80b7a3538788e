"""Which seed's adapter to use: the best on validation rows where test rows report, else the first."""

from dataclasses import replace

import pytest

from lorastudy.recommend.adapter import adapter_to_use
from lorastudy.stats.study import split_studies
from lorastudy.stats.summary import EXACT_MATCH, LOSS
from lorastudy.store.views import ScoreValue


def score(value, version=1):
    return ScoreValue(value=value, unit="nats", version=version, num_items=10)


@pytest.fixture
def study_of(make_result):
    """One arm whose seeds have these scores on the validation rows, and the same score on the test rows if there are any."""

    def make(scores, *, has_test=True, metric="loss", **options):
        results = [
            make_result("r4", seed, 1.0, adapter_path=f"adapters/{seed}", **options)
            for seed in range(len(scores))
        ]
        of_test = {("test", "loss"): score(1.0)} if has_test else {}
        results = [
            replace(run, scores={**run.scores, **of_test, ("eval", metric): score(value)})
            for run, value in zip(results, scores, strict=True)
        ]
        return split_studies(results)[0]

    return make


def chosen(study, metric=LOSS):
    return adapter_to_use(study, study.arms[0], metric=metric)


def test_test_rows_report_so_validation_rows_choose_the_seed(study_of):
    choice = chosen(study_of([1.3, 1.1, 1.2]))
    assert (choice.seed, choice.experiment_id) == (1, "r4/1")
    assert choice.words == "r4, seed 1: the lowest held-out loss of 3 seeds on the validation rows"


def test_of_a_metric_of_which_more_is_better_the_highest_is_taken(study_of):
    choice = chosen(study_of([0.3, 0.1, 0.4], metric="exact_match"), metric=EXACT_MATCH)
    assert choice.seed == 2
    assert choice.why.startswith("the highest exact match")


def test_a_metric_that_validation_rows_lack_leaves_the_choice_to_their_loss(study_of):
    assert chosen(study_of([1.3, 1.1, 1.2]), metric=EXACT_MATCH).why.startswith("the lowest held-out loss")


def test_validation_rows_that_report_do_not_choose(study_of):
    choice = chosen(study_of([1.3, 1.1, 1.2], has_test=False))
    assert choice.seed == 0
    assert "first seed" in choice.why


def test_seeds_that_chose_the_learning_rate_and_runs_without_adapter_are_not_taken(study_of, make_result):
    study = replace(study_of([0.9, 1.1, 1.2]), tuning_seeds=frozenset({0}))
    assert chosen(study).seed == 1
    without = split_studies([make_result("r4", 0, 1.0)])[0]
    assert chosen(without) is None


def test_equal_scores_take_the_first_seed(study_of):
    assert chosen(study_of([1.1, 1.1])).seed == 0


def test_scores_of_an_older_version_of_the_metric_choose_nothing(study_of):
    study = study_of([1.3, 1.1])
    (arm,) = study.arms
    old = replace(arm.results[1], scores={**arm.results[1].scores, ("eval", "loss"): score(1.1, version=0)})
    study = replace(study, arms=(replace(arm, results=(arm.results[0], old)),))
    assert chosen(study).seed == 0
