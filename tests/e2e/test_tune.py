"""`lorastudy tune`, from rows to the adapter: with real training, stopped and gone on with, and what it refuses."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from lorastudy.cli.progress import Progress
from lorastudy.planning import tuning
from lorastudy.protocol.records import Outcome
from lorastudy.store import ExperimentTracker
from lorastudy.suite.suite_file import load_suite

COMMAND = "lorastudy tune --base-model model --dataset people.csv --max-seq-length 32 --quantization fp32"


@pytest.fixture
def folder(make_folder: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two arms, and two seeds for the finals: that is enough to go through all of it."""
    monkeypatch.setattr(tuning, "LADDER", tuning.LADDER[:2])
    monkeypatch.setattr(tuning, "MAX_SEEDS", 2)
    return make_folder("tune")


def press_ctrl_c_after(num_runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user does once so many runs have ended."""
    ended: list[str] = []
    report = Progress.on_event

    def on_event(self: Progress, pack: Any, event: Any) -> None:
        report(self, pack, event)
        if isinstance(event, Outcome) and event.status == "completed":
            ended.append(event.experiment_id)
            if len(ended) == num_runs:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Progress, "on_event", on_event)


@pytest.mark.slow
def test_it_is_stopped_answers_and_goes_on_to_the_adapter(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        press_ctrl_c_after(1, patched)
        stopped = folder.here(f"{COMMAND} --hours 0.5", expect=130)
    assert "plan: tries 2 arms: all linear layers at r=4 and 16" in stopped.stderr
    assert "Preliminary. Use r=" in stopped.stdout
    assert f"to continue: {COMMAND} --hours 0.5 " in stopped.stderr
    assert "lorastudy resume" not in stopped.stderr
    best = folder.path / "output/best/adapter_model.safetensors"
    assert best.is_file()

    done = folder.here(f"{COMMAND} --hours 0.5")
    assert "output/tune_people/suite.yaml goes on" in done.stderr
    assert "the finals: 2 arms with 2 fresh seeds" in done.stderr
    assert "Adapter. output/best (r=" in done.stdout
    assert "Another hour would buy about" in done.stdout
    monkeypatch.chdir(folder.path)  # paths in a suite start at the current folder
    suite = load_suite(folder.path / "output/tune_people/suite.yaml")
    with ExperimentTracker(folder.path / "results/experiments.db") as tracker:
        results = tracker.get_all_experiments(suite_name="tune_people")
        (decision,) = tracker.get_decisions("tune_people")
    assert decision.content["seeds"] == [0, 1]
    assert {run.seed for run in results} == {0, 1, suite.tuning_seeds[0]}
    assert all(("test", "loss") in run.scores for run in results)
    assert all(run.attempt == 1 for run in results if run.seed in {0, 1})
    reporting = [run for run in results if run.seed in {0, 1}]
    bytes_of = [
        (folder.path / run.run_folder / run.adapter_path / best.name).read_bytes() for run in reporting
    ]
    assert best.read_bytes() in bytes_of

    again = folder.here("lorastudy suite output/tune_people/suite.yaml")
    assert "0 completed, 0 failed" in again.stdout
    folder.here("lorastudy report --suite-name tune_people")
    text = (folder.path / "RESULTS.md").read_text(encoding="utf-8")
    assert "time budget 0.5 h" in text


def test_without_the_time_for_an_answer_it_starts_nothing_and_names_the_hours(folder: Any) -> None:
    refused = folder.here(f"{COMMAND} --hours 0.001", expect=2)
    assert "--hours: 0.001: no answer can come out in that time" in refused.stderr
    assert "What would: --hours 0.0" in refused.stderr
    assert not (folder.path / "results").exists()
    assert not (folder.path / "output").exists()
