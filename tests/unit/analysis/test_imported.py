"""Imported results under the rules for one's own: what is judged, paired, and left open."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lorastudy.analysis.imported import Share, analyse_imported, difference, share_of, shares_against_the_best
from lorastudy.errors import StudyError
from lorastudy.store.views import ImportedResult, ImportedScore


def imported(arm, seed=0, *, right=500, items=1000, metric="accuracy", unit="share", lower=False, **changes):
    value = right / items if unit == "share" else right
    score = ImportedScore(
        metric=metric,
        value=value,
        unit=unit,
        lower_is_better=lower,
        num_items=items if unit == "share" else None,
    )
    result = ImportedResult(
        suite_name="public", arm=arm, seed=seed, settings={"lora_rank": 8, "learning_rate": 1e-4, "name": arm},
        sources={"environment": "torch 2.9"}, scores=(score,), costs={}, tool="a tool", file="f.csv",
        file_sha256="0", location=f"f.csv:{arm}{seed}", imported_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return replace(result, **changes)


def names(arms):
    return [arm.name for arm in arms]


def test_arms_that_cannot_be_told_from_the_best():
    # the difference of two such shares has a standard error of .0223; Tukey's quantile for four arms is 2.57, Dunnett's for
    # three others 2.06. Against .560 arm c is .030 and d .048 behind, within .057: both may be the best; a, .160 behind, may not
    analysis = analyse_imported(
        [imported(name, right=right) for name, right in {"a": 400, "b": 560, "c": 530, "d": 512}.items()]
    )
    assert names(analysis.arms) == ["b", "c", "d", "a"]
    assert names(analysis.may_be_best) == ["b", "c", "d"]
    by_name = {arm.name: arm.against_best for arm in analysis.arms}
    assert by_name["c"].upper == pytest.approx(0.030 + 2.06 * 0.0223, abs=1e-3)
    # neighbours: b-c no, c-d no, d-a yes
    assert analysis.num_distinct_neighbours == 1


def test_one_seed_gives_no_verdict():
    analysis = analyse_imported([imported("a"), imported("b", right=900)])
    assert analysis.comparisons == ()
    assert [finding.code for finding in analysis.lint] == ["LS101", "LS208", "LS401"]


def test_several_seeds_are_paired_and_judged_as_one_s_own():
    results = [
        imported(
            arm, seed, right=loss + 0.01 * seed + wobble * seed * seed, metric="loss", unit="nats", lower=True
        )
        for arm, loss, wobble in (("first", 2.0, 0.0), ("second", 1.0, 0.001))
        for seed in range(6)
    ]
    (comparison,) = (c for c in analyse_imported(results, reference="first").comparisons)
    assert (comparison.arm, comparison.reference, comparison.n) == ("second", "first", 6)
    # the differences are -1 + .001 seed**2, of mean -1 + .055 / 6
    assert comparison.mean == pytest.approx(-1 + 0.055 / 6)
    # each arm has one learning rate, so the one ahead is not called better
    assert (comparison.verdict, comparison.ahead, comparison.winner) == ("untuned", "second", None)
    assert analyse_imported(results).shares == ()


def test_without_a_named_reference_the_order_of_the_file_names_none():
    results = [
        imported(
            arm, seed, right=score + 0.001 * seed * seed * (arm == "b"), metric="reward", unit="", lower=False
        )
        for arm, score in (("a", 1.0), ("b", 2.0))
        for seed in range(6)
    ]
    analysis, turned = analyse_imported(results), analyse_imported(results[::-1])
    assert names(analysis.arms) == ["b", "a"]
    assert analysis.comparisons == ()
    assert {arm: one.is_best for arm, one in analysis.against_best.items()} == {"a": False, "b": True}
    assert analysis.against_best == turned.against_best


def test_a_reference_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises(StudyError, match=r"--reference frist: no imported arm has that name.*first"):
        analyse_imported([imported("first"), imported("second")], reference="frist")


def grid(rank, rate, losses, **settings):
    """One loss for each seed; None for a run that diverged, "lost" for one that is not in the file."""
    return [
        imported(
            f"r{rank}_{rate}", seed, right=loss or 0.0, metric="loss", unit="nats", lower=True,
            settings={"lora_rank": rank, "learning_rate": rate, **settings}, is_diverged=loss is None,
            **({"scores": ()} if loss is None else {}),
        )
        for seed, loss in enumerate(losses)
        if loss != "lost"
    ]  # fmt: skip


NOISE = (0.001, -0.002, 0.0015, 0.0, -0.001, 0.002)


def around(mean, *, turn=0):
    return [mean + NOISE[(seed + turn) % 6] for seed in range(6)]


def test_a_grid_of_rates_is_read_as_one_and_a_lost_run_costs_nothing():
    best = around(1.000)
    best[3] = "lost"
    results = [
        *grid(16, 1e-4, around(1.1)), *grid(16, 3e-4, best), *grid(16, 1e-3, around(1.2)),
        *grid(4, 1e-4, around(1.12, turn=1)), *grid(4, 3e-4, around(1.02, turn=2)), *grid(4, 1e-3, around(1.22, turn=3)),
    ]  # fmt: skip
    analysis = analyse_imported(results)
    assert names(analysis.arms) == ["r16_0.0003", "r4_0.0003"]
    assert [arm.num_rates for arm in analysis.arms] == [3, 3]
    assert [arm for arm, one in analysis.against_best.items() if one.is_best] == ["r16_0.0003"]
    assert analysis.untuned == frozenset()


def test_a_rate_at_which_runs_diverged_is_tried_and_not_chosen():
    results = [
        *grid(16, 1e-4, around(1.1)), *grid(16, 3e-4, around(1.0)), *grid(16, 1e-3, [0.9, None, 0.9, None, 0.9, None]),
        *grid(4, 1e-4, around(1.12)), *grid(4, 3e-4, around(1.02, turn=2)), *grid(4, 1e-3, around(1.3)),
    ]  # fmt: skip
    analysis = analyse_imported(results)
    assert names(analysis.arms) == ["r16_0.0003", "r4_0.0003"]
    assert "LS102" not in {finding.code for finding in analysis.lint}


def test_an_arm_that_diverged_at_its_best_rate_is_not_called_best():
    results = [
        *grid(16, 1e-4, [*around(1.1)[:5], None]), *grid(16, 3e-4, [*around(1.0)[:5], None]),
        *grid(16, 1e-3, [*around(1.2)[:5], None]), *grid(4, 1e-4, around(1.12)), *grid(4, 3e-4, around(1.02)),
        *grid(4, 1e-3, around(1.3)),
    ]  # fmt: skip
    analysis = analyse_imported(results)
    assert analysis.invalid == {"r16_0.0003": "1 of 6 runs diverged"}
    assert not any(one.is_best for one in analysis.against_best.values())


@pytest.mark.parametrize(
    ("ours", "theirs", "code"),
    [
        (
            {"per_device_train_batch_size": 8, "max_steps": 100},
            {"per_device_train_batch_size": 64, "max_steps": 1000},
            "LS201",
        ),
        ({"lora_alpha": 16.0}, {"lora_alpha": 100.0}, "LS104"),
    ],
)
def test_what_the_linter_invalidates_gets_no_verdict(ours, theirs, code):
    results = [
        result
        for rank, offset, settings in ((8, 0.1, ours), (16, 0.0, theirs))
        for rate, loss in ((1e-4, 1.2), (3e-4, 1.0), (1e-3, 1.3))
        for result in grid(rank, rate, around(loss + offset), **settings)
    ]
    analysis = analyse_imported(results)
    assert code in {finding.code for finding in analysis.lint if finding.severity == "invalidates"}
    assert analysis.against_best == {}
    assert all(
        one.verdict == "invalid" for one in analyse_imported(results, reference="r8_0.0003").comparisons
    )


def test_rates_that_are_not_recorded_count_as_untuned():
    def results(settings):
        return [
            imported(
                f"r{rank}",
                seed,
                right=500 + 100 * (rank > 4) + seed * rank,
                settings={"lora_rank": rank, **settings},
            )
            for rank in (4, 64)
            for seed in range(6)
        ]

    with_rate, without = (analyse_imported(results(settings)) for settings in ({"learning_rate": 1e-4}, {}))
    assert with_rate.untuned == without.untuned == {"r4", "r64"}
    assert with_rate.against_best == without.against_best


def test_shares_of_two_environments_are_never_ranked_together():
    results = [
        imported("a", right=900), imported("b", right=500),
        imported("c", right=400, sources={"environment": "torch 2.10"}),
        imported("d", right=100, sources={"environment": "torch 2.10"}),
    ]  # fmt: skip
    analysis = analyse_imported(results)
    assert analysis.num_groups == 2
    assert sorted(names(analysis.may_be_best)) == ["a", "c"]


def test_of_63_equal_shares_one_is_called_behind_in_5_of_100_tables_at_most():
    """1,000 tables of 1,319 items each: the simulation error of a share of .05 is .007."""
    draws = np.random.default_rng(3).binomial(1319, 0.47, size=(1000, 63))
    false = [
        any(one.is_behind for one in shares_against_the_best(
            {str(k): Share(num_right=int(right), num_items=1319) for k, right in enumerate(row)}, cost_sign=-1
        ).values())
        for row in draws
    ]  # fmt: skip
    assert np.mean(false) <= 0.05 + 0.014


def test_runs_without_a_recorded_seed_are_not_paired():
    results = [
        imported(
            arm,
            None,
            right=score + 0.01 * number,
            metric="loss",
            unit="nats",
            lower=True,
            location=f"{arm}{number}",
        )
        for arm, score in (("a", 2.0), ("b", 1.0))
        for number in range(6)
    ]
    analysis = analyse_imported(results)
    assert analysis.comparisons == ()
    assert [len(arm.results) for arm in analysis.arms] == [6, 6]


def test_pairs_of_two_environments_are_left_out():
    other = {"environment": "torch 2.10"}
    results = [
        imported(arm, seed, right=1.0 + seed, metric="loss", unit="nats", lower=True, **changes)
        for arm, changes in (("a", {}), ("b", {"sources": other}))
        for seed in range(6)
    ]
    analysis = analyse_imported(results)
    assert analysis.comparisons == ()
    assert "LS601" in {finding.code for finding in analysis.lint}


def test_the_linter_knows_full_fine_tuning():
    adapter = imported("adapter", settings={"method": "lora", "learning_rate": 1e-4, "lora_rank": 8})
    full = imported("full", settings={"method": "full", "learning_rate": 1e-4})
    analysis = analyse_imported([adapter, full])
    assert [(f.code, f.arms) for f in analysis.lint if f.code == "LS103"] == [("LS103", ("full",))]
    slower = replace(full, settings={"method": "full", "learning_rate": 1e-5})
    assert "LS103" not in {finding.code for finding in analyse_imported([adapter, slower]).lint}


def test_the_best_rate_is_told_by_the_imported_metric():
    results = [
        imported(f"r8-{rate}", right=right, settings={"lora_rank": 8, "learning_rate": rate})
        for rate, right in ((1e-4, 500), (2e-4, 600), (4e-4, 700))
    ]
    analysis = analyse_imported(results)
    assert [f.found for f in analysis.lint if f.code == "LS102"] == [
        "best at 0.0004, the largest of 3 learning rates tried"
    ]


@pytest.mark.parametrize(("right", "items"), [(694, 1319), (0, 20), (20, 20), (1, 7)])
def test_the_interval_is_wilson_s(right, items):
    expected = stats.binomtest(right, items).proportion_ci(method="wilson")
    assert Share(num_right=right, num_items=items).interval == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_the_standard_error_of_half_of_1319_items():
    # sqrt(.5 * .5 / 1319) = 0.01377: "1.38 points"
    assert share_of(0.5, 1319).standard_error == pytest.approx(math.sqrt(0.25 / 1319), rel=1e-3)


def test_a_difference_by_hand():
    one, other = Share(num_right=60, num_items=100), Share(num_right=45, num_items=100)
    found = difference(one, other)
    assert found.difference == pytest.approx(0.15)
    # pooled share .525; z = .15 / sqrt(.525 * .475 * (1/100 + 1/100)) = 2.124
    z = 0.15 / math.sqrt(0.525 * 0.475 * 2 / 100)
    assert found.p == pytest.approx(2 * stats.norm.sf(z), rel=1e-9)
    # Newcombe's method 10: d -+ sqrt of the squared distances to the Wilson limits
    (low1, high1), (low2, high2) = one.interval, other.interval
    low = 0.15 - math.hypot(0.6 - low1, high2 - 0.45)
    high = 0.15 + math.hypot(high1 - 0.6, 0.45 - low2)
    assert found.interval == pytest.approx((low, high), rel=1e-9)


@pytest.mark.parametrize("right", [0, 50])
def test_without_any_variance_there_is_no_difference(right):
    share = Share(num_right=right, num_items=50)
    assert difference(share, share).p == 1.0


def test_equal_adapters_are_told_apart_in_one_case_of_twenty_at_most():
    rng = np.random.default_rng(0)
    draws = rng.binomial(1319, 0.5, size=(600, 2))
    pairs = [[Share(num_right=int(n), num_items=1319) for n in pair] for pair in draws]
    told = sum(difference(*pair).is_shown for pair in pairs)
    # 600 * .05 = 30, standard deviation 5.3; three of them above is 46
    assert told <= 46
    covered = sum(low <= 0 <= high for low, high in (difference(*pair).interval for pair in pairs))
    assert covered >= 600 - 46
