"""Every rule finds its own suite and leaves the near miss alone."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lorastudy.analysis.overview import analyse
from lorastudy.data import load
from lorastudy.lint import evidence
from lorastudy.lint.case import ArmFacts, LintFinding, after_reading, measured_case, planned_case
from lorastudy.lint.lint import RULES, invalidates, invalidations, lint, untuned
from lorastudy.protocol.records import ArmProfile, DataSummary, RowsRead
from lorastudy.stats import verdicts
from lorastudy.stats.study import Invalidation, split_studies
from lorastudy.stats.summary import metric_of
from lorastudy.store.views import ScoreValue
from lorastudy.suite.metrics import BUILT_IN
from lorastudy.suite.question import MIN_SEEDS
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import expand
from lorastudy.suite.suite_file import load_suite

SUITES = Path(__file__).parent / "suites"
CODES = [rule.code for rule in RULES]

RATES = ("lr0.001", "lr0.003", "lr0.01")
SMALL = {f"small_{rate}" for rate in RATES}
SMALLER = {f"rank_ablation_r4_{rate}" for rate in RATES}
LARGER = {f"rank_ablation_r8_{rate}" for rate in RATES}

#: What the suite of each code makes of it: severity, and the arms concerned.
EXPECTED = {
    "LS101": ("warning", {"rank_ablation_r4", "rank_ablation_r8"}),
    "LS102": ("invalidates", {f"large_{rate}" for rate in RATES}),
    "LS103": ("invalidates", {"whole"}),
    "LS104": ("invalidates", {"r4", "r8"}),
    "LS105": ("warning", {"rank_ablation_r4", "rank_ablation_r8"}),
    "LS106": ("note", {"small_lr0.002", "small_lr0.005", "small_lr0.01"}),
    "LS107": ("note", {"r4", "r8", "r16"}),
    "LS201": ("invalidates", SMALL),
    "LS202": ("warning", SMALL),
    "LS203": ("invalidates", SMALL),
    "LS204": ("invalidates", SMALL),
    "LS205": ("invalidates", SMALL),
    "LS206": ("invalidates", {f"coarse_{rate}" for rate in RATES}),
    "LS207": ("note", SMALLER | LARGER),
    "LS208": ("warning", SMALL),
    "LS209": ("invalidates", SMALL),
    "LS210": ("warning", SMALL),
    "LS301": ("invalidates", {"mlp"}),
    "LS302": ("note", {"mlp"}),
    "LS303": ("note", {"small"}),
    "LS304": ("note", {"small"}),
    "LS305": ("warning", {"small", "large"}),
    "LS306": ("invalidates", {"preset", "names"}),
    "LS307": ("warning", {"small"}),
    "LS308": ("warning", {"small", "large"}),
    "LS309": ("warning", {"small", "large"}),
    "LS401": ("warning", SMALLER | LARGER - {"rank_ablation_r8_lr0.001"}),
    "LS402": ("warning", SMALL),
    "LS403": ("invalidates", {"small"}),
    "LS404": ("warning", {"small"}),
    "LS501": ("invalidates", {"small", "large"}),
    "LS502": ("invalidates", SMALL),
    "LS503": ("invalidates", {"there"}),
    "LS504": ("warning", {"small"}),
    "LS505": ("warning", {"small", "large"}),
    "LS506": ("warning", {"small", "large"}),
    "LS507": ("warning", {"small", "large"}),
    "LS508": ("warning", {"small", "large"}),
    "LS509": ("invalidates", {"small", "large"}),
    "LS510": ("warning", {"small", "large"}),
    "LS601": ("warning", {"small"}),
}


@pytest.mark.parametrize("kind", ["trigger", "near_miss"])
def test_no_code_lacks_a_suite_and_no_suite_a_code(kind):
    assert sorted(path.name for path in SUITES.glob(f"*.{kind}.yaml")) == [
        f"{code}.{kind}.yaml" for code in CODES
    ]


@pytest.mark.parametrize("code", CODES)
def test_the_rule_finds_its_suite(case, code):
    found = [finding for finding in lint(case(f"{code}.trigger")) if finding.code == code]
    assert [(finding.severity, set(finding.arms)) for finding in found] == [EXPECTED[code]]


@pytest.mark.parametrize("code", CODES)
def test_the_rule_leaves_the_near_miss_alone(case, code):
    assert code not in {finding.code for finding in lint(case(f"{code}.near_miss"))}


@pytest.mark.parametrize("code", CODES)
def test_a_rule_says_why_whence_and_what_to_do(code):
    (rule,) = [rule for rule in RULES if rule.code == code]
    assert all(len(text) > 20 for text in (rule.title + rule.why, rule.why, rule.change))
    assert any(
        word in rule.source
        for word in ("arXiv", "PEFT", "Thinking Machines", "Statistics in Medicine", "NeMo-RL")
    )


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """The case of a suite given as text, on the lab's facts."""
    monkeypatch.chdir(tmp_path)

    def planned(text, **facts):
        path = tmp_path / "suite.yaml"
        head = "dataset_path: lab:facts\neval_dataset_path: lab:facts_eval\nseeds: [0, 1, 2, 3, 4, 5]\n"
        path.write_text(head + text)
        suite = load_suite(path)
        experiments = expand(suite, fingerprint_dataset=str, fingerprint_base=str)
        return planned_case(
            experiments,
            suite_name="suite",
            facts={arm: ArmFacts(**f) for arm, f in facts.items()},
            question=suite.question,
        )

    return planned


def found(case, code):
    return [(finding.severity, set(finding.arms)) for finding in lint(case) if finding.code == code]


def test_where_some_arms_were_tuned_an_untuned_one_is_invalid(planned):
    text = """
experiments:
  - {name: tuned, lora_rank: 8, learning_rate: [0.001, 0.003, 0.01]}
  - {name: untuned, lora_rank: 4, learning_rate: 0.003}
"""
    assert found(planned(text), "LS101") == [("invalidates", {"untuned"})]


@pytest.mark.parametrize("code", ["LS101", "LS102"])
def test_an_arm_without_a_rate_of_its_own_is_untuned_and_the_near_miss_is_not(case, code):
    assert untuned(lint(case(f"{code}.trigger"))) == EXPECTED[code][1]
    assert untuned(lint(case(f"{code}.near_miss"))) == frozenset()


def test_two_rates_have_no_inside(planned):
    assert found(planned("factors: {learning_rate: [0.001, 0.01]}"), "LS102") == [
        ("warning", {"custom_lr0.001", "custom_lr0.01"})
    ]
    assert found(planned("factors: {learning_rate: [0.001, 0.003, 0.01]}"), "LS102") == []


def test_crossed_factors_are_warned_of_and_not_refused(planned):
    crossed = "factors: {lora_rank: [4, 8], per_device_train_batch_size: [2, 4]}\n"
    # r4 with batch 2 comes first and is the reference: r8 with batch 4 differs from it in both
    assert found(planned(crossed), "LS201") == [("warning", {"custom_per_device_train_batch_size4_r8"})]
    lacking = """
experiments:
  - {name: a, lora_rank: 4, per_device_train_batch_size: 2}
  - {name: b, lora_rank: 8, per_device_train_batch_size: 4}
"""
    assert found(planned(lacking), "LS201") == [("invalidates", {"b"})]


@pytest.mark.parametrize(
    ("alphas", "fair"),
    [
        ((32, 32, 32), True),
        ((4, 8, 16), True),
        ((8, 16, 32), True),
        ((8, 8 * 2**0.5, 16), True),  # a fixed multiple of the root of the rank: 4, 8, 16
        ((8, 16, 16), False),
        ((8, 8, 16), False),
    ],
)
def test_policies_of_alpha(planned, alphas, fair):
    rows = "".join(
        f"  - {{name: r{r}, lora_rank: {r}, lora_alpha: {a}}}\n"
        for r, a in zip((4, 8, 16), alphas, strict=True)
    )
    assert (found(planned("experiments:\n" + rows), "LS104") == []) is fair


def test_two_policies_crossed_with_every_rank_are_a_study_of_policies(planned):
    assert found(planned("factors: {lora_rank: [4, 8], lora_alpha: [32, 2r]}"), "LS104") == []
    meeting = """
experiments:
  - {name: a, lora_rank: 4, lora_alpha: 32}
  - {name: b, lora_rank: 4, lora_alpha: 2r}
  - {name: both, lora_rank: 16, lora_alpha: 32}
"""
    assert found(planned(meeting), "LS104") == []
    one_missing = """
experiments:
  - {name: a, lora_rank: 4, lora_alpha: 32}
  - {name: b, lora_rank: 8, lora_alpha: 2r}
  - {name: c, lora_rank: 8, lora_alpha: 32}
"""
    assert found(planned(one_missing), "LS104") == [("invalidates", {"b"})]


def test_a_scaling_rule_that_changes_with_rank_is_another_policy(planned):
    text = """
experiments:
  - {name: a, lora_rank: 4, lora_alpha: 2r}
  - {name: b, lora_rank: 8, lora_alpha: 2r, use_rslora: true}
"""
    assert found(planned(text), "LS104") == [("invalidates", {"b"})]


@pytest.mark.parametrize(("leaked", "severity"), [(1, "warning"), (2, "invalidates")])
def test_one_leaked_row_of_a_hundred_is_warned_of_and_two_are_too_many(planned, leaked, severity):
    facts = {"num_leaked_rows": leaked, "num_test_rows": 100}
    assert found(planned("factors: {lora_rank: [4, 8]}", custom_r4=facts), "LS501") == [
        (severity, {"custom_r4"})
    ]


def test_parameters_within_a_tenth_are_matched(planned):
    text = """
experiment_type: module_ablation
experiments:
  - {name: attention, target_modules: qkvo, lora_rank: 8}
  - {name: mlp, target_modules: mlp, lora_rank: 4}
"""

    def sizes(attention, mlp):
        return {
            "attention": {"num_trainable_parameters": attention},
            "mlp": {"num_trainable_parameters": mlp},
        }

    assert found(planned(text, **sizes(1000, 1100)), "LS301") == []
    assert found(planned(text, **sizes(1100, 1000)), "LS301") == []
    assert found(planned(text, **sizes(1000, 1101)), "LS301") == [("invalidates", {"mlp"})]
    assert found(planned(text), "LS301") == [("warning", {"mlp"})]


def test_a_slipped_exponent_among_good_rates_is_noted_and_alone_is_warned_of(planned):
    facts = {"published_rates": (0.005, 0.01)}
    arms = ("custom_lr0.003", "custom_lr0.01", "custom_lr3")
    text = "factors: {learning_rate: [0.003, 0.01, 3]}"
    (finding,) = [f for f in lint(planned(text, **dict.fromkeys(arms, facts))) if f.code == "LS105"]
    assert (finding.severity, finding.arms) == ("note", ("custom_lr3",))
    assert finding.found.startswith("learning rate 3, 300 times above the published rule")
    below = planned("experiments: [{name: a, learning_rate: 4.0e-5}]", a=facts)
    assert found(below, "LS105") == [("warning", {"a"})]  # 0.005 / 0.00004 = 125
    assert found(planned("experiments: [{name: a, learning_rate: 3}]"), "LS105") == []  # no rule is known


@pytest.mark.parametrize(
    ("num_rows", "severity"),
    [
        (1, "invalidates"),
        (2, "warning"),
        (31, "warning"),
        (32, "note"),
        (125, "note"),
        (126, None),
        (None, None),
    ],
)
def test_few_rows_to_score(planned, num_rows, severity):
    """statsmodels 0.15: NormalIndPower(ddof=0).solve_power(0.5, power=.8, alpha=.05, ratio=0) is 31.4, of 0.25 it is 125.6."""
    case = planned("experiments: [{name: a}]", a={"num_test_rows": num_rows})
    assert found(case, "LS505") == ([] if severity is None else [(severity, {"a"})])


def test_what_is_known_of_held_out_prompts_is_told(planned):
    facts = {
        "num_test_rows": 200, "num_leaked_rows": 1, "num_known_prompts": 200, "num_near_copies": 1, "num_compared_rows": 100,
        "split_by": "row",
    }  # fmt: skip
    (finding,) = [f for f in lint(planned("experiments: [{name: a}]", a=facts)) if f.code == "LS508"]
    assert finding.found == (
        "200 of 200 held-out rows have a prompt that is also in the training rows; there are fewer than 10 prompts, so rows are held "
        "out one by one; 1 of 100 that were compared have one that differs by a few words"
    )
    few = facts | {"num_known_prompts": 3, "split_by": None}  # 1.5 %
    assert found(planned("experiments: [{name: a}]", a=few), "LS508") == [("warning", {"a"})]
    fewer = few | {"num_known_prompts": 2}  # both shares are 1 %
    assert found(planned("experiments: [{name: a}]", a=fewer), "LS508") == [("note", {"a"})]


def test_near_copies_that_were_counted_on_a_sample_are_told_so(planned):
    summary = replace(
        rows("eval", 12_000, 0, 0).summary, num_near_copies=3, num_compared_rows=10_000, num_compared_with=10_000,
        num_known_rows=52_000,
    )  # fmt: skip
    facts = {"num_test_rows": 12_000, "num_near_copies": 3, "num_compared_rows": 10_000}
    case = planned("experiments: [{name: a}]", a={**facts, "rows": (RowsRead(summary=summary),)})
    (finding,) = [f for f in lint(case) if f.code == "LS508"]
    assert finding.found == (
        "3 of 10,000 that were compared have one that differs by a few words; a sample of 10,000 of 12,000 rows was "
        "compared with a sample of 10,000 of 52,000 that are trained on"
    )


def test_long_texts_count_once_though_they_are_many_rows(planned):
    """Of ten texts one, of 191 rows, is trained on too: a tenth of them, and half a percent of the rows."""
    summary = replace(
        rows("eval", 200, 0, 0).summary, num_texts=10, num_leaked_rows=1, num_known_prompts=2, num_near_copies=1,
        num_compared_rows=10, num_compared_with=90, num_known_rows=90,
    )  # fmt: skip
    facts = vars(after_reading(ArmFacts(), Settings(), rows=[RowsRead(summary=summary)]))
    case = planned("experiments: [{name: a}]", a=facts)
    by_code = {finding.code: finding for finding in lint(case)}
    assert by_code["LS501"].severity == "invalidates"
    assert by_code["LS501"].found == "1 of 10 held-out rows are also in the training rows"
    assert by_code["LS508"].severity == "warning"
    assert by_code["LS508"].found == (
        "2 of 10 held-out rows have a prompt that is also in the training rows; 1 of 10 that were compared have one that differs by "
        "a few words"
    )
    assert by_code["LS505"].severity == "warning"
    assert by_code["LS505"].found.startswith(
        "10 rows to score: a difference of less than 0.89 "
    )  # 2.80 / sqrt(10)


def test_one_long_text_is_one_row_to_score(planned):
    """A verdict needs two rows that are evidence of their own, and pieces of one text are not."""
    summary = replace(rows("eval", 200, 0, 0).summary, num_texts=1)
    facts = vars(after_reading(ArmFacts(), Settings(), rows=[RowsRead(summary=summary)]))
    assert found(planned("experiments: [{name: a}]", a=facts), "LS505") == [("invalidates", {"a"})]


def test_few_prompts_mean_the_same_where_rows_are_split_and_where_it_is_judged():
    assert evidence.MIN_PROMPTS == load.MIN_PROMPTS


def rows(split, usable, refused, truncated, *, num_unread_rows=None, **lengths):
    summary = DataSummary(
        split=split, format="text", num_rows=usable, num_refused_rows=refused, num_truncated_rows=truncated,
        num_tokens=9, num_completion_tokens=9, num_unread_rows=num_unread_rows,
    )  # fmt: skip
    return RowsRead(summary=summary, **lengths)


@pytest.mark.parametrize(
    ("usable", "refused", "truncated", "severity"),
    [
        (1000, 0, 50, None),  # 5 % cut
        (1000, 0, 51, "note"),
        (1000, 0, 500, "note"),  # half of them
        (1000, 0, 501, "warning"),
        (950, 50, 0, None),  # 5 % left out
        (949, 51, 0, "warning"),
        (960, 40, 20, "note"),
    ],
)
def test_rows_that_are_cut(planned, usable, refused, truncated, severity):
    read = (rows("train", usable, refused, truncated), rows("eval", 200, 0, 0))
    case = planned("experiments: [{name: a}]", a={"rows": read})
    assert found(case, "LS506") == ([] if severity is None else [(severity, {"a"})])


def test_rows_that_are_cut_are_counted_by_split_with_the_lengths_that_keep_them(planned):
    read = (
        rows("train", 511, 289, 511, length_of_all=19, length_of_most=17),
        rows("eval", 99, 0, 1, length_of_all=9, length_of_most=8),
        rows("test", 80, 20, 0, length_of_all=18, length_of_most=12),
    )
    (finding,) = [f for f in lint(planned("experiments: [{name: a}]", a={"rows": read})) if f.code == "LS506"]
    assert finding.found == (
        "at max_seq_length 512, of 800 training rows 511 are cut short and 289 left out, with no answer left; of 100 test "
        "rows 20 left out, with no answer left; max_seq_length 19 keeps all of them whole, 17 at least 95 % of each split"
    )


def test_training_rows_that_are_not_read_are_told_apart_from_those_that_are_cut(planned):
    read = (rows("train", 190, 10, 40, num_unread_rows=600), rows("eval", 100, 0, 0))
    (finding,) = [f for f in lint(planned("experiments: [{name: a}]", a={"rows": read})) if f.code == "LS506"]
    assert finding.found == (
        "at max_seq_length 512, of 800 training rows a sample of 200 was read: 40 are cut short and 10 left out, with no answer left"
    )


@pytest.mark.parametrize(
    ("metric", "num_long", "severity"),
    [
        ("exact_match", 0, None),
        ("exact_match", 1, "warning"),
        ("exact_match", 15, "warning"),
        ("exact_match", 16, "invalidates"),
        ("loss", 16, "note"),
    ],
)
def test_answers_that_nothing_generated_can_match(planned, metric, num_long, severity):
    of_eval, of_test = (rows(split, 200, 0, 0).summary for split in ("eval", "test"))
    read = (
        RowsRead(summary=replace(of_eval, num_asked_rows=16, num_long_answers=16)),
        RowsRead(summary=replace(of_test, num_asked_rows=16, num_long_answers=num_long)),  # these report
    )
    case = planned(f"primary_metric: {metric}\nexperiments: [{{name: a}}]", a={"rows": read})
    assert found(case, "LS507") == ([] if severity is None else [(severity, {"a"})])


@pytest.mark.parametrize(("margin", "severity"), [(5.7, None), (5.8, "warning")])
def test_before_a_run_no_model_can_miss_a_margin_above_the_loss_of_a_guess(planned, margin, severity):
    text = f"margin: {margin}\nexperiments: [{{name: a}}, {{name: b, lora_rank: 4}}]"
    case = planned(text, a={"vocab_size": 310}, b={"vocab_size": 310})  # ln 310 = 5.74
    assert [each for each, _ in found(case, "LS403")] == ([severity] if severity else [])


def test_a_share_of_the_gain_is_never_too_large_and_a_share_of_right_answers_may_be(planned):
    both = "experiments: [{name: a}, {name: b, lora_rank: 4}]"
    facts = {"a": {"vocab_size": 310}}
    assert found(planned(f"margin: 10%\n{both}", **facts), "LS403") == []
    assert found(planned(f"primary_metric: exact_match\nmargin: 0.9\n{both}"), "LS403") == []
    too_large = planned(f"primary_metric: exact_match\nmargin: 1\n{both}")
    assert [severity for severity, _ in found(too_large, "LS403")] == ["invalidates"]


def test_a_gain_within_the_noise_is_hardly_learnt(make_result):
    """Gains 0.5, -0.3, 0.4 of 3: mean 0.2, standard error 0.25, t(.975, 2) = 4.3. Of 0.5, 0.5, 0.51 the mean is sure."""

    def severities(after):
        runs = [
            replace(
                run,
                scores=run.scores | {("eval_before", "loss"): replace(run.scores["eval", "loss"], value=3.0)},
            )
            for arm, rank in (("a", 4), ("b", 8))
            for seed, loss in enumerate(after)
            for run in [make_result(arm, seed, loss, settings={"lora_rank": rank})]
        ]
        (study,) = split_studies(runs)
        return [severity for severity, _ in found(measured_case(study), "LS305")]

    assert severities([2.5, 3.3, 2.6]) == ["warning"]
    assert severities([2.5, 2.5, 2.49]) == []


def test_exact_match_is_measured_on_the_rows_that_are_answered(planned):
    text = "primary_metric: exact_match\nmax_generation_samples: 25\nexperiments: [{name: a}]"
    (finding,) = [f for f in lint(planned(text, a={"num_test_rows": 500})) if f.code == "LS505"]
    assert finding.severity == "warning"
    assert finding.found.startswith("25 rows to score")
    # 50 / sqrt(25): a share is at most half a point of variance away from 1/2
    assert finding.found.endswith(
        "one row is 4 points of exact match, whose standard error is up to 10 points"
    )


@pytest.mark.parametrize(("num_rows", "severity"), [(99, "warning"), (100, "note"), (126, None)])
def test_below_a_hundred_scored_items_exact_match_is_warned_of(planned, num_rows, severity):
    text = "primary_metric: exact_match\nmax_generation_samples: 500\nexperiments: [{name: a}]"
    case = planned(text, a={"num_test_rows": num_rows})
    assert found(case, "LS505") == ([] if severity is None else [(severity, {"a"})])


def test_rows_that_the_steps_never_reach_are_counted_and_block_nothing(planned):
    text = "experiments: [{name: a, max_steps: 10, per_device_train_batch_size: 4}, {name: b, max_steps: 25, per_device_train_batch_size: 4}]"
    findings = lint(planned(text, a={"num_train_rows": 100}, b={"num_train_rows": 100}))
    (finding,) = [f for f in findings if f.code == "LS304"]
    assert (finding.severity, finding.arms) == ("note", ("a",))
    assert finding.found == "the steps reach 40 of 100 usable training rows"
    assert invalidations([finding]) == {}


def test_before_a_run_the_reference_is_the_one_that_the_suite_states(planned):
    text = "reference: a\nexperiment_type: rank_ablation\nexperiments: [{name: a, lora_rank: 4}, {name: b, lora_rank: 8}]"
    reference = planned(text).reference
    assert reference is not None
    assert reference.name == "a"


def test_six_seeds_are_the_fewest_whose_exact_test_reaches_the_level():
    assert math.ceil(1 + math.log2(1 / verdicts.ALPHA)) == MIN_SEEDS


def test_what_blocks_a_verdict(case, planned):
    unequal = case("LS201.trigger")
    findings = lint(unequal)
    assert invalidates(findings)
    assert invalidations(findings) == {
        f"small_{rate}": [Invalidation(code="LS201", why="unequal effective batch, LS201")]
        for rate in ("lr0.001", "lr0.003", "lr0.01")
    }
    warned = case("LS401.trigger")
    assert not invalidates(lint(warned))
    assert invalidations(lint(warned)) == {}


def test_what_is_wrong_with_the_reference_is_wrong_with_every_comparison(case):
    edge = case("LS102.trigger")
    assert edge.reference is not None
    assert edge.reference.name == "large_lr0.01"
    (analysis_,) = [analyse(edge.study)]
    verdicts = {each.verdict for each in analysis_.primary_comparisons}
    assert verdicts == {"invalid"}
    assert any(
        "on the edge of its grid, LS102" in (each.reason or "") for each in analysis_.primary_comparisons
    )


def test_a_study_of_one_arm_compares_nothing(planned):
    assert lint(planned("experiments: [{lora_rank: 4}]")) == ()


def test_the_gravest_come_first(case):
    order = ["invalidates", "warning", "note"]
    severities = [finding.severity for finding in lint(case("LS104.trigger"))]
    assert severities == sorted(severities, key=order.index)
    assert len(set(severities)) > 1


def test_facts_are_what_the_runs_recorded(make_result):
    data = {"format": "alpaca", "num_refused_rows": 0, "num_truncated_rows": 0, "num_tokens": 900}
    train = DataSummary(split="train", num_rows=100, num_completion_tokens=500, **data)
    test = DataSummary(split="eval", num_rows=10, num_completion_tokens=50, num_leaked_rows=3, **data)
    profile = ArmProfile(
        experiment_id="x", num_trainable_parameters=77, num_total_parameters=1000, adapter_bytes=1,
        memory_kind="cpu_tensors", peak_memory_bytes=None, step_seconds=None, tokens_per_second=None,
    )  # fmt: skip
    # 5 steps of 4 rows see a fifth of 100 rows, so 100 of 500 completion tokens
    (study,) = split_studies(
        [make_result("a", 0, data=(train, test), profile=profile, settings={"max_steps": 5})]
    )
    facts = measured_case(study).facts["a"]
    assert facts == ArmFacts(
        num_trainable_parameters=77,
        num_completion_tokens=100,
        num_train_rows=100,
        num_test_rows=10,
        num_leaked_rows=3,
        rows=(RowsRead(summary=train), RowsRead(summary=test)),
    )


def test_versions_of_an_added_metric_that_differ_between_arms_are_named(make_result):
    def scored(arm: str, version: int):
        score = ScoreValue(value=0.5, unit="share", version=version, num_items=9)
        return make_result(arm, 0, scores={("eval", "contains"): score})

    (study,) = split_studies([scored("old", 1), scored("new", 2)])
    case = replace(measured_case(study), added_metrics=(metric_of(BUILT_IN["contains"]),))
    (finding,) = [one for one in lint(case) if one.code == "LS504"]
    assert finding.arms == ("old",)
    assert "version 1 of its definition beside 2" in finding.found


def test_a_finding_prints_in_one_short_line():
    finding = LintFinding(
        code="LS101", title="One rate", severity="warning", arms=("a", "b"), found="one learning rate", why="w", source="s", change="c",
    )  # fmt: skip
    assert repr((finding,)) == "(<LS101 warning: One rate>,)"
    assert str(finding) == "LS101 warning: One rate (a, b): one learning rate"
