"""The benchmarks run, on the lab's model with tiny numbers; what they measure here means nothing."""

import json

import pytest

from benchmarks.processes import run_timed
from benchmarks.results import BASELINE, BASELINE_TUNED, OURS
from benchmarks.suite_rows import lab_row

TINY = {
    "max_steps": 3,
    "seeds": [0, 1],
    "max_generation_samples": 4,
    "experiments": [{"name": "rank_2", "lora_rank": 2}, {"name": "rank_4", "lora_rank": 4}],
}


@pytest.mark.slow
def test_the_gpu_script_goes_through_every_line_without_a_gpu(tmp_path):
    path = tmp_path / "results.json"
    rows = ["gpu-5-arms-batch-1", "gpu-5-arms-batch-4-nf4"]
    run_timed(
        [
            "-m",
            "benchmarks.gpu",
            "--device",
            "cpu",
            "--smoke",
            "--memory",
            "--into",
            str(path),
            "--rows",
            *rows,
        ],
        folder=tmp_path,
        extra={"OMP_NUM_THREADS": "1"},
    )
    body = json.loads(path.read_text(encoding="utf-8"))
    assert body["smoke"] is True
    assert body["skipped"] == []
    assert [row["id"] for row in body["rows"]] == rows
    for row in body["rows"]:
        assert row["quality"]["agrees"], row["quality"]
        assert row["ratios"][BASELINE]["step_seconds"]["median"] > 0
        assert len(row["setting"]["ranks"]) == 5
    assert len(body["memory"]) > 3
    assert all(case["training_peak_bytes"] > 0 for case in body["memory"])


def test_a_budget_that_is_spent_names_what_it_left_out(tmp_path):
    path = tmp_path / "results.json"
    run_timed(
        ["-m", "benchmarks.gpu", "--device", "cpu", "--smoke", "--budget", "1", "--into", str(path)],
        folder=tmp_path,
        extra={"OMP_NUM_THREADS": "1"},
    )
    body = json.loads(path.read_text(encoding="utf-8"))
    assert body["rows"] == []
    assert len(body["skipped"]) == 5
    assert all("needed" in skipped["reason"] for skipped in body["skipped"])


def test_the_engine_is_there_without_bitsandbytes(tmp_path):
    """`sys.modules[name] = None` makes a library look as if it were not installed."""
    code = """
import sys
sys.modules["bitsandbytes"] = None
from benchmarks.gpu import make_engine_importable
make_engine_importable()
from lorastudy.engine import packed, quantised
import torch
print(packed.PackedEngine.name, quantised.feels_other_rows(torch.nn.Linear(1, 1)))
"""
    done = run_timed(["-c", code], folder=tmp_path, extra={"OMP_NUM_THREADS": "1"})
    assert done.output == "packed False\n"


@pytest.mark.slow
def test_the_lab_row_is_measured_and_both_sides_learn_the_same():
    said: list[str] = []
    row = lab_row(num_rounds=1, say=said.append, **TINY).to_json()
    assert [sample["side"] for sample in row["samples"]] == [OURS, BASELINE, BASELINE_TUNED]
    assert row["quality"]["agrees"], row["quality"]
    losses = [sample["losses"] for sample in row["samples"]]
    assert losses[0].keys() == losses[1].keys()
    assert len(losses[0]) == 8  # 2 ranks x 2 seeds x 2 sets
    assert losses[1] == losses[2]
    assert row["ratios"][BASELINE]["wall_seconds"]["median"] > 0
    assert 0 < row["medians"][OURS]["peak_share"] < 1
    assert row["noise_floor"]["train_seconds"] >= 1
