"""Ranks that give arms on different modules about as many parameters."""

from pathlib import Path

import pytest

from lorastudy.errors import ModelError
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.experiment_types import linear_shapes, parameters_per_rank
from lorastudy.suite.suite import expand
from lorastudy.suite.suite_file import suite_from_values

# The lab's Llama: hidden 96, inner 256, 3 layers. q, k, v and o are 96 x 96; gate, up and down 96 x 256.
ATTENTION_LAYER, MLP_LAYER = 96 + 96, 96 + 256


def arms(**values: object) -> dict[str, Experiment]:
    asked = {
        "experiment_type": "parameter_matched_modules",
        "factors": {"target_modules": ["qv", "qkvo", "mlp", "all"]},
    }
    suite = suite_from_values({**asked, **values}, where="test")
    found = expand(suite, fingerprint_dataset=str, fingerprint_base=str)
    return {str(each.settings.target_modules): each for each in found}


@pytest.mark.parametrize(
    ("targets", "parameters"),
    [
        ("q", 3 * ATTENTION_LAYER),
        ("qv", 3 * 2 * ATTENTION_LAYER),
        ("qkvo", 3 * 4 * ATTENTION_LAYER),
        ("mlp", 3 * 3 * MLP_LAYER),
        ("all", 3 * (4 * ATTENTION_LAYER + 3 * MLP_LAYER)),
        (("q_proj", "up_proj"), 3 * (ATTENTION_LAYER + MLP_LAYER)),
    ],
)
def test_parameters_of_rank_one_by_hand(targets, parameters: int) -> None:
    assert parameters_per_rank(linear_shapes("lab"), target_modules=targets) == parameters


def test_layers_that_are_not_adapted_count_for_nothing() -> None:
    shapes = linear_shapes("lab")
    assert not any("embed" in name or "norm" in name for name in shapes)
    assert len(shapes) == 3 * 7
    assert parameters_per_rank(shapes, target_modules="qkvo", layers_to_transform=(1,)) == 4 * ATTENTION_LAYER


def test_each_arm_gets_the_rank_that_comes_nearest_to_an_arm_on_all_layers() -> None:
    """3 * 5,472 = 16,416 parameters; over 1,152, 2,304 and 3,168 that is 14.25, 7.125 and 5.18."""
    found = arms(lora_rank=3, lora_alpha="2r")
    assert {name: each.settings.lora_rank for name, each in found.items()} == {
        "qv": 14,
        "qkvo": 7,
        "mlp": 5,
        "all": 3,
    }
    assert found["qv"].name == "parameter_matched_modules_qv_r14"
    assert {each.settings.lora_scaling for each in found.values()} == {2.0}
    per_rank = {name: parameters_per_rank(linear_shapes("lab"), target_modules=name) for name in found}
    sizes = [each.settings.lora_rank * per_rank[name] for name, each in found.items()]
    assert max(sizes) / min(sizes) < 1.04


def test_a_fixed_alpha_stays_fixed() -> None:
    assert {each.settings.lora_alpha_value for each in arms(lora_rank=3, lora_alpha=32.0).values()} == {32.0}


def test_it_is_not_matched_for_a_model_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"base_model: org/model: .* hf download org/model"):
        arms(base_model="org/model")


@pytest.mark.usefixtures("phi_2")
def test_a_model_of_the_hub_is_matched_from_its_cached_header() -> None:
    """Attention has 4 * 5,120 a layer, the MLP 2 * 12,800, all of it 46,080: at rank 16 that is 737,280."""
    found = arms(base_model="microsoft/phi-2", lora_rank=16)
    assert {name: each.settings.lora_rank for name, each in found.items()} == {
        "qv": 72,
        "qkvo": 36,
        "mlp": 29,
        "all": 16,
    }
