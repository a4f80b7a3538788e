"""A learning rate that is looked for, with real training: rounds of workers, test rows, the report, and a second run."""

import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorastudy.store import ExperimentTracker

SUITE = """\
suite_name: seeks
base_model: model
dataset_path: people.csv
quantization: fp32
max_steps: 30
per_device_train_batch_size: 8
max_seq_length: 32
lora_rank: 2
lora_alpha: 2r
max_generation_samples: 2
max_new_tokens: 2
margin: 5%
test_fraction: 0.2
learning_rate: auto
seeds: [0, 1]
experiments:
  - {name: attention, target_modules: qkvo}
  - {name: both, target_modules: all}
"""


@pytest.fixture(scope="module")
def folder(make_folder: Callable[[str], Any]) -> Any:
    folder = make_folder("search")
    folder.write("suite.yaml", SUITE)
    return folder


@pytest.fixture(scope="module")
def searched(folder: Any) -> list[Any]:
    folder.here("lorastudy suite suite.yaml")
    with ExperimentTracker(folder.path / "results/experiments.db") as tracker:
        return tracker.get_all_experiments(suite_name="seeks")


def held_out(runs: list[Any], arm: str) -> dict[float, float]:
    """The loss on the held-out rows of the runs that tune, by rate."""
    return {
        run.settings["learning_rate"]: run.scores["eval", "loss"].value
        for run in runs
        if run.arm.startswith(arm) and run.seed not in {0, 1}
    }


def test_each_arm_is_reported_at_the_lowest_point_of_its_parabola(searched: list[Any]) -> None:
    for arm in ("attention", "both"):
        losses = held_out(searched, arm)
        reported = {
            run.settings["learning_rate"]
            for run in searched
            if run.arm.startswith(arm) and run.seed in {0, 1}
        }
        rates = sorted(losses)
        best = rates.index(min(losses, key=losses.__getitem__))
        around = rates[best - 1 : best + 2]
        a, b, _ = np.polyfit(np.log(around), [losses[rate] for rate in around], 2)
        assert max(reported) == min(reported) == pytest.approx(math.exp(-b / (2 * a)), rel=0.06)
        assert len(rates) >= 3 <= len(around)


def test_every_run_is_scored_on_held_out_and_on_test_rows(searched: list[Any]) -> None:
    for run in searched:
        for metric in ("loss", "exact_match"):
            assert {("eval", metric), ("test", metric)} <= run.scores.keys()
        assert ("test_before", "loss") in run.scores
        rows = {data.split: data for data in run.data}
        assert rows["train"].num_rows + rows["eval"].num_rows + rows["test"].num_rows == 64
        assert (rows["eval"].num_leaked_rows, rows["test"].num_leaked_rows) == (0, 0)


@pytest.mark.usefixtures("searched")
def test_again_nothing_runs_and_the_plan_says_so(folder: Any) -> None:
    assert "0 completed, 0 failed" in folder.here("lorastudy suite suite.yaml").stdout
    plan = folder.here("lorastudy suite suite.yaml --dry-run").stdout
    assert "; 0 to run in 0 packs" in plan
    assert "learning_rate auto" not in plan


@pytest.mark.usefixtures("searched")
def test_the_report_tells_the_question_and_what_was_tried(folder: Any) -> None:
    folder.here("lorastudy report --suite-name seeks")
    text = (folder.path / "RESULTS.md").read_text(encoding="utf-8")
    assert "before any result" in text
    assert "margin 5 % of the reference's gain" in text
    assert "## Learning rates" in text
    assert "Separate runs made the choice (seed 1000000);" in text


@pytest.mark.slow
@pytest.mark.usefixtures("searched")
def test_it_is_resumed_by_its_name_without_its_file(folder: Any) -> None:
    (folder.path / "suite.yaml").rename(folder.path / "elsewhere.yaml")
    try:
        assert "0 completed, 0 failed" in folder.here("lorastudy resume seeks").stdout
        assert "nothing to resume" in folder.here("lorastudy resume").stdout
        forget_the_reports(folder.path / "results/experiments.db")
        # the two arms at the rates that were chosen, with both seeds: nothing of the search is run again
        assert "4 completed, 0 failed" in folder.here("lorastudy resume").stdout
    finally:
        (folder.path / "elsewhere.yaml").rename(folder.path / "suite.yaml")


def forget_the_reports(database: Path) -> None:
    """Take out all that is known of the runs that report: as if the suite had been left when the search was over."""
    connection = sqlite3.connect(database)
    with connection:
        reporting = [
            row[0] for row in connection.execute("SELECT experiment_id FROM experiments WHERE seed < 2")
        ]
        for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            if "experiment_id" in columns:
                connection.executemany(
                    f"DELETE FROM {table} WHERE experiment_id = ?", [(i,) for i in reporting]
                )
    connection.close()
