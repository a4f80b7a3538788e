"""The speed tables of the documents: from result files alone, the newest of each row and device, absent ones said so."""

import importlib
import json
import shutil
from dataclasses import replace
from types import ModuleType

import pytest

import documents
from benchmarks.results import Quality
from lorastudy.report.numbers import ABSENT


@pytest.fixture
def speed(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(documents.ROOT / "docs"))
    return importlib.import_module("speed")


@pytest.fixture
def growth(monkeypatch, speed) -> ModuleType:
    return importlib.import_module("growth")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "benchmarks"
    (folder / "results").mkdir(parents=True)
    shutil.copy(documents.ROOT / "benchmarks" / "rows.json", folder)
    return tmp_path


def cells(blocks, *, row: str) -> list[list[str]]:
    (table,) = blocks
    return [[cell.text for cell in line] for line in table.rows if line[0].text.startswith(row)]


LAB = "the lab's suite"


def test_without_results_every_row_says_so(speed, root):
    (table,) = speed.speed_table(root)
    assert len(table.rows) == len(speed.asked_rows(root)) == 8
    assert {row[2].text for row in table.rows} == {"not measured yet"}
    (goals,) = speed.goal_table(root)
    assert {row[-1].text for row in goals.rows} == {"not measured yet"}
    assert speed.newest_growth(root) is None


def test_a_row_shows_the_median_of_the_pairs_with_their_ends(speed, root, make_row, make_file):
    make_file(root, "2026-01-02-a.json", [make_row("lab")])
    (line,) = cells(speed.speed_table(root), row=LAB)
    # pairs 2, 2, 3 and 3, 4, 2; 5,500 tokens over 11 s; 4 * 1,000 * 500 of 10,000,000
    assert line[1:] == [
        "0.001 M", "A Processor, 2 cores", "2.00 times [2.00, 3.00]", "3.00 times [2.00, 4.00]", ABSENT, "500",
        "20.0 %",
    ]  # fmt: skip
    assert len(cells(speed.speed_table(root), row="Alpaca")) == 1  # the others are still asked for


def test_the_newest_of_each_row_on_each_device_is_shown(speed, root, make_row, make_file):
    make_file(root, "2026-01-02-z-old.json", [make_row("lab", num_tokens=1), make_row("alpaca-fp32")])
    make_file(
        root, "2026-01-02-a-new.json", [make_row("lab", num_tokens=1100)], made_at="2026-02-01T00:00:00+00:00"
    )
    make_file(root, "2026-01-02-gpu.json", [make_row("lab", num_tokens=2200)], device="A GPU")
    lines = cells(speed.speed_table(root), row=LAB)
    assert [(line[2], line[6]) for line in lines] == [("A GPU", "200"), ("A Processor, 2 cores", "100")]
    assert (
        cells(speed.speed_table(root), row="Alpaca")[0][6] == "500"
    )  # a run without the row leaves the older one


def test_a_trial_with_other_settings_fills_no_row(speed, root, make_row, make_file):
    whole = make_row("lab")
    make_file(root, "2026-01-02-trial.json", [replace(whole, setting={**whole.setting, "max_steps": 3})])
    make_file(root, "2026-01-02-smoke.json", [whole], smoke=True)
    assert speed.newest(root) == {}


def test_what_was_reached_is_decided_by_the_row_s_own_quantity(speed, root, make_row, make_file):
    make_file(root, "2026-01-02-a.json", [make_row("lab"), make_row("alpaca-fp32")])
    (lab,) = cells(speed.goal_table(root), row=LAB)
    assert lab[1:] == [
        "whole process",
        "4.0 times",
        "8.0 times",
        "3.00 times [2.00, 4.00]",
        "below the floor",
    ]
    training, whole = cells(speed.goal_table(root), row="Alpaca")
    assert training[1:] == [
        "training",
        "2.6 times",
        "3.0 times",
        "2.00 times [2.00, 3.00]",
        "below the floor",
    ]
    assert whole[1:] == ["whole process", "2.2 times", ABSENT, "3.00 times [2.00, 4.00]", "floor reached"]
    measured = speed.newest(root)["lab"][0]
    goal = speed.Goal(decides="train_seconds", floor=2.1, goal=3.0)
    assert speed.outcome(goal, measured) == "below the floor"
    assert speed.outcome(replace(goal, floor=1.0, goal=2.0), measured) == "goal reached"


def test_a_ratio_does_not_count_when_the_losses_differ(speed, root, make_row, make_file):
    apart = Quality(compared="losses", tolerance=1e-4, largest_difference=2e-2)
    make_file(root, "2026-01-02-a.json", [make_row("lab", quality=apart)])
    (line,) = cells(speed.speed_table(root), row=LAB)
    assert line[3] == "2.00 times [2.00, 3.00], but the losses differ"
    (goals,) = cells(speed.goal_table(root), row=LAB)
    assert goals[-1] == "does not count: the losses differ"
    (quality,) = cells(speed.quality_table(root), row="lab")
    assert quality[2:] == ["2.0e-02", "1e-04", ABSENT, ABSENT]


def test_the_details_show_every_side_and_ours_against_itself(speed, root, make_row, make_file):
    make_file(root, "2026-01-02-a.json", [make_row("lab")])
    lines = [line[1:] for line in cells(speed.detail_table(root), row="lab")]
    assert len(lines) == 6  # three sides, two quantities; a warm step was not measured
    assert lines[0] == ["lorastudy", "training", "11.0 s [10.0, 12.0]", "1.25 times itself", "500", "20.0 %"]
    assert lines[2][:4] == ["baseline", "training", "22.0 s [20.0, 36.0]", "2.00 times [2.00, 3.00]"]
    assert lines[3][:4] == ["baseline", "whole process", "60.0 s [60.0, 80.0]", "3.00 times [2.00, 4.00]"]
    assert lines[4][0] == "baseline same environment"


def test_the_machine_is_named(speed, root, make_row, make_file):
    make_file(root, "2026-01-02-a.json", [])
    (line,) = cells(speed.machine_table(root), row="2026-01-02-a.json")
    assert line[1:] == [
        "A Processor", "A Processor (avx512f)", "2", "16.0 GiB", "0.2",
        f"torch 2.13.0, transformers 5.23.0 and peft {ABSENT}", "0123456789",
    ]  # fmt: skip


def test_other_results_in_the_folder_are_left_alone(speed, root):
    (root / "benchmarks" / "results" / "something-else.json").write_text("[]", encoding="utf-8")
    assert speed.results(root) == []


def test_a_file_of_another_format_is_refused(speed, root):
    path = root / "benchmarks" / "results" / "2026-01-02-x.json"
    path.write_text(json.dumps({"format": 2}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"2026-01-02-x\.json has format 2, not 1"):
        speed.results(root)


GROWTH = {
    "arms": {
        "points": [{"size": n, "seconds": [0.1 + 0.01 * n]} for n in (1, 2, 4)],
        "fit": {"intercept": 0.1, "slope": 0.01, "r_squared": 1.0, "last_exponent": 0.22},
    }
}


def test_growth_is_told_in_numbers_that_were_fitted(growth, root, make_file):
    assert growth.growth_block(root) == "Not measured yet."
    assert growth.growth_figures(root) == {}
    make_file(root, "2026-01-02-a.json", [], growth=GROWTH)
    text = growth.growth_block(root)
    assert "A step took 110 ms at 1 and 140 ms at 4: 10.0 ms for each arm more, R² = 1.0000." in text
    assert "as size to the power 0.22: slower than linearly." in text
    assert "(../benchmarks/figures/growth_arms.svg)" in text


@pytest.mark.parametrize(
    ("exponent", "words"), [(0.5, "slower than linearly"), (1.0, "linearly"), (1.3, "faster than linearly")]
)
def test_growth_is_judged_at_the_large_end(growth, exponent, words):
    assert growth.judgement(exponent).endswith(f": {words}.")


def test_a_growth_figure_is_drawn_alike_each_time(growth, root, make_file):
    make_file(root, "2026-01-02-a.json", [], growth=GROWTH)
    ((path, data),) = growth.growth_figures(root).items()
    assert path.name == "growth_arms.svg"
    first = growth.drawn_growth(data)
    assert first == growth.drawn_growth(data)
    assert first.lstrip().startswith("<?xml")
