"""Stored answers side by side: only where they are asked for, the most telling rows at either end."""

from pathlib import Path

import pytest

from lorastudy.errors import StudyError
from lorastudy.protocol.records import Generation
from lorastudy.report import write
from lorastudy.report.document import Table
from lorastudy.report.read import read_report
from lorastudy.report.sections.answers import answer_blocks
from lorastudy.report.side_by_side import arm_called, side_by_side, stored_answers
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
                experiment_id=experiment_id,
                prompt=prompt,
                reference=reference,
                answer=ANSWERS[arm][prompt],
                split="eval",
                row=row,
            )
            for row, (prompt, reference) in enumerate(ASKED.items())
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
    assert [column.title for column in table.columns] == ["Row", "Prompt", "Reference", "r=2", "r=32"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["held-out 3", "Which month?", "May", "May", "June"],
        ["held-out 2", "Which city?", "Riga", "Riga", "Riga"],
        ["held-out 1", "Which job?", "nurse", "guitar", "nurse"],
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
    assert [cell.text for cell in table.rows[0]] == ["\N{EN DASH}", "p" * 600 + "…", "r", "a", "\N{EN DASH}"]


def test_the_same_prompt_in_two_splits_is_two_rows(tracker, monkeypatch):
    """Answers to test rows and held-out rows are never mixed without a word."""
    (studied,) = read_report(tracker).studies
    both = [
        Generation(experiment_id="x", prompt="p", reference="r", answer=f"of {split}", split=split, row=4)
        for split in ("eval", "test")
    ]
    monkeypatch.setattr(tracker, "get_generations", lambda name: both)
    _, _, table = answer_blocks(studied.analysis, stored_answers(tracker, studied.analysis), level=2)
    assert [[cell.text for cell in row[:4]] for row in table.rows] == [
        ["held-out 5", "p", "r", "of eval"],
        ["test 5", "p", "r", "of test"],
    ]


def test_rows_are_ordered_by_an_arms_mean_loss_over_its_seeds(tracker):
    """The made-up items differ by row, so the order is that of their means; answers are put to their rows."""
    (studied,) = read_report(tracker).studies
    runs = [run.experiment_id for run in studied.analysis.study.arm("r=2").completed]
    items = tracker.get_all_items(runs, split="eval", metric="loss").values()
    means = [sum(values) / len(runs) for values in zip(*(values for values, _ in items), strict=True)]
    by_loss = sorted(range(100), key=lambda row: -means[row])
    for order, expected in (("worst", by_loss), ("best", by_loss[::-1])):
        found = side_by_side(tracker, studied.analysis, arms=("r=2", "r=32"), order=order, num_rows=3)
        assert [row.row for row in found.rows] == [row + 1 for row in expected[:3]]
        assert [row.losses["r=2"] for row in found.rows] == pytest.approx(
            [means[row] for row in expected[:3]]
        )
    every = side_by_side(tracker, studied.analysis, arms=("r=2", "r=32"), num_rows=100)
    assert {row.row: row.answers for row in every.rows if row.answers}[3] == {"r=2": "May", "r=32": "June"}
    assert any("No prompts" in note for note in every.notes)  # the study's file is not here


def test_an_arm_is_found_by_label_or_name_and_a_wrong_one_gets_the_nearest(tracker):
    (studied,) = read_report(tracker).studies
    assert arm_called(studied.analysis, "r=2") == arm_called(studied.analysis, "r2") == "r=2"
    with pytest.raises(StudyError, match=r"no arm 'r=3' \(did you mean r=32\?\); the arms are: r=2, r=32"):
        arm_called(studied.analysis, "r=3")
    with pytest.raises(
        StudyError, match="no losses on single test rows; it has losses on held-out rows: `--split eval`"
    ):
        side_by_side(tracker, studied.analysis, arms=("r=2", "r=32"), split="test")
