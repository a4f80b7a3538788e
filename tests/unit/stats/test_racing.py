"""Who is stopped by racing: by hand, and in simulated races in which all arms are equal."""

import math

import numpy as np
import pytest

from benchmarks.verdict_studies import PROFILES
from lorastudy.stats.racing import (
    LEVEL,
    RaceRules,
    allowance_at,
    clearly_behind,
    measured_races,
    p_behind,
)
from lorastudy.stats.rate_choice import best_if_on_edge
from lorastudy.stats.twoway import ItemScores
from lorastudy.store.views import ScoreValue
from lorastudy.suite.question import MIN_SEEDS, Margin, rung_split

ITEMS = (0.5, -0.5)  # about an arm's loss, equal for all, so that they cancel


def losses(**by_arm):
    """Losses by seed, each arm's list counted from seed 0; two items each."""
    return {
        arm: {seed: ItemScores(values=tuple(value + item for item in ITEMS)) for seed, value in enumerate(values)}
        for arm, values in by_arm.items()
    }  # fmt: skip


def stopped(table, *, num_arms=2, num_rungs=1, rung=0.5, base_loss=2.0, asked=None, **rules):
    rules = RaceRules(num_arms=num_arms, num_rungs=num_rungs, **{"allowance": 0.1, **rules})
    found = clearly_behind(table, rung=rung, base_loss=base_loss, rules=rules, **(asked or {}))
    return {one.arm: one for one in found}


#: The leader gained 1 over the base, so the allowance is 0.1. The difference is 0.5, 0.6 and 0.7, its mean 0.6 with a
#: standard error of 0.1 / sqrt(3) = 0.0577, so t = (0.6 - 0.1) / 0.0577 = 8.66 at two degrees of freedom (all of the
#: variance is between three seeds), and p = 1/2 - t / (2 sqrt(2 + t**2)) = 1/2 - 8.660 / (2 sqrt(77)) = 0.00654.
THREE = losses(ahead=[1.0, 1.0, 1.0], behind=[1.5, 1.6, 1.7])
P = 0.5 - math.sqrt(75) / (2 * math.sqrt(77))


def test_by_hand():
    (found,) = stopped(THREE).values()
    assert (found.arm, found.ahead, found.num_seeds) == ("behind", "ahead", 3)
    assert found.difference == pytest.approx(0.6)
    assert found.bound == pytest.approx(0.1)
    assert found.p == pytest.approx(P, rel=1e-9)
    assert pytest.approx(0.00654, abs=5e-6) == P


@pytest.mark.parametrize(
    ("num_arms", "num_rungs", "is_stopped"),
    [(2, 1, True), (4, 1, True), (2, 3, True), (5, 1, False), (2, 4, False), (3, 2, False)],
)
def test_every_arm_and_every_look_counts(num_arms, num_rungs, is_stopped):
    """3 x 0.00654 = 0.0196 is within .02, 4 x 0.00654 = 0.0262 is not."""
    assert bool(stopped(THREE, num_arms=num_arms, num_rungs=num_rungs, level=0.02)) == is_stopped


def test_the_allowance_is_a_share_of_what_was_gained_by_then():
    # With 0.45 no p helps: seed 0 is behind by 0.5, and t = (0.6 - 0.45) / 0.0577 = 2.6 gives p = .06
    assert not stopped(THREE, allowance=0.45, level=0.05)
    # the base at 1.0 + 1e-9: nothing was gained, so nothing is known
    assert not stopped(THREE, base_loss=1.0)


def test_the_allowance_falls_with_what_is_left_to_train_over_what_is_done():
    # (1 - r) / r is 7, 3, 1 and 1/3
    shares = [allowance_at(rung, allowance=0.04) for rung in (0.125, 0.25, 0.5, 0.75)]
    assert shares == pytest.approx([0.28, 0.12, 0.04, 0.04 / 3])
    for rung, bound in ((0.25, 0.3), (0.5, 0.1)):
        (found,) = stopped(THREE, rung=rung, level=1.0).values()
        assert found.bound == pytest.approx(bound)
    assert not stopped(THREE, rung=0.125, level=1.0)  # 0.7 of the gain of 1, and the arm is behind by 0.6


def test_the_noise_of_items_is_met_with_their_own_degrees():
    """Seeds as in `THREE`: V(seeds) = 0.01 / 3. Two items, 0.01 to either side of the mean: I = 2 x 2 x (0.01 / 2)**2.

    The t quantiles at p have closed forms: (1 - 2p) / sqrt(2p (1 - p)) with two degrees, cot(pi p) with one.
    """
    differences = np.array([[mean + 0.01, mean - 0.01] for mean in (0.5, 0.6, 0.7)])
    for p in (0.1, 0.01, 1e-4):
        of_seeds = (1 - 2 * p) / math.sqrt(2 * p * (1 - p))
        of_items = 1 / math.tan(math.pi * p)
        half_width = math.sqrt(of_seeds**2 * 0.01 / 3 + of_items**2 * 0.0001)
        assert p_behind(differences, np.ones(2), bound=0.6 - half_width) == pytest.approx(p, rel=1e-6)
    assert p_behind(differences, np.ones(2), bound=0.6) == 1.0


def test_rows_of_one_prompt_count_once():
    # Of twelve rows nine share a prompt, and there alone the arm is behind.
    differences = np.array([[1.0 + 0.01 * seed] * 9 + [0.02 * seed, 0.01, -0.01] for seed in range(3)])
    alone = p_behind(differences, np.ones(12), bound=0.1)
    together = p_behind(differences, np.ones(12), bound=0.1, groups=[0] * 9 + [1, 2, 3])
    assert alone < 1e-3
    assert together > 20 * alone


def test_the_best_rate_of_a_configuration_goes_on_while_no_verdict_could_call_it_worse():
    rates = [("ahead",), ("slow", "slower")]
    few = losses(ahead=[1.0] * 5, slow=[1.5, 1.6, 1.7, 1.6, 1.5], slower=[1.9, 1.8, 1.9, 1.8, 1.9])
    assert stopped(few, num_arms=3).keys() == {"slow", "slower"}
    assert stopped(few, num_arms=3, asked={"configurations": rates}).keys() == {"slower"}
    enough = losses(
        ahead=[1.0] * 6, slow=[1.5, 1.6, 1.7, 1.6, 1.5, 1.6], slower=[1.9, 1.8, 1.9, 1.8, 1.9, 1.8]
    )
    assert len(enough["ahead"]) == MIN_SEEDS
    assert stopped(enough, num_arms=3, asked={"configurations": rates}).keys() == {"slow", "slower"}


def test_one_seed_on_which_it_is_not_behind_keeps_an_arm():
    many = {"ahead": [1.0] * 20, "behind": [1.6] * 19 + [1.05]}
    assert p_behind(np.array([[v - 1.0] * 2 for v in many["behind"]]), np.ones(2), bound=0.1) < 1e-6
    assert not stopped(losses(**many))
    assert stopped(losses(**(many | {"behind": [1.6] * 19 + [1.15]})))


def test_the_best_of_the_reference_is_never_stopped():
    table = losses(ahead=[1.0] * 3, slow=[1.5, 1.6, 1.7], slower=[1.7, 1.8, 1.9])
    assert stopped(table, num_arms=3).keys() == {"slow", "slower"}
    assert stopped(table, num_arms=3, asked={"reference": ("slow", "slower")}).keys() == {"slower"}


def test_with_a_margin_an_arm_must_be_behind_the_reference_by_more_than_it():
    table = losses(ahead=[1.0] * 3, reference=[1.299, 1.3, 1.301], behind=[1.51, 1.52, 1.53])
    assert stopped(table, num_arms=3).keys() == {"reference", "behind"}
    # behind the reference by 0.22; the margin of 0.1 and a tenth of its gain of 0.7 make 0.17
    margin = Margin(amount=0.1)
    assert stopped(table, num_arms=3, asked={"reference": ("reference",)}, margin=margin).keys() == {"behind"}
    margin = Margin(amount=0.2)
    assert not stopped(table, num_arms=3, asked={"reference": ("reference",)}, margin=margin)
    # a tenth of the gain of 0.7, and another tenth of it as the allowance: 0.14
    (found,) = stopped(
        table, num_arms=3, asked={"reference": ("reference",)}, margin=Margin(amount=0.1, is_share=True)
    ).values()
    assert found.bound == pytest.approx(0.14)


def test_an_arm_that_lacks_a_seed_neither_leads_nor_is_stopped():
    assert not stopped(losses(ahead=[1.0] * 3, lacks=[1.5, 1.6]))
    table = losses(lacks=[0.1, 0.1], ahead=[1.0] * 3, behind=[1.5, 1.6, 1.7])
    assert {one.ahead for one in stopped(table, num_arms=2).values()} == {"ahead"}


def test_nothing_is_decided_without_items_in_common():
    table = losses(ahead=[1.0] * 3, behind=[1.5] * 3)
    table["behind"][0] = ItemScores(values=(1.0, 2.0, 3.0))
    assert not stopped(table)
    assert not stopped({})
    assert not stopped(losses(ahead=[1.0], behind=[2.0]))


def test_where_nothing_varies_nothing_is_shown():
    assert not stopped(losses(ahead=[1.0] * 3, behind=[1.5] * 3))


def test_weights_are_those_of_the_items():
    heavy = {
        "ahead": {s: ItemScores(values=(1.0, 1.0), weights=(9, 1)) for s in range(3)},
        "behind": {
            s: ItemScores(values=(1.5 + s / 10, 1.5 + s / 10), weights=(9, 1)) for s in range(3)
        },
    }  # fmt: skip
    assert stopped(heavy)["behind"].p == pytest.approx(P, rel=1e-9)
    unlike = {
        "ahead": {s: ItemScores(values=(1.0, 1.0), weights=(9, 1)) for s in range(3)},
        "behind": {s: ItemScores(values=(1.0, 9.0 + s / 10), weights=(9, 1)) for s in range(3)},
    }
    assert stopped(unlike, level=1.0)["behind"].difference == pytest.approx(0.81)  # 8.1 x 1/10


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
@pytest.mark.parametrize(
    "num_seeds", [3, pytest.param(4, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)]
)
def test_equal_arms_are_stopped_no_more_often_than_the_level_says(profile, num_seeds):
    """300 races of six equal arms over three looks, each look new noise, without any allowance: the hardest case."""
    draw = np.random.default_rng(7)
    num_races, num_arms, num_looks, num_items = 300, 6, 3, 40
    rules = RaceRules(num_arms=num_arms, num_rungs=num_looks, allowance=0.0)
    num_stopped = 0
    for _ in range(num_races):
        going = list(range(num_arms))
        for _ in range(num_looks):
            seeds = draw.normal(0, profile.seeds, (num_arms, num_seeds, 1))
            items = draw.normal(0, profile.items, (num_arms, 1, num_items))
            cells = draw.normal(0, profile.cells, (num_arms, num_seeds, num_items))
            noise = (seeds + items + cells) / math.sqrt(2)  # of a difference, as the profiles have it
            table = {
                str(arm): {seed: ItemScores(values=tuple(1 + noise[arm, seed])) for seed in range(num_seeds)}
                for arm in going
            }
            gone = {int(one.arm) for one in clearly_behind(table, rung=0.5, base_loss=9.0, rules=rules)}
            num_stopped += len(gone)
            going = [arm for arm in going if arm not in gone]
    assert num_stopped / (num_races * num_arms) <= LEVEL


def test_a_rate_that_was_stopped_was_tried(make_result):
    """Of three rates the middle one completed and the outer ones were stopped: it lies inside. All stopped: the last ahead."""
    from lorastudy.stats.study import split_studies

    def of(rate, *, status="completed", at_rung=None):
        scores = {("eval", "loss"): ScoreValue(value=1.0, unit="nats", version=1, num_items=2)}
        kind = None
        if status == "stopped":
            kind = "pruned"
            scores = {
                (rung_split(rung), "loss"): ScoreValue(value=value, unit="nats", version=1, num_items=2)
                for rung, value in at_rung.items()
            }
        return make_result(
            f"a_lr{rate}",
            0,
            settings={"learning_rate": rate},
            status=status,
            failure_kind=kind,
            scores=scores,
        )

    early, late = {0.25: 3.0}, {0.25: 2.0, 0.5: 1.9}
    (study,) = split_studies(
        [of(0.1, status="stopped", at_rung=early), of(0.2), of(0.4, status="stopped", at_rung=early)]
    )
    assert best_if_on_edge(study, study.arms) is None
    (study,) = split_studies(
        [
            of(r, status="stopped", at_rung=rungs)
            for r, rungs in ((0.1, early), (0.2, late), (0.4, {0.25: 1.0}))
        ]
    )
    assert best_if_on_edge(study, study.arms) is None
    (study,) = split_studies(
        [
            of(r, status="stopped", at_rung=rungs)
            for r, rungs in ((0.1, early), (0.2, {0.25: 1.0}), (0.4, late))
        ]
    )
    assert best_if_on_edge(study, study.arms).name == "a_lr0.4"


def test_what_was_measured_is_there_to_be_told():
    for one in measured_races():
        assert 0 <= one["num_wrong_stops"] <= one["num_stops"]
        assert one["wrong_stops"] == pytest.approx(one["num_wrong_stops"] / one["num_stops"])
