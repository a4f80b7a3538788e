"""Paired differences and verdicts, against scipy, against hand arithmetic, and by simulation."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lorastudy.analysis.overview import Criterion, analyse
from lorastudy.stats.comparison import Losses, compare_with_reference, leans, retention
from lorastudy.stats.study import split_studies
from lorastudy.stats.summary import EXACT_MATCH, LOSS, LOSS_BEFORE
from lorastudy.stats.twoway import ItemScores, two_way
from lorastudy.stats.verdicts import ALPHA
from lorastudy.store.views import ScoreValue
from tuned import tuned_study

BASE = 3.0
#: The reference's loss by seed: its gain over the base model varies much, from 1.5 to 2.5.
REFERENCE = (1.0, 1.5, 0.5, 1.2, 0.8, 1.0)
NOISE = (0.0, 0.01, -0.01, 0.005, -0.005, 0.002)


def compare(study, arm="a", reference="ref", metric=LOSS, **options):
    comparisons = compare_with_reference(
        study, arms=study.arms, reference=study.arm(reference), metric=metric, **options
    )
    return next(comparison for comparison in comparisons if comparison.arm == arm)


def test_differences_are_taken_per_seed(make_study):
    # Seeds differ by a whole nat, arms by about a hundredth: only pairing shows it.
    losses = {"ref": [1, 2, 3, 4, 5, 6], "a": [1.010, 2.011, 3.012, 4.010, 5.009, 6.011]}
    comparison = compare(make_study(losses))
    assert list(comparison.differences.values()) == pytest.approx([0.010, 0.011, 0.012, 0.010, 0.009, 0.011])
    assert (comparison.verdict, comparison.winner, comparison.n) == ("better", "ref", 6)
    assert comparison.sign_flip_p == 0.03125


def test_lower_loss_is_better_and_higher_accuracy_is_better(make_study, make_result):
    lower = make_study({"ref": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "a": [0.50, 0.61, 0.72, 0.79, 0.90, 1.01]})
    assert compare(lower).winner == "a"
    results = [
        make_result(
            arm,
            seed,
            scores={("eval", "exact_match"): ScoreValue(value=v, unit="share", version=1, num_items=9)},
        )
        for arm, values in {"ref": [0.1] * 6, "a": [0.5, 0.51, 0.52, 0.5, 0.49, 0.51]}.items()
        for seed, v in enumerate(values)
    ]
    (higher,) = split_studies(results)
    comparison = compare(higher, metric=EXACT_MATCH)
    assert (comparison.verdict, comparison.winner) == ("better", "a")
    assert comparison.cost == -comparison.mean < 0


@pytest.mark.parametrize("num_seeds", [2, 3, 4, 5])
def test_fewer_than_six_seeds_show_nothing_however_large_the_difference(make_study, num_seeds):
    losses = {"ref": [1.0] * num_seeds, "a": [9.0 + seed / 1000 for seed in range(num_seeds)]}
    comparison = compare(make_study(losses))
    assert comparison.holm_p < 0.001
    assert comparison.interval[0] > 7.9
    assert (comparison.verdict, comparison.reason) == (
        "cannot tell",
        f"{num_seeds} seeds are too few, six can show it",
    )
    assert leans(comparison)


def test_few_seeds_are_the_reason_before_the_correction(make_study):
    # Fewer arms would not help: it is the seeds that are missing. t = 7.18, p = .019; three times that is .057.
    nulls = {"b": [1.1, 0.9, 1.05], "c": [0.9, 1.1, 0.96]}
    comparison = compare(make_study({"ref": [1.0, 1.0, 1.0], "a": [1.10, 1.12, 1.16], **nulls}))
    assert comparison.holm_p > ALPHA
    assert comparison.reason == "3 seeds are too few, six can show it"


def test_six_seeds_of_which_one_points_the_other_way_do_not_reach_the_exact_test(make_study):
    # The t test alone would call it: mean .832, sd .430, t = 4.74, p = .005. Sign flip: 4 of 64 patterns, .0625.
    losses = {"ref": [1.0] * 6, "a": [2.0, 2.05, 1.95, 2.02, 1.98, 0.99]}
    comparison = compare(make_study(losses))
    assert comparison.interval[0] > 0
    assert comparison.holm_p < 0.01
    assert comparison.sign_flip_p == 0.0625
    assert (comparison.verdict, comparison.reason) == (
        "cannot tell",
        "the exact sign-flip test does not reach .05",
    )


def test_seven_seeds_may_hold_one_that_points_the_other_way(make_study):
    # 4 of 128 patterns, .03125.
    losses = {"ref": [1.0] * 7, "a": [2.0, 2.05, 1.95, 2.02, 1.98, 2.01, 0.99]}
    comparison = compare(make_study(losses))
    assert (comparison.winner, comparison.sign_flip_p) == ("ref", 0.03125)


def test_with_more_seeds_than_can_be_listed_the_t_test_decides(make_study):
    losses = {"ref": [1.0] * 23, "a": [1.5 + seed / 100 for seed in range(23)]}
    comparison = compare(make_study(losses))
    assert (comparison.winner, comparison.sign_flip_p) == ("ref", None)


def test_only_what_was_seen_and_not_shown_leans(make_study):
    shown = make_study({"ref": [1.0] * 6, "a": [1.50, 1.51, 1.52, 1.50, 1.49, 1.51]})
    unclear = make_study({"ref": [1.0] * 3, "a": [1.1, 0.9, 1.05]})
    single = make_study({"ref": [1.0], "a": [9.0]})
    assert not any(leans(compare(study)) for study in (shown, unclear, single))
    assert leans(compare(make_study({"ref": [1.0, 1.0, 1.0], "a": [0.50, 0.51, 0.52]})))


def test_only_seeds_of_both_arms_count(make_result):
    results = [make_result("ref", seed, 1.0 + seed) for seed in (0, 1, 2)]
    results += [make_result("a", seed, 1.5 + seed) for seed in (1, 2, 3)]
    (study,) = split_studies(results)
    assert sorted(compare(study).differences) == [1, 2]


def test_one_seed_can_never_tell(make_study):
    comparison = compare(make_study({"ref": [1.0], "a": [9.0]}))
    assert (comparison.verdict, comparison.reason) == ("cannot tell", "one seed")
    assert comparison.mean == 8.0
    assert comparison.interval is comparison.t_p is comparison.sign_flip_p is None


def test_equal_differences_say_nothing_about_seeds(make_study):
    comparison = compare(make_study({"ref": [1.0, 1.1, 1.2], "a": [1.5, 1.6, 1.7]}))
    assert (comparison.verdict, comparison.reason) == ("cannot tell", "every seed gave the same difference")


def test_an_interval_over_zero_cannot_tell(make_study):
    comparison = compare(make_study({"ref": [1.0, 1.0, 1.0], "a": [1.1, 0.9, 1.05]}))
    low, high = comparison.interval
    assert low < 0 < high
    assert (comparison.verdict, comparison.reason) == ("cannot tell", "the interval contains 0")


def test_many_comparisons_are_corrected_together(make_study):
    # Differences .02, .05, .09, .10, .12, .30: t = 2.77, p = .039; three times that is .118. All signs agree: .031.
    clear = [1.02, 1.05, 1.09, 1.10, 1.12, 1.30]
    nulls = {"b": [1.1, 0.9, 1.05, 0.93, 1.0, 1.02], "c": [0.9, 1.1, 0.96, 1.07, 1.0, 0.98]}
    alone = compare(make_study({"ref": [1.0] * 6, "a": clear}))
    among = compare(make_study({"ref": [1.0] * 6, "a": clear, **nulls}))
    assert alone.winner == "ref"
    assert (among.verdict, among.reason) == ("cannot tell", "not after correction for 3 comparisons")
    assert among.holm_p == pytest.approx(3 * alone.t_p)


def test_runs_of_different_environments_are_not_paired(make_result, make_environment):
    results = [make_result("ref", seed, 1.0) for seed in (0, 1, 2)]
    results += [make_result("a", seed, 1.5 + seed / 10) for seed in (0, 1)]
    results += [make_result("a", 2, 1.7, environment=make_environment(torch="2"))]
    (study,) = split_studies(results)
    comparison = compare(study)
    assert (sorted(comparison.differences), comparison.seeds_apart) == ([0, 1], {2: "environments differ"})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sources": {"base_model": "b", "dataset": "d", "eval_dataset": "e"}}, None),
        ({"sources": {"base_model": "b", "dataset": "other", "eval_dataset": "e"}}, None),
        (
            {"sources": {"base_model": "b", "dataset": "d", "eval_dataset": "other"}},
            "scored on different rows",
        ),
        ({"sources": {"base_model": "b", "dataset": "e"}}, "scored on different rows"),
        ({"sources": {"base_model": "c", "dataset": "d", "eval_dataset": "e"}}, "different base models"),
        ({"settings": {"max_eval_samples": 9}}, "scored on different rows"),
        ({"settings": {"max_seq_length": 64}}, "scored on different rows"),
        ({"settings": {"eval_fraction": 0.2}}, None),
    ],
)
def test_only_runs_on_one_base_scored_on_the_same_rows_are_paired(make_result, options, reason):
    sources = {"base_model": "b", "dataset": "d", "eval_dataset": "e"}
    results = [make_result("ref", seed, 1.0, sources=sources) for seed in range(6)]
    results += [
        make_result("a", seed, 2.0 + seed / 100, **({"sources": sources} | options)) for seed in range(6)
    ]
    (study,) = split_studies(results)
    comparison = compare(study)
    if reason is None:
        assert (comparison.n, comparison.winner) == (6, "ref")
    else:
        assert (comparison.n, comparison.verdict, comparison.reason) == (0, "invalid", reason)
        assert comparison.seeds_apart == dict.fromkeys(range(6), reason)


@pytest.mark.parametrize(
    ("settings", "dataset", "paired"),
    [
        ({}, "d", True),
        ({}, "other", False),
        ({"eval_fraction": 0.2}, "d", False),
        ({"max_train_samples": 9}, "d", False),
    ],
)
def test_rows_held_out_of_the_training_file_follow_from_it(make_result, settings, dataset, paired):
    results = [
        make_result("ref", 0, 1.0, sources={"dataset": "d", "eval_dataset": None}),
        make_result("a", 0, 1.5, settings=settings, sources={"dataset": dataset, "eval_dataset": None}),
    ]
    (study,) = split_studies(results)
    assert (compare(study).n == 1) is paired


def test_scores_of_an_older_metric_version_are_not_compared(make_result):
    results = [make_result("ref", 0, 1.0, version=2), make_result("a", 0, 1.0, version=1)]
    (study,) = split_studies(results)
    comparison = compare(study)
    assert (comparison.n, comparison.verdict) == (0, "invalid")
    assert comparison.reason == "measured by different versions of the metric"


def with_losses(study, losses_by_arm):
    """The study with other losses; far cheaper than a new one, of which a simulation needs hundreds."""

    def rescored(result, loss):
        score = replace(result.scores[LOSS.key], value=float(loss))
        return replace(result, scores={LOSS.key: score})

    arms = tuple(
        replace(arm, results=tuple(map(rescored, arm.results, losses)))
        for arm, losses in zip(study.arms, losses_by_arm, strict=True)
    )
    return replace(study, arms=arms)


def share_with_a_verdict(study, draw, *, num_studies):
    """The share of studies, with losses as drawn, in which some arm is called better or worse."""
    wrong = 0
    for _ in range(num_studies):
        drawn = with_losses(study, draw())
        comparisons = compare_with_reference(drawn, arms=drawn.arms, reference=drawn.arms[0], metric=LOSS)
        wrong += any(comparison.verdict != "cannot tell" for comparison in comparisons)
    return wrong / num_studies


def null_study(make_study, *, num_arms, num_seeds):
    return make_study({f"a{i}": [1.0] * num_seeds for i in range(num_arms)})


@pytest.mark.parametrize("num_seeds", [6, 8])
def test_false_verdicts_stay_within_five_percent(make_study, num_seeds):
    """Three arms without any difference: the chance that any is called better or worse, by simulation."""
    rng, study = np.random.default_rng(0), null_study(make_study, num_arms=4, num_seeds=num_seeds)
    share = share_with_a_verdict(study, lambda: rng.normal(1.0, 0.1, (4, num_seeds)), num_studies=400)
    # .05 and three standard errors of a share of 400: .05 + 3 x .011.
    assert 0 < share <= 0.083


def test_false_verdicts_stay_within_five_percent_where_nothing_is_normal(make_study):
    """Cauchy noise, which has not even a mean: the exact test needs only that signs are as likely either way."""
    rng, study = np.random.default_rng(3), null_study(make_study, num_arms=2, num_seeds=6)
    assert share_with_a_verdict(study, lambda: rng.standard_cauchy((2, 6)), num_studies=400) <= 0.083


def test_few_seeds_never_give_a_false_verdict(make_study):
    """The t test alone gives one in about one study of twenty, which is why it does not decide alone."""
    rng, study = np.random.default_rng(4), null_study(make_study, num_arms=4, num_seeds=3)
    assert share_with_a_verdict(study, lambda: rng.normal(1.0, 0.1, (4, 3)), num_studies=150) == 0


def behind(make_result, gap, *, before=BASE):
    """An arm that is behind the reference by nearly the same on every seed."""

    def scores(loss):
        values = {LOSS.key: loss} | ({} if before is None else {LOSS_BEFORE.key: before})
        return {
            key: ScoreValue(value=value, unit="nats", version=1, num_items=9) for key, value in values.items()
        }

    results = []
    for seed, (loss, noise) in enumerate(zip(REFERENCE, NOISE, strict=True)):
        for rank, own in ((4, loss + gap + noise), (8, loss)):
            settings = {"lora_rank": rank, "lora_alpha": "2r"}
            options = {"experiment_type": "rank_ablation", "settings": settings, "scores": scores(own)}
            results.append(make_result(f"r{rank}", seed, **options))
    return tuned_study(results)


def compared(study, **criterion):
    (comparison,) = analyse(study, criterion=Criterion(**criterion)).primary_comparisons
    return comparison


def test_what_is_tested_is_the_difference_less_the_share_of_the_gain(make_result):
    comparison = compared(behind(make_result, 0.2), margin=1.0, margin_share=0.5)
    # c = A - .5 R - .5 B, for each seed
    c = [r + 0.2 + x - 0.5 * r - 0.5 * BASE for r, x in zip(REFERENCE, NOISE, strict=True)]
    assert float(comparison.kept.mean) == pytest.approx(np.mean(c))
    assert comparison.no_worse_p == pytest.approx(stats.ttest_1samp(c, 0, alternative="less").pvalue)
    assert comparison.no_worse_sign_flip_p == pytest.approx(1 / 64)
    assert comparison.margin == pytest.approx(0.5 * (BASE - np.mean(REFERENCE)))
    assert comparison.verdict == "as good within the margin"


def test_the_noise_of_the_gain_counts(make_result):
    study = behind(make_result, 0.9)
    assert compared(study, margin=1.0).verdict == "as good within the margin"
    by_share = compared(study, margin=1.0, margin_share=0.5)
    assert not by_share.no_worse
    # that it is behind is shown all the same
    assert by_share.winner == "r8"


def test_what_would_decide_takes_the_noise_of_the_gain_too(make_result):
    study = behind(make_result, 0.9)
    pairs = [run for run in study.results if run.seed < 3 or run.seed in study.tuning_seeds]
    few = replace(tuned_study([run for run in pairs if run.seed not in study.tuning_seeds]))
    fixed, by_share = compared(few, margin=1.0), compared(few, margin=1.0, margin_share=0.5)
    assert fixed.verdict == by_share.verdict == "cannot tell"
    assert by_share.more.num_seeds >= fixed.more.num_seeds


@pytest.mark.parametrize(
    ("before", "why"), [(None, "the base model was not scored"), (0.4, "nothing was gained")]
)
def test_without_a_gain_there_is_no_margin(make_result, before, why):
    comparison = compared(behind(make_result, 0.2, before=before), margin=1.0, margin_share=0.5)
    assert comparison.no_worse_p is None, why
    assert comparison.margin is None
    assert not comparison.no_worse


def test_items_are_combined_as_seeds_are():
    draw = np.random.default_rng(3)
    arm, reference, base = (mean + draw.normal(0, 0.1, (4, 30)) for mean in (1.1, 1.0, 3.0))
    weights = tuple(int(w) for w in draw.integers(1, 9, 30))
    shares = np.array(weights) / sum(weights)

    def side(values):
        items = [ItemScores(values=tuple(row), weights=weights) for row in values]
        return Losses(by_seed=dict(enumerate(values @ shares)), items=items)

    found = retention(arm=side(arm), reference=side(reference), start=side(base), seeds=range(4), share=0.2)
    expected = two_way(arm - 0.8 * reference - 0.2 * base, np.array(weights, dtype=float))
    for part in ("mean", "seed_variance", "item_variance", "cell_variance"):
        assert float(getattr(found.estimate, part)) == pytest.approx(float(getattr(expected, part)))
    assert found.estimate.num_items == 30
    assert np.mean(found.by_seed) == pytest.approx(float(expected.mean))


@pytest.mark.parametrize("num_common", [0, 1])
@pytest.mark.parametrize("num_seeds", [1, 6])
def test_means_over_different_rows_are_no_difference(make_result, num_common, num_seeds):
    """Each arm is scored on its own half of the rows, and the halves differ by a whole nat on every seed."""
    halves = {"ref": range(10, 20), "a": range(10 + num_common)}
    rows = {
        (arm, seed): [(row >= 10) + seed / 100 + row / 1000 if row in half else None for row in range(20)]
        for arm, half in halves.items()
        for seed in range(num_seeds)
    }

    def score(values):
        known = [value for value in values if value is not None]
        return ScoreValue(value=sum(known) / len(known), unit="nats", version=1, num_items=len(known))

    results = [make_result(*key, scores={LOSS.key: score(values)}) for key, values in rows.items()]
    (study,) = split_studies(results)
    items = {
        (result.experiment_id, "eval", "loss"): ItemScores(values=tuple(rows[result.arm, result.seed]))
        for result in results
    }
    comparison = compare(study, items=items)
    assert (comparison.verdict, comparison.reason) == ("cannot tell", "too few rows that both arms have")
    assert (comparison.mean, comparison.estimate, comparison.more) == (None, None, None)


def test_without_items_the_seeds_alone_are_tested(make_study):
    losses = {"ref": [1, 2, 3, 4, 5, 6], "a": [1.010, 2.011, 3.012, 4.010, 5.009, 6.011]}
    comparison = compare(make_study(losses), items={})
    assert (comparison.verdict, comparison.covers_new_items) == ("better", False)
