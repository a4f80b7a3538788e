"""What a suite asks: margins, references by name, and the hash that tells a change."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lorastudy.errors import SuiteFileError
from lorastudy.suite.experiment import Sources
from lorastudy.suite.question import RUNGS, Margin, Question, configuration_name, is_reference, subject
from lorastudy.suite.suite import expand
from lorastudy.suite.suite_file import load_suite

Write = Callable[[str], Path]


def test_the_margin_as_a_number_and_as_a_share_of_the_gain() -> None:
    assert Margin.parse(0.02).allowed(reference=1.0, base=3.0) == 0.02
    assert Margin.parse("2%").allowed(reference=1.0, base=3.0) == pytest.approx(0.04)  # 2 % of 3.0 - 1.0
    assert Margin.parse("5 %").allowed(reference=0.9, base=0.1) == pytest.approx(
        0.04
    )  # a share that grew by .8
    assert str(Margin.parse("2.5%")) == "2.5 % of the reference's gain"


def test_the_retention_claim_is_the_same_in_both_forms() -> None:
    """A - R < p (B - R) exactly where A - (1 - p) R - p B < 0, as the docstring says."""
    margin, base, reference = Margin.parse("10%"), 3.0, 1.0
    for arm in (1.1, 1.19, 1.21, 1.4):
        contrast = arm - (1 - margin.amount) * reference - margin.amount * base
        assert (arm - reference < margin.allowed(reference=reference, base=base)) == (contrast < 0)


@pytest.mark.parametrize("value", [0.0, -1.0, "2", "0%", "100%", "-1%", "2 percent", ""])
def test_a_margin_that_is_none_is_refused(value: float | str) -> None:
    with pytest.raises(ValueError, match=r"greater than 0|neither a number"):
        Margin.parse(value)


@pytest.mark.parametrize(
    ("arm", "rate", "name"),
    [
        ("rank_16_lr0.002", 2e-3, "rank_16"),
        ("custom_lr0.0001_r4", 1e-4, "custom_r4"),
        ("rank_16_lr0.002", 1e-3, "rank_16_lr0.002"),
        ("a_lr0.00012", 1e-4, "a_lr0.00012"),
        ("plain", 1e-4, "plain"),
    ],
)
def test_a_configuration_is_an_arm_without_its_rate(arm: str, rate: float, name: str) -> None:
    assert configuration_name(arm, rate) == name
    assert is_reference(arm, arm=arm, learning_rate=rate)
    assert is_reference(name, arm=arm, learning_rate=rate)


def test_questions_have_one_id_while_they_ask_the_same() -> None:
    question = Question(margin=Margin.parse("2%"), seeds=(0, 1))
    assert Question.from_json(question.to_json()) == question
    assert question.id == replace(question).id
    other = replace(question, margin=Margin.parse(0.02), seeds=(0, 1, 2))
    assert other.id != question.id
    assert question.differences(other) == ("margin", "seeds")


def test_a_file_states_its_question(write: Write) -> None:
    suite = load_suite(
        write(
            "primary_metric: exact_match\nmargin: 0.02\nreference: small\ntest_fraction: 0.1\n"
            "experiments: [{name: small, lora_rank: 1, seeds: [1, 0]}, {name: large, seeds: [0, 2]}]"
        )
    )
    assert suite.question == Question(
        primary_metric="exact_match", margin=Margin(amount=0.02), reference="small", seeds=(0, 1, 2), reporting_split="test",
    )  # fmt: skip


def test_a_file_that_says_nothing_asks_about_held_out_loss(write: Write) -> None:
    assert load_suite(write("experiments: [{learning_rate: [1e-4, 2e-4]}]")).question == Question(
        seeds=(0,), choosing_split="eval"
    )


def test_mistakes_in_the_question_are_told_with_the_rest(write: Write) -> None:
    with pytest.raises(SuiteFileError) as error:
        load_suite(write("margin: 2 percent\nprimary_metric: los\nexperiments: [{}]"))
    told = str(error.value)
    assert "s.yaml:1:9: margin:" in told
    assert "neither a number in the metric's unit nor a share of the gain such as 2%" in told
    assert "s.yaml:2:17: primary_metric: must be one of loss, token_accuracy, exact_match" in told


@pytest.mark.parametrize("metric", ["exact_match", "token_accuracy"])
def test_a_share_of_the_gain_needs_a_metric_that_has_one(write: Write, metric: str) -> None:
    with pytest.raises(SuiteFileError, match=rf"s.yaml:2:9: margin: is a share .* in the unit of {metric}"):
        load_suite(write(f"primary_metric: {metric}\nmargin: 2%\nexperiments: [{{}}]"))


def test_the_reference_must_be_an_arm_with_or_without_its_rate(write: Write) -> None:
    def expanded(reference: str) -> None:
        arms = "experiments: [{name: small, learning_rate: [1e-4, 2e-4]}, {name: large, lora_rank: 64}]"
        expand(
            load_suite(write(f"reference: {reference}\n{arms}")),
            fingerprint_dataset=str,
            fingerprint_base=str,
        )

    for reference in ("small", "small_lr0.0002", "large"):
        expanded(reference)
    with pytest.raises(SuiteFileError, match=r"reference: no arm is called 'lage' \(did you mean large\?\)"):
        expanded("lage")
    with pytest.raises(SuiteFileError, match="reference: no arm is called 'x'; there are small, large"):
        expanded("x")


def test_a_race_is_part_of_the_question(write: Callable[[str], Path]) -> None:
    text = "seeds: [0, 1, 2]\nlearning_rate: [1e-4, 2e-4]\nexperiments: [{lora_rank: 8}]\n"
    assert load_suite(write(f"racing: true\n{text}")).question.rungs == RUNGS
    assert load_suite(write(f"racing: [0.3]\n{text}")).question.rungs == (0.3,)
    for without in (text, f"racing: false\n{text}"):
        assert load_suite(write(without)).question.rungs == ()


def test_a_question_without_a_race_is_the_one_that_it_was() -> None:
    """Its id is a hash of its JSON, and stores hold it from before there was racing."""
    plain = Question(seeds=(0, 1))
    assert "rungs" not in plain.to_json()
    raced = Question(seeds=(0, 1), rungs=(0.25, 0.5))
    assert Question.from_json(raced.to_json()) == raced
    assert Question.from_json(plain.to_json()) == plain
    assert raced.id != plain.id
    assert raced.differences(plain) == ("rungs",)


def test_how_rows_become_tokens_is_no_part_of_what_a_question_is_about():
    sources = Sources(base_model="sha256:b", dataset="d", data_version=2)
    assert (
        subject([sources])
        == subject([replace(sources, data_version=None)])
        == (
            ("base_model", "sha256:b"),
            ("dataset", "d"),
        )
    )
