"""The stated question as the analysis takes it."""

import pytest

from lorastudy.analysis.overview import Criterion, criterion_of
from lorastudy.protocol.records import TrivialScore
from lorastudy.stats.reference import reference_arm
from lorastudy.stats.study import split_studies
from lorastudy.store.views import ScoreValue
from lorastudy.suite.question import Margin, Question


def score(value):
    return ScoreValue(value=value, unit="nats per token", version=1, num_items=10)


@pytest.fixture
def study(make_result):
    results = [
        make_result(name, seed=0, scores={("eval", "loss"): score(loss), ("eval_before", "loss"): score(3.0)})
        for name, loss in (("a", 1.5), ("b", 1.0))
    ]
    (found,) = split_studies(results)
    return found


def test_nothing_stated_is_what_the_design_asks(study):
    assert criterion_of(study, None) == Criterion()
    assert criterion_of(study, Question()) == Criterion()


def test_a_number_is_the_margin(study):
    stated = Question(margin=Margin(amount=0.1), reference="b")
    assert criterion_of(study, stated) == Criterion(margin=0.1, reference="b")


def test_a_share_is_of_the_references_gain(study):
    stated = Question(margin=Margin(amount=0.02, is_share=True), reference="b")
    asked = criterion_of(study, stated)
    assert (asked.margin, asked.margin_share) == (pytest.approx(0.02 * (3.0 - 1.0)), 0.02)
    other = criterion_of(
        study, Question(margin=Margin(amount=0.02, is_share=True), primary_metric="exact_match")
    )
    assert (other.margin, other.margin_lost) == (None, "only held-out loss has a gain to take a share of")


def test_a_reference_is_named_without_its_rate_wherever_the_rate_stands(make_result):
    """Types of the package put the rate last; `custom` names what differs in the order of the settings."""
    results = [
        make_result(f"custom_lr{rate:g}_r{rank}", 0, settings={"learning_rate": rate, "lora_rank": rank})
        for rate, rank in ((1e-4, 4), (2e-4, 8))
    ]
    (found,) = split_studies(results)
    assert [reference_arm(found, named=name).name for name in ("custom_r8", "custom_lr0.0001_r4")] == [
        "custom_lr0.0002_r8",
        "custom_lr0.0001_r4",
    ]


def test_a_share_of_no_gain_is_no_margin(make_result):
    results = [
        make_result(name, seed=0, scores={("eval", "loss"): score(loss), ("eval_before", "loss"): score(0.9)})
        for name, loss in (("a", 1.5), ("b", 1.0))
    ]
    (study,) = split_studies(results)
    asked = criterion_of(study, Question(margin=Margin(amount=0.02, is_share=True), reference="b"))
    assert (asked.margin, asked.margin_share) == (None, None)
    assert asked.margin_lost == "b has 1 nats per token and gained nothing over the base model (0.9)"


def guessed(value):
    return (
        TrivialScore(
            predictor="frequencies", split="eval", metric="loss", version=1, unit="nats", value=value
        ),
        TrivialScore(
            predictor="unigram", split="eval", metric="loss", version=1, unit="nats", value=value + 1
        ),
    )


@pytest.mark.parametrize(
    ("guess", "start", "over"),
    [(2.5, 2.5, "answer frequencies"), (3.5, 3.0, "the base model")],
)
def test_the_gain_is_over_guessing_where_that_is_better_than_the_base_model(make_result, guess, start, over):
    results = [
        make_result(
            name, seed=0, trivial=guessed(guess),
            scores={("eval", "loss"): score(loss), ("eval_before", "loss"): score(3.0)},
        )
        for name, loss in (("a", 1.5), ("b", 1.0))
    ]  # fmt: skip
    (study,) = split_studies(results)
    asked = criterion_of(study, Question(margin=Margin(amount=0.1, is_share=True), reference="b"))
    assert (asked.margin, asked.gain_over) == (pytest.approx(0.1 * (start - 1.0)), over)
    assert asked.margin_words("nats per token").startswith(f"10 % of the reference's gain over {over}, 0.")


def test_where_guessing_is_better_than_the_reference_there_is_no_margin_and_a_reason(make_result):
    """Ten nats were gained over a base model that does not know the format, and nothing over guessing."""
    scores = {("eval", "loss"): score(0.75), ("eval_before", "loss"): score(10.6)}
    results = [make_result(name, seed=0, scores=scores, trivial=guessed(0.52)) for name in "ab"]
    (study,) = split_studies(results)
    asked = criterion_of(study, Question(margin=Margin(amount=0.1, is_share=True), reference="b"))
    assert (asked.margin, asked.margin_share) == (None, None)
    assert asked.margin_lost == "b has 0.75 nats per token and gained nothing over answer frequencies (0.52)"
