"""Lost runs cost an arm nothing; diverged ones are an outcome, told beside every verdict that they leave."""

import numpy as np
import pytest
from scipy import stats

from lorastudy.analysis.overview import Criterion, analyse
from lorastudy.recommend.decision import decide
from lorastudy.report.findings.recommendation import recommendation
from lorastudy.report.findings.wording import verdict_summary
from lorastudy.report.sections.front import front_page
from lorastudy.stats.comparison import Divergence
from lorastudy.stats.outcomes import sign_p
from lorastudy.stats.study import split_studies
from tuned import tuned_study

#: A grid of two ranks and five rates with six seeds; the run of rank 16 at its best rate with seed 3 was killed.
GRID = {
    (16, 3e-05): [1.2965, 1.2966, 1.302, 1.2931, 1.2996, 1.2932],
    (16, 0.0001): [1.1033, 1.1006, 1.1041, 1.0985, 1.1012, 1.0991],
    (16, 0.0003): [0.9978, 1.0004, 0.9962, None, 0.9989, 1.0021],
    (16, 0.001): [1.2002, 1.1988, 1.2066, 1.2002, 1.1982, 1.2005],
    (16, 0.003): [1.4984, 1.4988, 1.4989, 1.5061, 1.5001, 1.5005],
    (4, 3e-05): [1.322, 1.3261, 1.3193, 1.3181, 1.3274, 1.3156],
    (4, 0.0001): [1.1189, 1.122, 1.1269, 1.1172, 1.1127, 1.122],
    (4, 0.0003): [1.0184, 1.0188, 1.0214, 1.0207, 1.0209, 1.0187],
    (4, 0.001): [1.2239, 1.2245, 1.2201, 1.2186, 1.2222, 1.2214],
    (4, 0.003): [1.5169, 1.5186, 1.5231, 1.5197, 1.519, 1.5206],
}  # fmt: skip


def grid_study(make_result, *, fate="crashed", recorded=True, extra=None):
    """The grid as a suite's study. The lost run is recorded as failed, or not at all; `extra` adds seeds to one rate."""
    results = []
    for (rank, rate), losses in {**GRID, **(extra or {})}.items():
        for seed, loss in enumerate(losses):
            if loss is None and not recorded:
                continue
            failed = {"status": "failed", "failure_kind": fate} if loss is None else {}
            settings = {"lora_rank": rank, "lora_alpha": "2r", "learning_rate": rate}
            results.append(
                make_result(
                    f"r{rank}_lr{rate:g}",
                    seed,
                    loss,
                    experiment_type="rank_ablation",
                    settings=settings,
                    **failed,
                )
            )
    (study,) = split_studies(results)
    return study


@pytest.mark.parametrize("recorded", [True, False])
def test_a_lost_run_of_sixty_turns_nothing_round(make_result, recorded):
    analysis = analyse(grid_study(make_result, recorded=recorded))
    (comparison,) = analysis.primary_comparisons
    assert (comparison.arm, comparison.reference) == ("r4_lr0.0003", "r16_lr0.0003")
    assert (comparison.n, comparison.verdict_words) == (5, "r16_lr0.0003 is better")
    assert decide(analysis).arm == "r16_lr0.0003"
    assert recommendation(analysis).answer.startswith(
        "Take r16_lr0.0003: it is shown to be better than r4_lr0.0003"
    )


def test_two_more_seeds_at_a_poor_rate_turn_nothing_round(make_result):
    more = {(16, 1e-4): [*GRID[16, 1e-4], 1.1, 1.1]}
    analysis = analyse(grid_study(make_result, extra=more))
    assert analysis.primary_comparisons[0].verdict_words == "r16_lr0.0003 is better"


def test_the_same_run_diverged_costs_the_rate(make_result):
    analysis = analyse(grid_study(make_result, fate="diverged"))
    assert analysis.reference.name == "r16_lr0.0001"
    assert decide(analysis).arm == "r4_lr0.0003"


def test_with_two_lost_runs_five_of_one_sign_are_not_to_be_had(make_result):
    more = {(4, 3e-4): [None, *GRID[4, 3e-4][1:]]}
    (comparison,) = analyse(grid_study(make_result, extra=more)).primary_comparisons
    assert (comparison.n, comparison.verdict) == (4, "cannot tell")


def test_a_verdict_with_a_lost_run_is_false_in_5_of_100_at_most():
    """Five seeds of equal arms, the t test at .05 and all of one sign: 4,000 studies, with a simulation error of .35 points."""
    draws = np.random.default_rng(5).normal(size=(4000, 5))
    p = stats.ttest_1samp(draws, 0.0, axis=1).pvalue
    one_sign = np.abs(np.sign(draws).sum(axis=1)) == 5
    assert np.mean((p <= 0.05) & one_sign) <= 0.05


def diverging(make_result, *, num_seeds, diverged, gap=0.5, arm="b", tuned=True):
    """Arms a and b; b's loss is lower by the gap, and `arm` diverges on the first `diverged` seeds."""
    noise = np.random.default_rng(0).normal(0, 0.02, (2, num_seeds))
    results = [
        make_result(
            name, seed, None if (lost := name == arm and seed < diverged) else mean + noise[k, seed],
            settings={"lora_rank": 2**k}, **({"status": "failed", "failure_kind": "diverged"} if lost else {}),
        )
        for k, (name, mean) in enumerate((("a", 2.0), ("b", 2.0 - gap)))
        for seed in range(num_seeds)
    ]  # fmt: skip
    return tuned_study(results) if tuned else split_studies(results)[0]


NAMED = Criterion(reference="a")


def test_an_arm_that_diverged_on_one_of_eight_seeds_is_not_called_better(make_result):
    analysis = analyse(diverging(make_result, num_seeds=8, diverged=1), criterion=NAMED)
    (comparison,) = analysis.primary_comparisons
    assert comparison.verdict == "cannot tell"
    assert comparison.reason == (
        "b diverged on 1 of 8 seeds (95 % interval 0.32 to 53 %); counted as beaten there, that is too few seeds"
    )
    assert comparison.more.num_seeds == 1
    assert decide(analysis).reason == "reference meanwhile"


def test_with_nine_it_is_and_its_divergence_stands_beside_it(make_result):
    analysis = analyse(diverging(make_result, num_seeds=9, diverged=1), criterion=NAMED)
    assert analysis.primary_comparisons[0].verdict_words == "b is better"
    rate = "diverged on 1 of 9 seeds (95 % interval 0.28 to 48 %)"
    assert f"b ({rate}) is better than a" in verdict_summary(analysis)
    assert recommendation(analysis).answer == (f"Take b: it is shown to be better than a. It {rate}.")
    limits = [limit[0] for limit in front_page(analysis).limits]
    assert f"b {rate}. Verdicts count a diverged seed as beaten; means leave it out." in limits


def test_where_nobody_named_a_reference_a_diverged_arm_is_not_the_best_either(make_result):
    assert decide(analyse(diverging(make_result, num_seeds=8, diverged=1))).status == "not decided"
    assert decide(analyse(diverging(make_result, num_seeds=9, diverged=1))).reason == "best"


def test_a_reference_that_diverged_is_beaten_there(make_result):
    analysis = analyse(diverging(make_result, num_seeds=8, diverged=2, arm="a"), criterion=NAMED)
    assert analysis.primary_comparisons[0].verdict_words == "b is better"
    worse = analyse(diverging(make_result, num_seeds=8, diverged=2, arm="a", gap=-0.5), criterion=NAMED)
    assert worse.primary_comparisons[0].verdict == "cannot tell"


def test_an_arm_that_always_diverged_is_named_on_the_first_page(make_result):
    analysis = analyse(diverging(make_result, num_seeds=6, diverged=6))
    limits = [limit[0] for limit in front_page(analysis).limits]
    assert any(limit.startswith("b diverged on 6 of 6 seeds (95 % interval 54 to 100 %)") for limit in limits)


def test_as_good_is_held_to_the_same_and_ends_the_steps_down(make_result):
    def ladder(num_seeds):
        noise = np.random.default_rng(1).normal(0, 0.005, (3, num_seeds))
        return tuned_study(
            [
                make_result(
                    f"r{rank}", seed, None if (lost := rank == 4 and seed == 0) else 1.0 + noise[k, seed],
                    experiment_type="rank_ablation", settings={"lora_rank": rank, "lora_alpha": "2r"},
                    **({"status": "failed", "failure_kind": "diverged"} if lost else {}),
                )
                for k, rank in enumerate((2, 4, 8))
                for seed in range(num_seeds)
            ]
        )  # fmt: skip

    asked = Criterion(margin=0.05)
    seven, eight = (analyse(ladder(n), criterion=asked) for n in (7, 8))
    assert [c.verdict for c in seven.primary_comparisons] == ["cannot tell", "cannot tell"]
    assert seven.comparison("r2").reason == "a larger rank that diverged ends the steps down"
    assert decide(seven).reason == "reference meanwhile"
    assert [c.verdict for c in eight.primary_comparisons] == [
        "as good within the margin"
    ] * 2  # 7 of 8: p = .035


@pytest.mark.parametrize(("wins", "losses"), [(8, 1), (7, 1), (10, 2), (0, 3), (5, 0)])
def test_the_sign_test_is_scipys(wins, losses):
    wanted = stats.binomtest(wins, wins + losses, alternative="greater").pvalue
    assert sign_p(wins, losses) == pytest.approx(wanted)


@pytest.mark.parametrize(("k", "n"), [(1, 6), (3, 9), (6, 6)])
def test_the_interval_is_clopper_and_pearsons(k, n):
    wanted = stats.binomtest(k, n).proportion_ci(method="exact")
    assert Divergence(arm="a", num_diverged=k, num_seeds=n).interval == pytest.approx(
        (wanted.low, wanted.high)
    )


def test_an_arm_that_is_better_on_half_of_new_seeds_is_called_better_in_5_of_100_at_most():
    """Diverges on four seeds of ten, wins five sixths of the rest: half in all. 20,000 studies of six to twelve seeds."""
    draw = np.random.default_rng(7)
    for num_seeds in (6, 9, 12):
        diverged = draw.random((20_000, num_seeds)) < 0.4
        won = ~diverged & (draw.random(diverged.shape) < 5 / 6)
        called = [2 * sign_p(int(wins), num_seeds - int(wins)) <= 0.05 for wins in won.sum(axis=1)]
        assert np.mean(called) <= 0.05
