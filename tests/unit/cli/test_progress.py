"""What a running suite shows, whether its packs come one after another or side by side."""

import pytest

from lorastudy.cli.progress import Progress
from lorastudy.executors import WorkerExit
from lorastudy.planner.packing import PlannedPack
from lorastudy.records import Environment, Outcome, PackStep
from lorastudy.spec.experiment import Experiment, Sources
from lorastudy.spec.settings import Settings

ENVIRONMENT = Environment(
    python="3", torch="2", transformers="5", peft="0", bitsandbytes="0", lorastudy="0", device="cpu",
    device_name="a processor", num_threads=1,
)  # fmt: skip


def pack(rank: int) -> PlannedPack:
    experiment = Experiment(
        name=f"r{rank}", arm=f"r{rank}", experiment_type="custom", seed=0, settings=Settings(lora_rank=rank),
        sources=Sources(base_model="lab", dataset="lab"),
    )  # fmt: skip
    return PlannedPack(experiments=(experiment,))


def step(number: int) -> PackStep:
    return PackStep(step=number, num_steps=3, num_tokens=1, num_completion_tokens=1, seconds=0.1, arms=())


@pytest.mark.parametrize("order", ["aaabbb", "ababab", "aabbab"])
def test_packs_in_any_order(capsys: pytest.CaptureFixture[str], order: str) -> None:
    packs, steps = {"a": pack(1), "b": pack(2)}, {"a": 0, "b": 0}
    with Progress(num_packs=2) as progress:
        for name in order:
            if not steps[name]:
                progress.on_event(packs[name], ENVIRONMENT)
            steps[name] += 1
            progress.on_event(packs[name], step(steps[name]))
            if steps[name] == 3:
                progress.on_event(packs[name], WorkerExit(returncode=None))
    said = capsys.readouterr().err
    assert "pack 1/2 (1 experiments): worker started on a processor" in said
    assert "pack 2/2 (1 experiments): worker started on a processor" in said


def test_a_failure_is_told_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    (experiment,) = pack(1).experiments
    with Progress(num_packs=1) as progress:
        outcome = Outcome(
            experiment_id=experiment.id, status="failed", failure_kind="user", message="[no] such"
        )
        progress.on_event(pack(1), outcome)
    assert "r1 failed (user): [no] such" in capsys.readouterr().err
