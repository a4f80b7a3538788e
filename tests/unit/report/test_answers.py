"""Stored answers side by side: only where they are asked for, the most telling rows at either end."""

from pathlib import Path

import pytest

from lorastudy.protocol.records import Generation
from lorastudy.report import write
from lorastudy.report.document import Table
from lorastudy.report.read import read_report
from lorastudy.report.sections.answers import answer_blocks, stored_answers
from lorastudy.report.write import save_report

ASKED = {"Which job?": "nurse", "Which city?": "Riga", "Which month?": "May"}
#: What the two arms answer. Only r=32, the reference, knows the job; only r=2 knows the month.
ANSWERS = {
    "r2": {"Which job?": "guitar", "Which city?": " Riga ", "Which month?": "May"},
    "r32": {"Which job?": "nurse", "Which city?": "Riga", "Which month?": "June"},
}


@pytest.fixture
def tracker(make_tracker, make_rank_results, monkeypatch):
    found = make_tracker(make_rank_results(ranks=(2, 32)))
    asked = []

    def get_generations(experiment_id):
        asked.append(experiment_id)
        _, arm, _ = experiment_id.split("/")
        return [
            Generation(
                experiment_id=experiment_id, prompt=prompt, reference=reference, answer=ANSWERS[arm][prompt]
            )
            for prompt, reference in ASKED.items()
        ]

    monkeypatch.setattr(found, "get_generations", get_generations, raising=False)
    monkeypatch.setattr(found, "asked", asked, raising=False)
    monkeypatch.setattr(write, "save_figure", lambda figure, folder: [])
    return found


def test_rows_that_one_of_the_two_arms_answers_stand_at_either_end(tracker):
    (studied,) = read_report(tracker).studies
    rows = stored_answers(tracker, studied.analysis)
    assert tracker.asked == ["rank_sweep/r2/0", "rank_sweep/r32/0"]  # the first seed of each arm
    # The study names r=32: first comes what only r=2 answers right.
    _, text, table = answer_blocks(studied.analysis, rows, level=2)
    assert isinstance(table, Table)
    assert [column.title for column in table.columns] == ["Prompt", "Reference", "r=2", "r=32"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["Which month?", "May", "May", "June"],
        ["Which city?", "Riga", "Riga", "Riga"],
        ["Which job?", "nurse", "guitar", "nurse"],
    ]
    assert "do not share this report if the data is private" in str(text)


def test_a_report_has_prompts_and_answers_only_if_they_are_asked_for(tracker, tmp_path: Path):
    report = read_report(tracker)
    for with_answers in (False, True):
        pages = save_report(report, tracker, output=tmp_path / "R.md", with_answers=with_answers)
        for page in pages[:2]:
            assert ("Which job?" in page.read_text(encoding="utf-8")) == with_answers


def test_a_long_text_is_cut_and_an_arm_without_an_answer_has_a_dash(tracker, monkeypatch):
    (studied,) = read_report(tracker).studies
    long = [Generation(experiment_id="x", prompt="p" * 601, reference="r", answer="a")]
    monkeypatch.setattr(tracker, "get_generations", lambda name: long if "/r2/" in name else [])
    _, _, table = answer_blocks(studied.analysis, stored_answers(tracker, studied.analysis), level=2)
    assert [cell.text for cell in table.rows[0]] == ["p" * 600 + "…", "r", "a", "\N{EN DASH}"]
