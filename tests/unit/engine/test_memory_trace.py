"""What a count of a step is made of. That it is right is held against measured steps in `tests/parity/test_memory.py`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny
from lorastudy.engine import loss, memory_trace
from lorastudy.engine.fake_model import FakeModels, counted_arms
from lorastudy.engine.memory_trace import CountedStep, as_footprint, count_layers, footprint
from lorastudy.engine.targets import target_layers
from lorastudy.protocol.jobs import CountedArm, FootprintQuestion, Precision

SHAPES = Path(__file__).parents[3] / "benchmarks" / "shapes"


def question(folder: Path, **values: Any) -> FootprintQuestion:
    asked = FootprintQuestion(
        engine="packed", device_kind="cuda", folder=str(folder), precision=Precision(quantization="bf16"),
        arms=(CountedArm(r=16, targets=("all", None)), CountedArm(r=4, targets=("all", None))),
        gradient_checkpointing=False, row_lengths=(100, 200), num_labels=150,
    )  # fmt: skip
    return replace(asked, **values)


def counted(asked: FootprintQuestion, *, models: FakeModels) -> CountedStep:
    """Of all layers, one by one."""
    layers = target_layers(models.meta(asked.folder, trust_remote_code=False))
    return count_layers(asked, counted_arms(asked.arms, layers=layers), models=models, num_layers=None)


@pytest.mark.parametrize("num_layers", [8, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", ["phi-2", "llama-7b", "llama-13b"])
def test_the_extended_count_is_the_direct_count(tmp_path: Path, shape: str, num_layers: int) -> None:
    """To the byte, for packs of unlike ranks, and for one high rank on short rows."""
    config = json.loads((SHAPES / shape / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": num_layers}))
    models = FakeModels()
    short = {"arms": (CountedArm(r=256, targets=("all", None)),), "row_lengths": (9,), "num_labels": 4}
    for values in ({}, short):
        asked = question(tmp_path, **values)
        extended = footprint(asked, models=models)
        assert extended == as_footprint(counted(asked, models=models))


@pytest.mark.parametrize("values", [
    {"gradient_checkpointing": True},
    {"precision": Precision(quantization="4bit")},
    {"device_kind": "cpu", "precision": Precision(quantization="fp32")},
    {"arms": (CountedArm(r=8, targets=("qv", None)), CountedArm(r=8, targets=("mlp", None), has_dropout=True))},
])  # fmt: skip
def test_it_is_so_whatever_a_pack_is_made_of(tmp_path: Path, values: dict[str, Any]) -> None:
    config = tiny.config("llama", hidden_size=64)
    config.num_hidden_layers = 9
    config.save_pretrained(tmp_path)
    models = FakeModels()
    asked = question(tmp_path, **values)
    assert footprint(asked, models=models) == as_footprint(counted(asked, models=models))


def test_an_arm_on_some_layers_has_every_layer_counted(tmp_path: Path) -> None:
    config = tiny.config("llama", hidden_size=64)
    config.num_hidden_layers = 9
    config.save_pretrained(tmp_path)
    models = FakeModels()
    few = question(tmp_path, arms=(CountedArm(r=8, targets=("qv", (7, 8))),))
    assert footprint(few, models=models) == as_footprint(counted(few, models=models))


def test_the_first_chunks_of_the_loss_tell_its_peak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks of 10 rows, 300 rows of two arms: the peak is the same where all chunks are run."""
    tiny.config("llama", hidden_size=64).save_pretrained(tmp_path)
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", dict.fromkeys(("cpu", "cuda"), 10 * tiny.VOCAB))
    asked = question(tmp_path)
    cut = counted(asked, models=FakeModels())
    monkeypatch.setattr(memory_trace, "_NUM_CHUNKS", 1000)
    whole = counted(asked, models=FakeModels())
    assert cut == whole
    assert cut.loss_growth_bytes > 0


def test_a_step_is_counted_as_on_the_device_that_will_train(tmp_path: Path) -> None:
    """A CPU has a group for each rank. CUDA has one, padded to rank 16, with gradients of its own.

    An adapter has 2,048 parameters for each rank, half of them in lora_B. Each takes 16 bytes of weight, gradient and moments,
    and 4 more in s B; the slots take 2 bytes in bf16, and on CUDA 4 more for their gradients.
    """
    tiny.config("llama", hidden_size=64).save_pretrained(tmp_path)
    here, there = (
        counted(question(tmp_path, device_kind=kind), models=FakeModels()) for kind in ("cpu", "cuda")
    )
    num_parameters = 2048 * (16 + 4)
    assert here.num_parameters == there.num_parameters == num_parameters
    few = 100  # bytes: a few numbers for each arm
    assert 0 <= here.resident_bytes - (16 + 2 + 2) * num_parameters < few
    assert 0 <= there.resident_bytes - (16 + 2) * num_parameters - (2 + 4) * 2048 * (16 + 16) < few


def test_arms_of_a_pack_add_up_in_the_step(tmp_path: Path) -> None:
    """Activations are by arm: two arms of a kind hold twice what one holds, but for what all share."""
    tiny.config("llama", hidden_size=64).save_pretrained(tmp_path)
    arm = CountedArm(r=8, targets=("qv", None))
    one, two, three = (
        counted(question(tmp_path, arms=(arm,) * number), models=FakeModels()) for number in (1, 2, 3)
    )
    assert two.resident_bytes - one.resident_bytes == three.resident_bytes - two.resident_bytes
    held = [step.peak_bytes["loss"] for step in (one, two, three)]
    assert held[1] - held[0] == held[2] - held[1] > 0


def test_excluded_modules_are_not_counted() -> None:
    layers = target_layers(tiny.make_model("llama"))
    arms = [CountedArm(r=4, targets=("qv", None), exclude_modules=excluded) for excluded in ((), ("v_proj",))]
    plain, excluding = counted_arms(arms, layers=layers)
    assert {name.rpartition(".")[2] for name in plain.module_names} == {"q_proj", "v_proj"}
    assert {name.rpartition(".")[2] for name in excluding.module_names} == {"q_proj"}
