"""Both sides of the lab's row, in one process and for a few steps: the same tokens, order and first weights give the
same losses, and a difference in any of them shows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from benchmarks.baseline_jobs import job_of
from benchmarks.job import Job
from benchmarks.parity import first_weights, settings_of, train_from
from benchmarks.results import largest_relative
from benchmarks.sequential import peft_model, run_one
from lorastudy import lab
from lorastudy.engine.loading import load_base

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # The Trainer's loader asks for pinned memory, also where there is no accelerator.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two ranks of the shipped suite, eight steps."""
    suite = YAML(typ="safe").load(lab.rank_study()) | {
        "max_steps": 8,
        "seeds": [0],
        "experiments": [{"name": "rank_2", "lora_rank": 2}, {"name": "rank_8", "lora_rank": 8}],
    }
    path: Path = tmp_path_factory.mktemp("lab") / "suite.json"
    path.write_text(json.dumps(suite), encoding="utf-8")
    return replace(job_of(path), prompts=())


@pytest.fixture(scope="module")
def theirs(job):
    return {run.name: run_one(run, job=job) for run in job.runs}


def ours(job):
    base = load_base(settings_of(job, job.runs[0]), device=torch.device("cpu"))
    starts = {run.name: first_weights(peft_model(run, job=job)) for run in job.runs}
    return {run["name"]: run for run in train_from(starts, base=base, job=job)}


def losses(runs):
    return {f"{name}/{split}": loss for name, run in runs.items() for split, loss in run["losses"].items()}


def test_both_sides_learn_the_same_from_the_same_start(job, theirs):
    found = ours(job)
    assert losses(found).keys() == {f"{name}/{split}" for name in ("r2_s0", "r8_s0") for split in job.scored}
    assert largest_relative(losses(found), losses(theirs)) <= 1e-5  # seen: 6e-7
    for name, run in theirs.items():
        assert len(run["step_losses"]) == job.num_steps
        # the Trainer logs its losses with few digits
        assert found[name]["step_losses"] == pytest.approx(run["step_losses"], rel=1e-3)
        assert run["step_losses"][-1] < 0.9 * run["step_losses"][0]


@pytest.mark.parametrize(
    "other",
    [
        lambda job: replace(job, runs=tuple(replace(run, seed=1) for run in job.runs)),
        lambda job: replace(job, train=job.train[::-1]),
        lambda job: replace(job, warmup_ratio=0.5),
    ],
    ids=["start", "order", "schedule"],
)
def test_another_start_order_or_schedule_shows(job, theirs, other):
    assert largest_relative(losses(ours(other(job))), losses(theirs)) > 0.05  # seen: 0.2 and more
