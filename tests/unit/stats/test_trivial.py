"""Arms against trivial predictors: by the estimate that arms are compared by, on the arm's own runs."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import labelled
from lorastudy.stats.study import split_studies
from lorastudy.stats.summary import EXACT_MATCH, LOSS
from lorastudy.stats.trivial import (
    AgainstTrivial,
    against_trivial,
    best_not_ahead,
    constant_answer,
    gain_start,
    trivial_spreads,
)
from lorastudy.stats.twoway import seeds_only, two_way


def study_of(arms, **changes):
    results, items = labelled.results_of(arms, **changes)
    (study,) = split_studies(results)
    return replace(study, tuning_seeds=frozenset({labelled.TUNING_SEED})), items


def compared(study, items, *, metric=LOSS):
    arms = [arm for arm in study.arms if arm.name in {"r1", "r4"}]
    found = against_trivial(study, arms, metric=metric, items=items)
    return {(one.arm, one.predictor): one for one in found}


@pytest.fixture(scope="module")
def both():
    return study_of({1: labelled.same_word, 4: labelled.learnt})


def test_the_same_word_to_every_row_is_beaten_and_an_arm_that_learnt_is_not(both):
    found = compared(*both)
    assert {key: one.is_beaten for key, one in found.items()} == {
        ("r1", "frequencies"): False, ("r1", "unigram"): True,
        ("r4", "frequencies"): True, ("r4", "unigram"): True,
    }  # fmt: skip
    # Half the tokens are ends, and a unigram does not know where one stands: log 2 a token more than the frequencies.
    frequencies, unigram = found["r1", "frequencies"].score, found["r1", "unigram"].score
    assert unigram - frequencies == pytest.approx(math.log(2), abs=0.003)
    seen = Counter(labelled.TRAIN)
    assert frequencies == pytest.approx(sum(-math.log(seen[one] / 401) for one in labelled.HELD_OUT) / 800)


def test_the_interval_is_that_of_paired_differences_by_seed_and_row(both):
    study, items = both
    values = [items[f"r4/{seed}", "eval", "loss"].values for seed in range(labelled.NUM_SEEDS)]
    guessed = [score.items for score in labelled.TRIVIAL if score.predictor == "frequencies"]
    expected = two_way(np.array(values) - np.array(guessed), np.full(400, 2.0)).interval()
    assert compared(study, items)["r4", "frequencies"].interval == pytest.approx(tuple(map(float, expected)))
    means = [float(np.mean(one) - np.mean(guessed)) for one in values]
    about_these_rows = compared(study, {})["r4", "frequencies"].interval
    assert about_these_rows == pytest.approx(tuple(map(float, seeds_only(means).interval())))


def test_a_share_is_beaten_from_above(both):
    study, items = both
    found = compared(study, items, metric=EXACT_MATCH)
    share = labelled.HELD_OUT.count(0) / 400
    constant = found["r1", "constant"]
    assert (constant.score, constant.arm_score, constant.is_beaten) == (share, share, False)
    assert found["r4", "constant"].is_beaten
    assert constant_answer(study) == "good"
    assert trivial_spreads(study, metric=EXACT_MATCH)["constant"].values == (share,) * labelled.NUM_SEEDS


def test_what_lies_within_the_noise_is_not_beaten():
    def hardly(label, seed, draw):
        """The frequencies themselves, and a nudge that is right on 51 rows of 100."""
        p = Counter(labelled.TRAIN)[label] / 401 * (1.05 if draw.random() < 0.51 else 0.95)
        return p, 0

    (one,) = [one for key, one in compared(*study_of({1: hardly})).items() if key == ("r1", "frequencies")]
    assert one.interval[0] < 0 < one.interval[1]
    assert not one.is_beaten


def test_scores_of_another_version_and_runs_that_tuned_are_not_compared(both):
    study, items = both
    old = tuple(replace(score, version=score.version - 1) for score in labelled.TRIVIAL)
    assert compared(*study_of({1: labelled.same_word}, trivial=old)) == {}
    only_tuned = replace(study, tuning_seeds=frozenset(range(101)))
    assert compared(only_tuned, items) == {}


def test_one_seed_is_told_by_its_mean(both):
    study, items = both
    first = replace(study, tuning_seeds=frozenset(range(1, 101)))
    found = compared(first, items)
    assert found["r4", "frequencies"].interval is None
    assert (found["r4", "frequencies"].is_beaten, found["r1", "frequencies"].is_beaten) == (True, False)


def test_the_gain_starts_from_the_best_that_needs_no_training(both):
    study, items = both
    reference = study.arm("r4")
    start = gain_start(study, reference, items=items)
    assert start.name == "answer frequencies"
    frequencies = next(score for score in labelled.TRIVIAL if score.predictor == "frequencies")
    assert set(start.by_seed.values()) == {frequencies.value}
    assert start.items[0].values == frequencies.items
    knows_the_format, its_items = study_of({4: labelled.learnt}, base_loss=0.4)
    start = gain_start(knows_the_format, knows_the_format.arm("r4"), items=its_items)
    assert (start.name, start.by_seed[0]) == ("the base model", pytest.approx(0.4))
    nobody_recorded, _ = study_of({4: labelled.learnt}, trivial=())
    assert gain_start(nobody_recorded, nobody_recorded.arm("r4")).name == "the base model"


def test_where_test_rows_report_guessing_is_scored_on_them_too(both):
    """The same study with its rows called test rows, and other rows that only choose, on which guessing is worse."""
    study, items = both
    worse = tuple(replace(score, value=score.value + 9) for score in labelled.TRIVIAL)
    renamed = {"eval": "test", "eval_before": "test_before"}
    results = [
        replace(
            run,
            scores=run.scores
            | {(renamed.get(split, split), name): s for (split, name), s in run.scores.items()},
            trivial=(*worse, *(replace(score, split="test") for score in labelled.TRIVIAL)),
        )
        for run in study.results
    ]
    on_test = {(one, renamed.get(split, split), name): value for (one, split, name), value in items.items()}
    (renamed_study,) = split_studies(results)
    told = replace(renamed_study, tuning_seeds=study.tuning_seeds)
    assert compared(told, on_test) == compared(study, items)
    assert trivial_spreads(told, metric=LOSS) == trivial_spreads(study, metric=LOSS)
    start = gain_start(told, told.arm("r4"), items=on_test)
    assert start.by_seed == gain_start(study, study.arm("r4"), items=items).by_seed


@pytest.mark.parametrize(
    ("metric", "rows", "wanted"),
    [
        # b is the better of a and b, and c, which is better still, beats both predictors; of the two .5 is harder to beat.
        (
            LOSS,
            [("a", 0.4, 0.7), ("b", 0.6, 0.65), ("b", 0.5, 0.65), ("c", 0.6, 0.3), ("c", 0.5, 0.3)],
            ("b", 0.5),
        ),
        (EXACT_MATCH, [("a", 0.9, 0.2), ("b", 0.5, 0.4), ("b", 0.6, 0.4), ("c", 0.6, 0.7)], ("b", 0.6)),
        (LOSS, [("a", 0.5, 0.4)], None),
        (LOSS, [], None),
    ],
)
def test_the_best_arm_that_does_not_beat_guessing_stands_for_all_of_them(metric, rows, wanted):
    found = [
        AgainstTrivial(
            arm=arm, predictor="constant", metric=metric, score=score, arm_score=arm_score, interval=None
        )
        for arm, score, arm_score in rows
    ]
    best = best_not_ahead(found)
    assert (None if best is None else (best.arm, best.score)) == wanted
