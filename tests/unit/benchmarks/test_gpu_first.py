"""The first commands on a GPU go through every step without one; what they measure here means nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_checks, gpu_first
from lorastudy.executors.process import CUDA_ENVIRONMENT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def steps_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the steps of a command found."""
    for name, value in CUDA_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path))  # restores the path that the command extends

    def run(command: str, *options: str) -> dict[str, Any]:
        path = tmp_path / "first.json"
        assert gpu_first.main([command, "--smoke", "--device", "cpu", "--into", str(path), *options]) == 0
        body = json.loads(path.read_text(encoding="utf-8"))
        assert list(body["steps"]) == [name for name, _ in gpu_first.STEPS[command]]
        return body["steps"]

    return run


@pytest.mark.long
def test_the_first_command_finds_whether_it_is_right(steps_of):
    found = {name: step["found"] for name, step in steps_of("right").items()}
    assert found["versions"]["environment"].items() >= CUDA_ENVIRONMENT.items()
    assert {each["kernel"] for each in found["attention"].values()} == {"FLASH_ATTENTION"}
    assert all(each["repeats"] for each in found["attention"].values())
    for side in ("packed", "peft"):
        assert 0 < found["gradients"][side]["loss"] < 1e-3  # bf16 rounds by up to 2^-9 each time
        assert 0 < found["gradients"][side]["grad_norm"] < 1e-2
    for algorithms in ("deterministic", "fastest"):  # on a CPU they are the same
        assert found["same_bits"][algorithms] == {"second_run": True, "resumed": True}
    assert found["launch_cost"]["host_microseconds"] > 0
    assert 10 < len(found["profile"]["top"]) <= 30


@pytest.mark.long
def test_the_second_command_finds_whether_it_is_fast(steps_of, monkeypatch):
    """Without the rows and the table of `benchmarks.gpu`, which its own test goes through."""
    asked = []

    def measured(options):
        asked.append(options)
        written = {"rows": [{"id": "a row"}], "memory": [{"id": "a case"}], "skipped": []}
        Path(options[options.index("--into") + 1]).write_text(json.dumps(written), encoding="utf-8")

    monkeypatch.setattr(gpu_checks.gpu, "main", measured)
    steps = steps_of("fast")
    found = {name: step["found"] for name, step in steps.items()}
    for precision in ("4bit", "8bit"):
        assert found["quantised"][precision]["losses_are_finite"]
        assert found["quantised"][precision]["largest_difference_alone"] == 0
        assert found["quantised"][precision]["step_seconds"] > 0
    assert found["out_of_memory"]["errors"] == []
    assert found["out_of_memory"]["arms_per_pack"] == 16
    for name in ("speed", "memory"):
        short = {"file": f"first-{name}.json", "rows": ["a row"], "cases": ["a case"], "left_out": []}
        assert found[name] == short
    assert ["--memory" in options for options in asked] == [False, True]


def test_a_pack_that_does_not_fit_is_cut_and_its_errors_are_named(tmp_path, monkeypatch):
    from benchmarks.gpu_rows import Scale
    from benchmarks.job import Budget

    def room_for_five(kind, base, job, **_):
        if len(job.runs) > 5:
            raise torch.OutOfMemoryError(f"no room for {len(job.runs)}")

    monkeypatch.setattr(gpu_checks, "_steps", room_for_five)
    bench = gpu_checks.Bench(
        device="cpu", shape="phi-2", scale=Scale.smoke(), into=tmp_path / "x.json", budget=Budget(seconds=60)
    )
    found = gpu_checks.out_of_memory(bench)
    assert found["errors"] == ["OutOfMemoryError: no room for 16", "OutOfMemoryError: no room for 8"]
    assert found["arms_per_pack"] == 4


def test_a_step_that_fails_costs_no_other_one(steps_of, monkeypatch):
    def fails(_: object) -> dict[str, Any]:
        raise RuntimeError("no kernel image is available")

    for name, _ in gpu_first.STEPS["right"]:
        monkeypatch.setattr(gpu_checks, name, lambda _: {"is": "fine"})
    monkeypatch.setattr(gpu_checks, "attention", fails)
    steps = steps_of("right")
    assert steps.pop("attention")["error"] == "RuntimeError: no kernel image is available"
    assert [step["found"] for step in steps.values()] == [{"is": "fine"}] * 5


def test_a_step_without_time_is_named(tmp_path):
    from benchmarks.job import Budget

    bench = gpu_checks.Bench(
        device="cpu", shape="phi-2", scale=None, into=tmp_path / "x.json", budget=Budget(seconds=20)
    )
    assert gpu_first.taken(gpu_checks.versions, bench, seconds=60.0)["left_out"].startswith(
        "about 60 s needed"
    )
