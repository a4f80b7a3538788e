"""A suite that is interrupted, as a user does it: Ctrl-C, the command that was printed, the report."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorastudy.store import ExperimentTracker

SUITE = """\
suite_name: long
base_model: model
dataset_path: people.csv
quantization: fp32
max_steps: 200
max_seq_length: 32
max_generation_samples: 0
lora_dropout: 0.1
experiments:
  - {name: one, lora_rank: 2}
  - {name: two, lora_rank: 4}
"""


@pytest.fixture(scope="module")
def folder(make_folder: Callable[[str], Any]) -> Any:
    folder = make_folder("resume")
    folder.write("long.yaml", SUITE)
    return folder


def start(folder: Any, command: str) -> subprocess.Popen[str]:
    """A process group of its own, as a terminal makes one for a command."""
    return subprocess.Popen(
        [sys.executable, "-m", "lorastudy.cli.main", *command.split()],
        cwd=folder.path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(path: Path, *, number: int) -> None:
    until = time.monotonic() + 240
    while (
        sum(file.read_text().count('"PackStep"') for file in path.glob("results/runs/*/*/records.jsonl"))
        < number
    ):
        assert time.monotonic() < until, "it did not begin to train"
        time.sleep(0.05)


def test_ctrl_c_saves_and_says_how_to_go_on_and_a_finished_suite_is_left_alone(folder: Any) -> None:
    process = start(folder, "suite long.yaml")
    wait_for_steps(folder.path, number=20)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping: packs that train are saved after their current step" in said
    assert "to continue: lorastudy resume long" in said
    assert "Traceback" not in said
    (checkpoint,) = folder.path.glob("results/runs/*/attempt-1/checkpoints/*")
    assert folder.here("lorastudy status").stdout == "long: 2 interrupted\n"

    done = folder.here("lorastudy resume long")
    assert "2 completed, 0 failed, 0 done before, 0 not run" in done.stdout
    with ExperimentTracker(folder.path / "results/experiments.db") as tracker:
        for result in tracker.get_all_experiments():
            assert [step.step for step in tracker.get_steps(result.experiment_id)] == list(range(1, 201))
            assert f"after step {int(checkpoint.name[-8:])} of" in result.incidents[0].message

    folder.here("lorastudy report")
    report = (folder.path / "RESULTS.md").read_bytes()
    assert b"goes on from the checkpoint after step" in report
    for again in ("resume long", "resume long.yaml", "suite long.yaml"):
        assert "0 completed, 0 failed, 2 done before, 0 not run" in folder.here(f"lorastudy {again}").stdout
    assert "nothing to resume" in folder.here("lorastudy resume").stdout
    folder.here("lorastudy report")
    assert (folder.path / "RESULTS.md").read_bytes() == report


def test_what_cannot_be_resumed_is_said(folder: Any) -> None:
    assert (
        "has no suite of this name; it has: long" in folder.here("lorastudy resume another", expect=2).stderr
    )
    with (folder.path / "people.csv").open("a") as file:
        file.write("who is new,nobody\n")
    assert "its dataset has changed since it started" in folder.here("lorastudy resume long", expect=2).stderr
