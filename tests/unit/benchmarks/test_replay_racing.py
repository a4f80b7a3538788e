"""Replayed races: drawn from runs that are made by hand, so that it is known which stops are wrong."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.replay_racing import (
    MEASURED,
    RESULTS,
    Drawn,
    Rule,
    Runs,
    as_good_as_the_best,
    raced,
    replayed,
    told_in_reports,
    verdicts,
    with_more_rows,
)
from lorastudy.stats.racing import ALLOWANCE, LEVEL, RaceRules, p_behind
from lorastudy.suite.question import RUNGS

SHARES = tuple(number / 10 for number in range(1, 11))
NUM_SEEDS, NUM_ITEMS = 6, 30


def runs_of(curves):
    """Runs whose mean losses by arm and share are these, with a little noise; rates by threes."""
    draw = np.random.default_rng(3)
    arms = np.array(curves, dtype=np.float64)
    noise = draw.normal(0, 0.01, (len(arms), NUM_SEEDS, NUM_ITEMS))
    test_noise = draw.normal(0, 0.01, noise.shape)
    return Runs(
        name="by hand",
        ranks=tuple(2**number for number in range(len(arms) // 3)),
        rates=(1e-3, 1e-2, 1e-1),
        shares=SHARES,
        losses=arms.T[:, :, None, None] + noise,
        weights=np.ones(NUM_ITEMS),
        base_loss=3.0,
        test=arms[:, -1, None, None] + test_noise,
        test_weights=np.ones(NUM_ITEMS),
        about={},
    )


def line(start, end):
    return np.linspace(start, end, 10)


STEADY = [line(2.8, 2.6), line(2.6, 1.0), line(2.5, 1.6), line(2.9, 2.7), line(2.7, 1.5), line(2.6, 1.4)]
#: The second arm comes from far behind and is the best in the end.
LATE = [line(2.8, 2.6), [*[2.95] * 7, 1.5, 1.1, 0.9], line(2.5, 1.6), *STEADY[3:]]
ALL = Drawn(arms=tuple(range(6)), seeds=tuple(range(NUM_SEEDS)))
ASKED = {"rungs": (0.3, 0.6), "rules": RaceRules(num_arms=6, num_rungs=2)}


def test_what_is_behind_and_stays_so_is_stopped_rightly():
    runs = runs_of(STEADY)
    stopped = raced(runs, ALL, **ASKED)
    # the largest rank's best arm and the leader go on; the two slowest are gone at the first rung
    assert stopped[0] == stopped[3] == 0.3
    assert not {1, 5} & stopped.keys()
    assert as_good_as_the_best(runs, ALL) == {1}


def test_a_late_riser_is_stopped_wrongly_and_counted():
    runs = runs_of(LATE)
    assert raced(runs, ALL, **ASKED)[1] == 0.3
    assert as_good_as_the_best(runs, ALL) == {1}
    found = replayed(runs, rule=Rule(rungs=(0.3,), allowance=0.1), margin=None, num_seeds=6, num_studies=40)
    assert found["num_wrong_stops"] > 0
    assert found["wrong_stops"] == found["num_wrong_stops"] / found["num_stops"]
    assert found["same_best"] < 1
    assert found["same_verdicts"] <= found["same_best"]


def test_with_an_allowance_that_nothing_exceeds_a_race_is_the_full_grid():
    found = replayed(
        runs_of(LATE), rule=Rule(rungs=(0.3,), allowance=9.0), margin=None, num_seeds=6, num_studies=20
    )
    assert (found["num_stops"], found["same_verdicts"], found["share_of_steps"]) == (0, 1.0, 1.0)


def test_the_least_that_a_race_could_take_is_what_one_would_that_knew_the_end():
    """The best arm (1) and the reference's best (5) go on, the other four stop at the first look."""
    found = replayed(runs_of(STEADY), rule=Rule(rungs=(0.3, 0.6)), margin=None, num_seeds=6, num_studies=9)
    assert found["num_studies"] == 1
    assert found["least_share_of_steps"] == pytest.approx((2 + 4 * 0.3) / 6)
    assert found["share_of_steps"] >= found["least_share_of_steps"]


def test_more_rows_make_a_race_surer_and_leave_every_mean_as_it_was():
    runs = runs_of(STEADY)
    more = with_more_rows(runs, times=4)
    assert more.losses.mean(axis=-1) == pytest.approx(runs.losses.mean(axis=-1))
    assert (len(more.weights), len(more.test_weights)) == (4 * NUM_ITEMS, NUM_ITEMS)
    of_items = np.linspace(-1, 1, NUM_ITEMS)  # else all of the variance is between seeds
    differences = runs.losses[4, 2] - runs.losses[4, 1] + of_items
    p, p_of_more = (
        p_behind(np.tile(differences, (1, times)), np.ones(times * NUM_ITEMS), bound=0.2) for times in (1, 4)
    )
    assert p_of_more < p < 0.5
    assert as_good_as_the_best(more, ALL) == as_good_as_the_best(runs, ALL)


def test_the_words_are_those_against_the_largest_rank_at_its_best_rate():
    runs = runs_of(STEADY)
    full = verdicts(runs, ALL, margin=None)
    assert (full.best, full.words) == (1, {1: "better"})  # rank 1 ends at 1.0, rank 2 at 1.4
    turned = runs_of([*STEADY[3:], *STEADY[:3]])
    assert verdicts(turned, ALL, margin=None).words == {1: "worse than the reference"}
    assert verdicts(runs, replace(ALL, arms=(3, 4, 5)), margin=None).words == {}


def test_a_run_that_diverged_is_neither_stopped_nor_good():
    curves = np.array(STEADY)
    curves[2] = np.nan
    runs = runs_of(curves)
    assert 2 not in raced(runs, ALL, **ASKED)
    assert 2 not in as_good_as_the_best(runs, ALL)


def test_what_the_package_tells_is_what_was_kept():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert json.loads(MEASURED.read_text(encoding="utf-8")) == told_in_reports(results)
    assert results["rungs"] == list(RUNGS)
    assert (results["allowance"], results["level"]) == pytest.approx((ALLOWANCE, LEVEL))
