"""The four words: what each takes, in what order ranks are tested, and what makes a comparison invalid."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lorastudy.analysis.overview import Criterion, analyse
from lorastudy.protocol.records import PackProfile
from lorastudy.stats.comparison import compare_with_reference
from lorastudy.stats.study import Invalidation, split_studies
from lorastudy.stats.summary import EXACT_MATCH, LOSS
from lorastudy.stats.twoway import ItemScores
from lorastudy.stats.verdicts import ALPHA, WORDS, Rules, no_worse_shown, word
from lorastudy.store.views import ScoreValue

NOISE = (0.0, 0.01, -0.01, 0.005, -0.005, 0.002)
REFERENCE = [1.0 + 0.1 * seed for seed in range(6)]


def behind_by(gap, *, noise=1.0):
    return [loss + gap + noise * x for loss, x in zip(REFERENCE, NOISE, strict=True)]


def compare(study, arm="a", **options):
    found = compare_with_reference(study, arms=study.arms, reference=study.arm("ref"), metric=LOSS, **options)
    return next(one for one in found if one.arm == arm)


@pytest.mark.parametrize(
    ("arm_ahead", "shown", "no_worse", "expected"),
    [
        (True, True, True, "better"),
        (True, True, False, "better"),
        (False, True, False, "better"),
        (False, True, True, "as good within the margin"),
        (True, False, True, "as good within the margin"),
        (False, False, False, "cannot tell"),
        (True, False, False, "cannot tell"),
    ],
)
def test_words_by_what_the_tests_show(arm_ahead, shown, no_worse, expected):
    assert word(arm_ahead=arm_ahead, shown=shown, no_worse=no_worse) == expected
    assert expected in WORDS


@pytest.mark.parametrize("who", ["a", "ref"])
def test_an_untuned_arm_never_wins_but_the_difference_stands(make_study, who):
    study = make_study({"ref": REFERENCE, "a": behind_by(-0.05)})
    rules = Rules(untuned=frozenset({who}))
    tuned, loose = compare(study), compare(study, rules=rules)
    assert (tuned.verdict, tuned.winner, tuned.verdict_words) == ("better", "a", "a is better")
    assert (loose.verdict, loose.winner, loose.ahead, loose.verdict_words) == (
        "untuned",
        None,
        "a",
        "a ahead, untuned",
    )
    assert (loose.mean, loose.interval, loose.holm_p) == (tuned.mean, tuned.interval, tuned.holm_p)
    near_miss = compare(study, rules=Rules(untuned=frozenset({"another"})))
    assert near_miss.verdict == "better"


def test_untuned_as_good_is_untuned_too_and_what_is_open_stays_open(make_study):
    study = make_study({"ref": REFERENCE, "a": behind_by(0.01)})
    rules = Rules(untuned=frozenset({"a"}))
    loose = compare(study, rules=replace(rules, margin=0.05))
    assert (loose.verdict, loose.verdict_words) == ("untuned", "as good within the margin, untuned")
    assert loose.is_as_good
    unsure = make_study({"ref": REFERENCE, "a": behind_by(0.001)})
    assert compare(unsure, rules=rules).verdict == "cannot tell"


def test_without_a_margin_nothing_is_as_good(make_study):
    study = make_study({"ref": REFERENCE, "a": behind_by(0.0)})
    assert compare(study).verdict == "cannot tell"
    assert compare(study).no_worse_p is None
    assert compare(study, rules=Rules(margin=0.05)).verdict == "as good within the margin"


def test_the_margin_is_tested_one_sided(make_study):
    study = make_study({"ref": REFERENCE, "a": behind_by(0.01)})
    comparison = compare(study, rules=Rules(margin=0.03))
    differences = list(comparison.differences.values())
    expected = stats.ttest_1samp(differences, 0.03, alternative="less").pvalue
    assert comparison.no_worse_p == pytest.approx(expected)
    # All six differences lie below the margin: 1 of 64 sign patterns.
    assert comparison.no_worse_sign_flip_p == pytest.approx(1 / 64)
    assert comparison.verdict == "as good within the margin"


def test_a_loss_that_is_shown_but_smaller_than_the_margin_is_as_good_within_it(make_study):
    study = make_study({"ref": REFERENCE, "a": behind_by(0.02)})
    assert compare(study).reference_is_ahead
    comparison = compare(study, rules=Rules(margin=0.05))
    assert (comparison.verdict, comparison.winner) == ("as good within the margin", None)
    assert comparison.difference_shown


def test_an_arm_that_is_better_keeps_that_word(make_study):
    study = make_study({"ref": REFERENCE, "a": behind_by(-0.05)})
    comparison = compare(study, rules=Rules(margin=0.1))
    assert (comparison.verdict, comparison.winner, comparison.no_worse) == ("better", "a", True)


def test_the_margin_of_an_accuracy_lies_on_the_other_side(make_result, make_study):

    def scored(arm, values):
        return [
            make_result(
                arm,
                seed,
                scores={EXACT_MATCH.key: ScoreValue(value=value, unit="share", version=1, num_items=9)},
            )
            for seed, value in enumerate(values)
        ]

    def verdict(gap):
        accuracies = [0.9 + gap + x for x in NOISE]
        (study,) = split_studies([*scored("ref", [0.9] * 6), *scored("a", accuracies)])
        (found,) = compare_with_reference(
            study,
            arms=study.arms,
            reference=study.arm("ref"),
            metric=EXACT_MATCH,
            rules=Rules(margin=0.05),
        )
        return found

    assert verdict(-0.02).verdict == "as good within the margin"
    assert verdict(-0.10).reference_is_ahead
    assert verdict(0.10).arm_is_ahead


def test_five_seeds_can_show_that_a_loss_is_small_and_four_cannot(make_study):
    for num_seeds, expected in ((5, "as good within the margin"), (4, "cannot tell")):
        losses = {"ref": REFERENCE[:num_seeds], "a": behind_by(0.0)[:num_seeds]}
        assert compare(make_study(losses), rules=Rules(margin=1.0)).verdict == expected


def test_the_sequence_stops_at_the_first_failure():
    t_ps, flips = np.array([0.008, 0.2, 0.008]), np.array([0.01, 0.01, 0.01])
    assert no_worse_shown(t_ps, flips, in_sequence=True).tolist() == [True, False, False]
    # Without an order Holm corrects: 3 x .008 = .024 for the two, and .2.
    assert no_worse_shown(t_ps, flips, in_sequence=False).tolist() == [True, False, True]


def test_the_t_test_of_as_good_is_held_to_half_the_level():
    flips = np.array([0.03])
    for in_sequence in (True, False):
        assert no_worse_shown(np.array([0.025]), flips, in_sequence=in_sequence).all()
        assert not no_worse_shown(np.array([0.026]), flips, in_sequence=in_sequence).any()


@pytest.mark.parametrize("items", [None, "by item"])
def test_an_arm_is_as_good_where_the_interval_ends_below_the_margin(make_study, items):
    # The reader can check the verdict against the interval in the table.
    draw = np.random.default_rng(8)
    noise = draw.normal(0, 0.05, (6, 12))

    def values(arm, seed):
        return 1.0 + (noise[seed] if arm == "a" else np.zeros(12))

    study = make_study(
        {arm: [float(np.mean(values(arm, seed))) for seed in range(6)] for arm in ("ref", "a")}
    )
    options = {} if items is None else {"items": item_table(study, values)}
    upper = compare(study, **options).interval[1]
    for margin, expected in ((upper + 1e-9, True), (upper - 1e-9, False)):
        assert compare(study, rules=Rules(margin=margin), **options).no_worse is expected


RANKS = {1: 0.5, 2: 0.01, 4: 0.2, 8: 0.01, 16: 0.0}


def ladder(make_rank_study, gaps):
    return make_rank_study({r: REFERENCE if r == max(gaps) else behind_by(gap) for r, gap in gaps.items()})


def test_ranks_are_tested_from_the_largest_down(make_rank_study):
    # Rank 2 would pass on its own, but rank 4 above it does not.
    analysis = analyse(ladder(make_rank_study, RANKS), criterion=Criterion(margin=0.05))
    assert {c.arm: c.verdict for c in analysis.primary_comparisons} == {
        "r1": "better",
        "r2": "cannot tell",
        "r4": "better",
        "r8": "as good within the margin",
    }
    on_its_own = analysis.comparison("r2")
    assert max(on_its_own.no_worse_p, on_its_own.no_worse_sign_flip_p) <= ALPHA
    assert analysis.smallest_sufficient.name == "r8"
    assert analyse(ladder(make_rank_study, RANKS)).smallest_sufficient is None


def test_the_sequence_ends_at_a_blocked_rank(make_rank_study):
    invalidations = {"r8": [Invalidation(code="L1", why="its learning rate was never varied")]}
    criterion = Criterion(margin=0.05, invalidations=invalidations)
    gaps = {4: 0.0, 8: 0.01, 16: 0.0}
    analysis = analyse(ladder(make_rank_study, gaps), criterion=criterion)
    assert analysis.comparison("r8").verdict == "invalid"
    assert analysis.comparison("r8").reason == "its learning rate was never varied"
    assert analysis.comparison("r4").verdict == "cannot tell"
    assert analysis.smallest_sufficient is None


def test_a_blocked_reference_blocks_every_comparison(make_study):
    study = make_study({"ref": REFERENCE, "a": behind_by(1.0)})
    rules = Rules(
        invalidations={"ref": [Invalidation(code="L2", why="its best rate lies on the edge of its grid")]}
    )
    comparison = compare(study, rules=rules)
    assert (comparison.verdict, comparison.winner) == ("invalid", None)
    assert comparison.more is None
    assert comparison.reason == "its best rate lies on the edge of its grid"


def test_a_suite_may_name_the_reference_and_the_ladder_ends_there(make_rank_study):
    analysis = analyse(ladder(make_rank_study, RANKS), criterion=Criterion(reference="r8", margin=0.05))
    assert analysis.reference.name == "r8"
    assert [arm.name for arm in analysis.returns.ladder] == ["r1", "r2", "r4", "r8"]
    assert (
        analyse(ladder(make_rank_study, RANKS), criterion=Criterion(reference="gone")).reference.name == "r16"
    )


def test_the_verdict_may_be_about_another_metric(make_result):

    results = [
        make_result(
            arm,
            seed,
            scores={
                key: ScoreValue(value=value + x, unit="", version=1, num_items=9)
                for key, value in ((LOSS.key, loss), (EXACT_MATCH.key, match))
            },
        )
        for arm, loss, match, noise in (("a", 1.0, 0.5, 1.0), ("b", 2.0, 0.9, 2.0))
        for seed, x in enumerate(noise * np.array(NOISE))
    ]
    (study,) = split_studies(results)
    assert analyse(study).primary_comparisons[0].winner == "a"
    by_match = analyse(study, criterion=Criterion(primary_metric="exact_match"))
    assert by_match.primary == EXACT_MATCH
    assert by_match.primary_comparisons[0].winner == "b"


def item_table(study, values):
    return {
        (result.experiment_id, *LOSS.key): ItemScores(values=tuple(values(arm.name, result.seed)))
        for arm in study.arms
        for result in arm.results
    }


def test_a_difference_that_a_few_items_make_is_not_one_for_new_items(make_study):
    # Every seed agrees on +.05, but it all comes from one item of ten.
    def values(arm, seed):
        gap = 0.5 + 0.01 * seed if arm == "a" else 0.0
        return [1.0 + gap, *[1.0] * 9]

    losses = {"ref": [1.0] * 6, "a": [1.0 + 0.05 + 0.001 * seed for seed in range(6)]}
    study = make_study(losses)
    on_these = compare(study)
    on_new = compare(study, items=item_table(study, values))
    assert on_these.reference_is_ahead
    assert not on_these.covers_new_items
    assert on_new.covers_new_items
    assert on_new.mean == pytest.approx(float(on_new.estimate.mean))
    assert on_new.verdict == "cannot tell"
    assert on_new.sign_flip_p <= ALPHA < on_new.holm_p
    assert on_new.more.num_items > 10
    assert on_new.more.seconds is None  # no run has scored so many rows


def in_groups(table, groups):
    return {key: replace(scores, groups=groups) for key, scores in table.items()}


def test_rows_of_one_prompt_are_one_piece_of_evidence(make_study):
    # Twelve rows, on four prompts: the arm is worse by about .5 on one prompt and by nothing on three.
    def values(arm, seed):
        gap = 0.5 + 0.01 * seed if arm == "a" else 0.0
        return [1.0 + gap + 0.05 * (row % 3) * (arm == "a") for row in range(3)] + [1.0 + 0.001 * seed] * 9

    study = make_study(
        {arm: [float(np.mean(values(arm, seed))) for seed in range(6)] for arm in ("ref", "a")}
    )
    table = item_table(study, values)
    alone = compare(study, items=table)
    together = compare(study, items=in_groups(table, (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)))
    assert together.mean == alone.mean
    assert together.estimate.num_groups == 4
    assert together.interval[0] < alone.interval[0] < alone.interval[1] < together.interval[1]
    assert alone.estimate.num_groups == 12


def test_rows_that_all_have_one_prompt_say_nothing_of_new_ones(make_study):
    def values(arm, seed):
        return [1.0 + (0.1 + 0.01 * seed * row) * (arm == "a") for row in range(4)]

    study = make_study(
        {arm: [float(np.mean(values(arm, seed))) for seed in range(6)] for arm in ("ref", "a")}
    )
    table = item_table(study, values)
    assert compare(study, items=table).covers_new_items
    assert not compare(study, items=in_groups(table, (7, 7, 7, 7))).covers_new_items


def timed(result, seconds):
    profile = PackProfile(
        engine="packed",
        num_arms=2,
        memory_kind="cpu_resident",
        peak_memory_bytes=1,
        median_step_seconds=0.1,
        tokens_per_second=1.0,
        load_seconds=seconds,
        train_seconds=seconds,
        eval_seconds=seconds,
    )

    return replace(result, pack_profile=profile)


def test_what_would_decide_costs_what_the_runs_of_the_two_arms_took(make_result):

    results = [
        timed(make_result(arm, seed, loss + 0.01 * seed * (arm == "a")), seconds)
        for arm, loss, seconds in (("ref", 1.0, 100.0), ("a", 1.5, 200.0), ("b", 1.0, 1.0))
        for seed in range(3)
    ]
    (study,) = split_studies(results)
    more = compare(study).more
    # Six seeds at least, three are there. A seed of ref takes 300 / 2 s, one of a 600 / 2 s.
    assert (more.num_seeds, more.at_least) == (3, False)
    assert more.seconds == pytest.approx(3 * (150 + 300))


def test_one_seed_needs_five_more_at_least_and_four_with_a_margin(make_study):
    study = make_study({"ref": [1.0], "a": [2.0]})
    for rules, num_seeds in ((None, 5), (Rules(margin=0.1), 4)):
        more = compare(study, rules=rules).more
        assert (more.num_seeds, more.at_least, more.seconds) == (num_seeds, True, None)
