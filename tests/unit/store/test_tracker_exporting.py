"""The CSV file: what a spreadsheet shows is what the store holds, and it runs nothing."""

import csv
from dataclasses import replace

import pytest

from lorastudy.store.export import defused, export_csv
from lorastudy.suite.safe_text import Privacy

NOBODY = Privacy()


@pytest.fixture
def pair(tracker, make_experiment):
    """Two experiments of one suite, running."""
    experiments = [make_experiment(8), make_experiment(16)]
    tracker.register("ranks", experiments)
    for experiment in experiments:
        tracker.start_run(experiment.id, attempt=1, pack_id="p1", engine="packed", run_folder="runs/p1")
    return experiments


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "=cmd|' /C calc'!A0",
        "+1",
        "-1",
        "@SUM(A1)",
        " =1",
        "|x",
        "%x",
        "\uff1d1",
        "\uff20x",
    ],
)
def test_what_begins_like_a_formula_is_text(text):
    assert defused(text) == f"'{text}"


@pytest.mark.parametrize("value", ["a=1", "r16", "", "2r", "'quoted", -0.5, 3, None, True])
def test_anything_else_stays(value):
    assert defused(value) is value


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_line_for_each_experiment_and_a_column_for_each_value(tracker, pair, make_records, tmp_path):
    for record in make_records(*(experiment.id for experiment in pair)):
        assert tracker.take(record, pack_id="p1", attempt=1)
    tracker.export_to_csv(tmp_path / "results.csv")
    rows = read(tmp_path / "results.csv")
    first = rows[0]
    assert [row["name"] for row in rows] == [experiment.name for experiment in pair]
    assert (first["status"], first["settings.lora_rank"], first["scores.eval.loss"]) == (
        "completed",
        "8",
        "1.6",
    )
    assert (first["settings.use_rslora"], first["settings.max_steps"]) == ("False", "")
    assert first["environment.torch"] == "2.13.0"
    assert (first["trivial.eval.frequencies.loss"], first["trivial.eval.constant.exact_match"]) == (
        "1.25",
        "0.5",
    )
    assert tracker.get_all_experiments(suite_name="ranks") == tracker.get_all_experiments()
    tracker.export_to_csv(tmp_path / "other.csv", suite_name="other")
    assert read(tmp_path / "other.csv") == []


def test_hostile_text_stays_in_its_cell(tracker, pair, tmp_path):
    (result, *_) = tracker.get_all_experiments()
    hostile = '=HYPERLINK("http://x";"y")\nsecond, line;=2+2'
    export_csv(
        tmp_path / "x.csv",
        experiments=[replace(result, failure_message=hostile, arm="@a"), replace(result, arm="b")],
        privacy=NOBODY,
    )
    first, second = read(tmp_path / "x.csv")
    assert first["failure_message"] == '\'=HYPERLINK("http://x";"y")\nsecond, line;\'=2+2'
    assert (first["arm"], second["arm"]) == ("'@a", "b")
    # Where ";" separates cells, a text with one is cut in two.
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for line in csv.reader(file, delimiter=";") for cell in line]
    assert not [cell for cell in cells if cell.startswith("=")]


@pytest.mark.parametrize("kind", ["json", "csv"])
def test_an_export_holds_nothing_private(monkeypatch, tracker, pair, tmp_path, kind):
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-value")
    tracker.start_run(pair[0].id, attempt=2, pack_id="p2", engine="packed", run_folder="/home/alice/runs/p2")
    message = 'postgresql://u:pw@h/d s3cr3t-value File "/home/alice/lib/python3.11/x/y.py"'
    tracker.fail_run(pair[0].id, attempt=2, kind="crashed", message=message)
    path = tmp_path / f"results.{kind}"
    (tracker.export_to_json if kind == "json" else tracker.export_to_csv)(path)
    text = path.read_text(encoding="utf-8")
    assert "~/runs/p2" in text
    assert "x/y.py" in text
    for private in ("/home/alice", "s3cr3t-value", ":pw@"):
        assert private not in text


def test_a_link_in_the_place_of_the_unfinished_file_is_not_followed(tracker, pair, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "results.csv.partial").symlink_to(tmp_path / "mine")
    tracker.export_to_csv(tmp_path / "results.csv")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "results.csv").is_symlink()
