"""`lorastudy export` as typed."""

import csv
import json

import pytest

from lorastudy.cli.main import main
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExperimentTracker(writable=True) as tracker:
        for suite, rank in (("one", 4), ("two", 8)):
            made = Experiment(
                name=f"r{rank}", arm=f"r{rank}", experiment_type="custom", seed=0, settings=Settings(lora_rank=rank),
                sources=Sources(base_model="b", dataset="d"),
            )  # fmt: skip
            tracker.register(suite, [made])
    return tmp_path


def run(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code


def test_json_is_the_default_and_csv_can_be_had(folder, capsys):
    assert run("export") == 0
    assert "wrote results.json: 2 experiments" in capsys.readouterr().out
    assert [each["name"] for each in json.loads((folder / "results.json").read_text())["experiments"]] == [
        "r4",
        "r8",
    ]
    assert run("export", "--format", "csv", "--suite-name", "two", "--output", "new/two.csv") == 0
    with (folder / "new/two.csv").open(newline="") as file:
        assert [row["settings.lora_rank"] for row in csv.DictReader(file)] == ["8"]


def test_a_suite_that_is_not_there_is_an_error(folder, capsys):
    assert run("export", "--suite-name", "three") == 2
    assert "holds no experiment in suite 'three'; `lorastudy status`" in capsys.readouterr().err
    assert not (folder / "results.json").exists()
