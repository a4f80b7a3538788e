"""`lorastudy evaluate`: several adapters over one base score as each does alone."""

import dataclasses
import json

import pytest
import torch

import tiny
from lorastudy.engine.loading import load_base
from lorastudy.errors import StudyError
from lorastudy.evaluation import evaluate_adapter as checkpoint
from lorastudy.protocol.jobs import EvaluateJob
from lorastudy.suite.settings import Settings

pytestmark = pytest.mark.usefixtures("one_thread")


def job(folder, *names):
    """As it comes out of `job.json`."""
    told = EvaluateJob(
        checkpoints=tuple(str(folder / name) for name in names), base_model=str(folder / "base"), quantization="fp32",
        dataset=str(folder / "rows.jsonl"), benchmark=False, profile_inference=False, max_seq_length=32,
        max_samples=None, max_generation_samples=0, max_new_tokens=2,
    )  # fmt: skip
    return json.loads(json.dumps(dataclasses.asdict(told)))


@pytest.fixture
def folder(tmp_path):
    tiny.save_base(tmp_path / "base", hidden_size=32)
    settings = Settings(base_model=str(tmp_path / "base"), quantization="fp32")
    base = load_base(settings, device=torch.device("cpu"))
    arms = [
        tiny.make_arm(tiny.targets(base, "qkvo"), name="a", learning_rate=1e-2),
        tiny.make_arm(tiny.targets(base, "mlp"), name="b", r=2, learning_rate=1e-2),
    ]
    with tiny.opened(tiny.PackedEngine(base, arms)) as engine:
        engine.train(tiny.make_steps(4), on_step=tiny.Log())
        for arm in engine.arms:
            engine.save_adapter(arm, tmp_path / arm.experiment_id)
    rows = [{"prompt": row.prompt_text, "completion": row.reference} for row in tiny.make_rows(6, longest=10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_several_over_one_base_score_as_each_alone(folder, monkeypatch):
    alone = [checkpoint.run_job(job(folder, name))["checkpoints"][0] for name in ("a", "b")]
    loads = []

    def counted(*given, **named):
        loads.append(given)
        return load_base(*given, **named)

    monkeypatch.setattr(checkpoint, "load_base", counted)
    both = checkpoint.run_job(job(folder, "a", "b", "a"))["checkpoints"]
    assert len(loads) == 1
    assert both == [*alone, alone[0]]
    losses = [result["scores"][0]["value"] for result in alone]
    assert losses[0] != losses[1]


def test_adapters_that_were_trained_otherwise_are_not_scored_alike_silently(tmp_path):
    from lorastudy.planning.evaluation_request import shared

    one, other = tmp_path / "one", tmp_path / "other"
    assert shared({one: "bf16", other: "bf16"}, str, option="--quantization") == "bf16"
    with pytest.raises(
        StudyError, match=r"one was trained with bf16, .*other with 4bit; give --quantization"
    ):
        shared({one: "bf16", other: "4bit"}, str, option="--quantization")
