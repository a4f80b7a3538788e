"""How results become arms, and which arm is the reference."""

from dataclasses import replace

import pytest

from lorastudy.stats.rate_choice import adjusted_means, best_of, learning_rates, rates_of
from lorastudy.stats.reference import missing_reference, planned_reference, reference_arm
from lorastudy.stats.study import confounds, differing_settings, split_studies
from lorastudy.stats.summary import EXACT_MATCH, LOSS
from lorastudy.store.views import ScoreValue
from lorastudy.suite.methods import METHOD_KEYS


def test_suites_are_never_pooled(make_result):
    results = [make_result("a", 0, suite_name="one"), make_result("a", 0, suite_name="two")]
    assert [study.suite_name for study in split_studies(results)] == ["one", "two"]
    assert all(len(study.results) == 1 for study in split_studies(results))


def test_one_name_with_two_configurations_is_two_arms(make_result):
    results = [make_result("a", 0, settings={"max_steps": steps}) for steps in (10, 20)]
    (study,) = split_studies(results)
    assert [arm.name for arm in study.arms] == ["a #1", "a #2"]
    assert "2 different configurations" in study.notes[0]


def test_results_from_before_there_were_methods_are_of_the_arms_of_plain_lora(make_result):
    old, new, dora = (
        make_result("a", 0),
        make_result("a", 1),
        make_result("b", 1, settings={"use_dora": True}),
    )
    before = {key: value for key, value in old.settings.items() if key not in METHOD_KEYS}
    (study,) = split_studies([replace(old, settings=before), new, dora])
    assert [(arm.name, len(arm.results)) for arm in study.arms] == [("a", 2), ("b", 1)]
    assert differing_settings(study.arms) == ("use_dora",)


def test_the_same_settings_in_another_folder_are_one_arm(make_result):
    results = [make_result("a", seed, settings={"base_model": f"/models/{seed}"}) for seed in (0, 1)]
    (study,) = split_studies(results)
    assert [arm.name for arm in study.arms] == ["a"]


def test_of_two_results_of_a_seed_the_later_completed_one_counts(make_result):
    early = make_result("a", 0, 1.0, started_at="2026-01-01")
    late = make_result("a", 0, 2.0, started_at="2026-02-01")
    failed = make_result("a", 0, None, started_at="2026-03-01", status="failed")
    (study,) = split_studies([late, failed, early])
    assert study.arms[0].results == (late,)
    assert "2 earlier" in study.notes[0]


def test_seeds_on_two_versions_of_the_data_are_never_one_mean(make_result):
    old = [
        make_result("a", seed, 1.0, started_at="2026-01-01", sources={"dataset": "old"}) for seed in (0, 1)
    ]
    new = [
        make_result("a", seed, 2.0, started_at="2026-02-01", sources={"dataset": "new"}) for seed in (1, 2)
    ]
    (study,) = split_studies([*new, *old])
    assert study.arms[0].results == tuple(new)
    assert study.notes == ("a: 2 result(s) on another version of the data or the base model are not counted",)


def test_rank_arms_stand_by_rank_and_the_largest_completed_one_is_the_reference(make_result):
    results = [
        make_result(f"r{rank}", 0, experiment_type="rank_ablation", settings={"lora_rank": rank})
        for rank in (16, 4, 8)
    ]
    results.append(
        make_result(
            "r64", 0, None, status="failed", experiment_type="rank_ablation", settings={"lora_rank": 64}
        )
    )
    (study,) = split_studies(results)
    assert [arm.name for arm in study.arms] == ["r4", "r8", "r16", "r64"]
    assert reference_arm(study).name == "r16"
    assert missing_reference(study).name == "r64"


def test_of_equal_largest_ranks_the_first_in_the_suite_is_the_reference_labelled_or_not(make_result):
    for alphas in ((64.0, 16.0), (16.0, 64.0)):
        arms = [("small", 4, alphas[0]), *((f"a{alpha:g}", 16, alpha) for alpha in alphas)]
        results = [
            make_result(
                name, 0, experiment_type="rank_ablation", settings={"lora_rank": rank, "lora_alpha": alpha}
            )
            for name, rank, alpha in arms
        ]
        (study,) = split_studies(results)
        assert study.labelled().labels.keys() != study.labels.keys()
        for one in (study, study.labelled()):
            assert reference_arm(one).given_name == planned_reference(one).given_name == f"a{alphas[0]:g}"


def test_quantization_reference_is_the_highest_precision(make_result):
    results = [
        make_result(q, 0, experiment_type="quantization_study", settings={"quantization": q})
        for q in ("4bit", "bf16", "8bit")
    ]
    (study,) = split_studies(results)
    assert [arm.name for arm in study.arms] == ["bf16", "8bit", "4bit"]
    assert reference_arm(study).name == "bf16"


def test_other_types_keep_the_order_of_the_suite(make_study):
    assert reference_arm(make_study({"z": [3.0], "a": [1.0]})).name == "z"


def test_the_reference_stands_at_its_best_rate_but_for_a_type_of_ones_own(make_result):
    def at_three_rates(kind):
        rates = {"slow": (1e-4, 2.0), "good": (1e-3, 1.0), "fast": (1e-2, 3.0)}
        results = [
            make_result(name, 0, loss, experiment_type=kind, settings={"learning_rate": rate})
            for name, (rate, loss) in rates.items()
        ]
        (study,) = split_studies(results)
        return study

    for kind in ("rank_ablation", "module_ablation", "quantization_study"):
        assert reference_arm(at_three_rates(kind)).name == "good"
        assert missing_reference(at_three_rates(kind)) is None
    assert reference_arm(at_three_rates("own")).name == "slow"


def test_a_rate_is_told_on_common_seeds_and_a_lost_run_costs_nothing(make_study):
    # Seed 1 is the hard one. On seed 0, which both have, the second rate is the better; its own mean would be the worse.
    study = make_study({"whole": [1.0, 3.0], "lost": [0.9]})
    assert best_of(study, study.arms, metric=LOSS).name == "lost"
    easy = make_study({"two seeds": [2.0, 1.0], "an easy seed more": [2.1, 1.1, 0.1]})
    assert best_of(easy, easy.arms, metric=LOSS).name == "two seeds"


def test_means_on_common_seeds_by_hand():
    # Seeds 0 and 1 are 1 apart in both rows, seed 2 is one more: b lacks what would be 4 + 2 there.
    found = adjusted_means({"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 4.0, 1: 5.0}})
    assert found == pytest.approx({"a": 2.0, "b": 5.0})
    # A row without a seed in common keeps its own mean; a third one links two rows.
    assert adjusted_means({"a": {0: 1.0}, "b": {1: 5.0}}) == pytest.approx({"a": 1.0, "b": 5.0})
    linked = adjusted_means({"a": {0: 1.0}, "b": {1: 5.0}, "c": {0: 2.0, 1: 3.0}})
    assert linked["b"] - linked["a"] == pytest.approx(3.0)  # b is 2 above c, and c is 1 above a


def test_a_rate_at_which_training_diverged_is_not_chosen_for_the_seeds_it_spared(make_result):
    def best(kind):
        (study,) = split_studies(
            [
                make_result("steady", 0, 1.0),
                make_result("steady", 1, 1.0),
                make_result("hot", 0, 0.5),
                make_result("hot", 1, None, status="failed", failure_kind=kind),
            ]
        )
        return best_of(study, study.arms, metric=LOSS).name

    assert best("diverged") == "steady"
    assert best("out_of_memory") == "hot"


def test_nothing_completed_has_no_reference(make_result):
    (study,) = split_studies([make_result("a", 0, None, status="failed")])
    assert reference_arm(study) is None
    assert missing_reference(study).name == "a"


def test_a_setting_differs_if_two_arms_have_different_values(make_result):
    results = [make_result(f"r{rank}", 0, settings={"lora_rank": rank}) for rank in (1, 2)]
    (study,) = split_studies(results)
    assert differing_settings(study.arms) == ("lora_rank",)


def test_a_second_factor_is_a_confound(make_result):
    options = [{"lora_rank": 4}, {"lora_rank": 8, "max_steps": 9}]
    results = [
        make_result(f"r{i}", 0, experiment_type="rank_ablation", settings=settings)
        for i, settings in enumerate(options)
    ]
    (study,) = split_studies(results)
    assert confounds(study) == ("max_steps",)


def test_scale_follows_the_alpha_policy(make_result):
    (study,) = split_studies([make_result("a", 0, settings={"lora_rank": 8, "lora_alpha": "2r"})])
    assert study.arms[0].typed_settings.lora_scaling == 2.0


@pytest.mark.parametrize(
    ("losses", "on_edge", "tuned"),
    [((1.0, 0.5, 0.9), (), True), ((0.4, 0.5, 0.9), ("lr0",), False), ((1.0, 0.9, 0.5), ("lr2",), False)],
)
def test_a_best_rate_on_the_edge_of_its_grid_is_untuned(make_result, losses, on_edge, tuned):
    rates = (1e-4, 1e-3, 1e-2)
    results = [
        make_result(f"lr{i}", 0, loss, settings={"learning_rate": rate})
        for i, (rate, loss) in enumerate(zip(rates, losses, strict=True))
    ]
    (study,) = split_studies(results)
    found = learning_rates(study)
    assert (found.rates, found.num_configurations, found.num_varied) == (rates, 1, 1)
    assert (found.on_edge, found.tuned) == (on_edge, tuned)


def test_one_rate_for_all_is_untuned(make_study):
    found = learning_rates(make_study({"a": [1.0]}))
    assert (found.num_varied, found.tuned) == (0, False)


def test_the_rates_of_an_arm_are_those_that_differ_from_it_in_nothing_else(make_result):
    settings = [
        {"learning_rate": rate, "lora_rank": rank, "max_steps": steps, "max_arms_per_pack": arms}
        for rate in (1e-4, 2e-4)
        for rank in (4, 8)
        for steps, arms in ((10, None), (None, 2))
    ]
    results = [make_result(f"a{number}", 0, settings=each) for number, each in enumerate(settings)]
    (study,) = split_studies(results)
    for arm in study.arms:
        by_pairs = [one for one in study.arms if set(differing_settings([arm, one])) <= {"learning_rate"}]
        assert list(rates_of(study, arm)) == by_pairs
        assert len(by_pairs) == 2


def test_rates_are_chosen_by_the_metric_that_decides_and_by_the_loss_where_it_does_not_tell(make_result):
    def best(table, num_items):
        results = [
            make_result(
                rate, seed,
                scores={
                    ("eval", "exact_match"): ScoreValue(value=right, unit="share", version=1, num_items=num_items),
                    ("eval", "loss"): ScoreValue(value=loss, unit="nats", version=1, num_items=num_items),
                },
            )
            for rate, (right, loss) in table.items()
            for seed in (0, 1)
        ]  # fmt: skip
        (study,) = split_studies(results)
        return best_of(study, study.arms, metric=EXACT_MATCH).name

    assert best({"low loss": (0.3, 1.0), "right": (0.9, 1.2)}, 50) == "right"
    # sqrt(.84 * .16 / 50) is 5.2 points: .80 is within that of .84, and with 1,000 items (1.2 points) it is not.
    close = {"low loss": (0.80, 1.0), "right": (0.84, 1.2)}
    assert best(close, 50) == "low loss"
    assert best(close, 1000) == "right"
