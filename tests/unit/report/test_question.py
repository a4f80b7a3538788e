"""The question as the report tells it: what was asked, when, and what was changed with results at hand."""

from dataclasses import replace

from lorastudy.report.document import Paragraph
from lorastudy.report.sections.front import question_blocks
from lorastudy.stats.study import Study
from lorastudy.store.views import StatedQuestion
from lorastudy.suite.experiment import Sources
from lorastudy.suite.question import Margin, Question, subject

ASKED = Question(
    margin=Margin(amount=0.02, is_share=True), reference="r16", seeds=(0, 1), tuning_seeds=(2, 3), choosing_split="eval", reporting_split="test",
)  # fmt: skip


def stated(question: Question, hour: int, num_completed: int) -> StatedQuestion:
    return StatedQuestion(
        question=question, stated_at=f"2026-01-02T{hour:02}:00:00+00:00", num_completed=num_completed
    )


def told(*statements: StatedQuestion) -> list[str]:
    blocks = question_blocks(statements, Study(suite_name="s", experiment_type="custom", arms=()))
    assert all(isinstance(block, Paragraph) for block in blocks)
    return ["".join(getattr(part, "text", part) for part in block.text) for block in blocks]


def test_a_question_that_was_asked_beforehand():
    (text,) = told(stated(ASKED, 12, 0))
    assert text == (
        f"Stated 2026-01-02 12:00 UTC, before any result ({ASKED.id}): held-out loss decides; margin 2 % of the "
        "reference's gain; reference r16; seeds 0 and 1; learning rates are chosen on the held-out rows by separate "
        "runs with seeds 2 and 3; the test rows report."
    )


def test_a_question_that_came_after_results_says_so():
    (text,) = told(stated(Question(seeds=(0,)), 12, 3))
    assert text.startswith("Stated 2026-01-02 12:00 UTC, when 3 results already existed (ask-")
    assert "margin none; reference as the design names it; seeds 0; each arm has one learning rate" in text


def test_a_change_stands_below_with_what_was_known_by_then():
    changed = replace(ASKED, margin=None, seeds=(0, 1, 2))
    first, second, third = told(stated(ASKED, 12, 0), stated(changed, 13, 1))
    # what was stated then, and not what holds now under the date of then
    assert [first] == told(stated(ASKED, 12, 0))
    assert third.startswith(
        f"What holds now, as changed on 2026-01-02 13:00 UTC, when 1 result already existed ({changed.id}): "
        "held-out loss decides; margin none; reference r16; seeds 0, 1 and 2; "
    )
    assert second == (
        "Changed 2026-01-02 13:00 UTC, when 1 result already existed: margin 2 % of the reference's gain became "
        "margin none; seeds 0 and 1 became seeds 0, 1 and 2."
    )


def test_a_question_that_is_asked_of_another_model_says_so():
    of = {"base_model": "sha256:a", "dataset": "rows", "eval_dataset": "held out"}
    before = replace(ASKED, subject=subject([Sources(**of)]))
    after = replace(
        before, subject=subject([Sources(**of | {"base_model": "sha256:b", "eval_dataset": "x"})])
    )
    first, second, _ = told(stated(before, 12, 0), stated(after, 13, 6))
    assert first.endswith("the test rows report.")
    assert second == (
        "Changed 2026-01-02 13:00 UTC, when 6 results already existed: the question is about another base "
        "model than before; it scores other held-out rows than before."
    )


def test_a_store_without_questions_tells_none():
    assert told() == []
