"""What a suite asks is stored when it says so; a change stands beside it, with what was known by then."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from lorastudy.store import ExperimentTracker, rebuilding
from lorastudy.suite.experiment import Sources
from lorastudy.suite.question import Margin, Question, subject
from tests.unit.store.conftest import NOON

ASKED = Question(
    margin=Margin(amount=0.02, is_share=True), reference="r16", seeds=(0, 1), reporting_split="test"
)


@pytest.fixture
def suite(tracker, make_experiment):
    experiments = [make_experiment(8, seed=seed) for seed in (0, 1)]
    tracker.register("ranks", experiments)
    return [experiment.id for experiment in experiments]


def statements(tracker):
    return tracker.get_suites()[0].questions


def test_a_question_is_stored_once_with_its_time_and_comes_back_equal(tracker, suite):
    assert tracker.state_question("ranks", ASKED)
    assert not tracker.state_question("ranks", ASKED)
    (stated,) = statements(tracker)
    assert stated.question == ASKED
    assert (stated.stated_at, stated.num_completed) == (NOON.isoformat(), 0)
    assert tracker.verify() == []


def test_a_later_change_stands_beside_it_and_tells_how_many_results_were_there(tracker, suite, make_records):
    tracker.state_question("ranks", ASKED)
    tracker.start_run(suite[0], attempt=1, pack_id="p", engine="packed", run_folder="runs/p")
    for record in make_records(suite[0]):
        tracker.take(record, pack_id="p", attempt=1)
    wider = replace(ASKED, margin=Margin(amount=0.1, is_share=True))
    with tracker.at(NOON + timedelta(hours=1)):
        assert tracker.state_question("ranks", wider)
    first, second = statements(tracker)
    assert (first.question, second.question) == (ASKED, wider)
    assert (first.num_completed, second.num_completed) == (0, 1)
    assert second.stated_at > first.stated_at


def test_going_back_to_an_earlier_question_is_a_change_too(tracker, suite):
    for question in (ASKED, replace(ASKED, reference="r8"), ASKED):
        assert tracker.state_question("ranks", question)
    assert [stated.question.reference for stated in statements(tracker)] == ["r16", "r8", "r16"]


def test_another_base_model_or_other_data_are_another_question(tracker, suite):
    of = {"base_model": "sha256:a", "dataset": "rows", "forgetting_dataset": "old"}
    first = replace(ASKED, subject=subject([Sources(**of)]))
    elsewhere = replace(ASKED, subject=subject([Sources(**of | {"base_model": "sha256:b"})]))
    beside = replace(ASKED, subject=subject([Sources(**of | {"forgetting_dataset": "other"})]))
    assert len({ASKED.id, first.id, elsewhere.id}) == 3
    assert beside == first  # what measures forgetting decides nothing
    assert tracker.state_question("ranks", first)
    assert not tracker.state_question("ranks", first)
    assert tracker.state_question("ranks", elsewhere)
    assert [stated.question for stated in statements(tracker)] == [first, elsewhere]
    assert elsewhere.differences(first) == ("subject",)


def test_a_model_that_has_been_fetched_since_is_no_other_one():
    before, after = (
        subject([Sources(base_model=f"hub:org/model@{at}", dataset="rows")]) for at in ("unresolved", "1f")
    )
    assert before == after == (("base_model", "hub:org/model"), ("dataset", "rows"))


def test_a_question_that_was_stated_without_a_subject_is_not_asked_anew_for_want_of_one(tracker, suite):
    assert "subject" not in ASKED.to_json()
    tracker.state_question("ranks", ASKED)
    of = subject([Sources(base_model="sha256:a", dataset="rows")])
    assert not tracker.state_question("ranks", replace(ASKED, subject=of))
    assert tracker.state_question("ranks", replace(ASKED, subject=of, reference="r8"))
    first, second = (stated.question for stated in statements(tracker))
    assert second.differences(first) == ("reference",)


def test_the_export_carries_the_questions(tracker, suite, tmp_path):
    tracker.state_question("ranks", ASKED)
    tracker.export_to_json(tmp_path / "all.json")
    (exported,) = json.loads((tmp_path / "all.json").read_text())["suites"][0]["questions"]
    assert Question.from_json(exported["question"]) == ASKED


def test_a_store_made_again_from_the_run_folders_has_the_questions(tracker, suite, tmp_path):
    tracker.state_question("ranks", ASKED)
    changed = replace(ASKED, reference="r8")
    with tracker.at(NOON + timedelta(hours=1)):
        tracker.state_question("ranks", changed, num_completed=7)
    rebuilding.keep_note(tracker, "ranks", runs=tmp_path / "runs")
    with ExperimentTracker(tmp_path / "again.db", writable=True) as again:
        assert list(rebuilding.register_noted(again, runs=tmp_path / "runs")) == []
        assert again.get_suites()[0].questions == statements(tracker)
        assert statements(tracker)[1].num_completed == 7
