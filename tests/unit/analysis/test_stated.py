"""The stated question as the analysis takes it."""

import pytest

from lorastudy.analysis.overview import Question
from lorastudy.analysis.reference import reference_arm
from lorastudy.analysis.stated import asked_of
from lorastudy.analysis.study import split_studies
from lorastudy.spec.question import Margin
from lorastudy.spec.question import Question as Stated
from lorastudy.tracker.views import ScoreValue


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
    assert asked_of(study, None) == Question()
    assert asked_of(study, Stated()) == Question()


def test_a_number_is_the_margin(study):
    stated = Stated(margin=Margin(amount=0.1), reference="b")
    assert asked_of(study, stated) == Question(margin=0.1, reference="b")


def test_a_share_is_of_the_references_gain(study):
    stated = Stated(margin=Margin(amount=0.02, is_share=True), reference="b")
    asked = asked_of(study, stated)
    assert (asked.margin, asked.margin_share) == (pytest.approx(0.02 * (3.0 - 1.0)), 0.02)
    assert (
        asked_of(
            study, Stated(margin=Margin(amount=0.02, is_share=True), primary_metric="exact_match")
        ).margin
        is None
    )


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
    asked = asked_of(study, Stated(margin=Margin(amount=0.02, is_share=True), reference="b"))
    assert (asked.margin, asked.margin_share) == (None, None)
