"""A suite with full fine-tuning beside LoRA, as a user has it: planned, run, reported, loaded, scored again."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorastudy.store import ExperimentTracker

SUITE = """\
suite_name: yardstick
base_model: model
dataset_path: people.csv
quantization: bf16
max_steps: 4
max_seq_length: 32
max_generation_samples: 2
max_new_tokens: 4
checkpoint_steps: 1
metrics: [{metrics}]
experiments:
  - {{name: lora, lora_rank: 2, learning_rate: {rate}}}
  - {{name: full, method: full, learning_rate: 1e-3}}
"""


@pytest.fixture(scope="module")
def folder(make_folder: Callable[[str], Any]) -> Any:
    folder = make_folder("full")
    folder.write("full.yaml", SUITE.format(metrics="", rate="1e-2"))
    folder.here("lorastudy suite full.yaml")
    return folder


def results(folder: Any) -> dict[str, Any]:
    with ExperimentTracker(folder.path / "results/experiments.db") as tracker:
        return {result.arm: result for result in tracker.get_all_experiments(suite_name="yardstick")}


def test_its_costs_are_predicted_and_measured(folder: Any) -> None:
    full, lora = (results(folder)[name] for name in ("full", "lora"))
    assert (full.status, full.engine, lora.engine) == ("completed", "reference", "packed")
    config = json.loads((folder.path / "output/full/final_model/config.json").read_text())
    profile = full.profile
    assert (
        profile.num_trainable_parameters
        == profile.num_total_parameters
        > 10 * lora.profile.num_trainable_parameters
    )
    assert profile.adapter_bytes == pytest.approx(2 * profile.num_trainable_parameters, rel=0.1)
    assert config["dtype"] == "bfloat16"
    # bf16: 2 bytes of the model, 2 of its copy, 4 of the optimizer's weight, 4 of the gradient, 8 of the moments
    assert full.prediction.alone_bytes > 20 * profile.num_trainable_parameters
    said = folder.here("lorastudy suite full.yaml --dry-run --output-dir other").stdout
    assert "full fine-tuning" in said


def test_the_report_calls_it_by_its_name_and_gives_it_no_rank(folder: Any) -> None:
    folder.here("lorastudy report")
    text = (folder.path / "RESULTS.md").read_text()
    assert "full fine-tuning" in text
    (row,) = [
        line for line in text.splitlines() if line.startswith("| full fine-tuning") and "reference" in line
    ][:1]
    assert "16" not in row.split("|")[3]


def test_transformers_loads_what_it_saved_and_evaluate_scores_it(folder: Any) -> None:
    place = folder.path / "output/full/final_model"
    model = AutoModelForCausalLM.from_pretrained(place)
    base = AutoModelForCausalLM.from_pretrained(folder.path / "model")
    assert any(
        not torch.equal(own, other.to(own.dtype))
        for own, other in zip(model.parameters(), base.parameters(), strict=True)
    )
    command = "lorastudy evaluate --checkpoint output/full/final_model --dataset people.csv --max-generation-samples 0"
    folder.here(f"{command} --output full.json")
    folder.here(f"{command} --base-model model --output on_base.json")
    found = [json.loads((folder.path / name).read_text())["scores"] for name in ("full.json", "on_base.json")]
    assert found[0] == found[1]
    assert "sound" in folder.here("lorastudy doctor").stdout


def test_a_metric_that_is_added_later_is_scored_on_the_stored_model(folder: Any) -> None:
    folder.write("full.yaml", SUITE.format(metrics="bits_per_byte", rate="1e-2"))
    said = folder.here("lorastudy suite full.yaml").stdout
    assert "scored 2 stored adapters" in said
    full = results(folder)["full"]
    key = next(key for key in full.scores if key[1].startswith("bits_per_byte"))
    # nats per token and bits per byte are of the same log-likelihoods
    assert full.scores[key].value > 0


def test_at_lora_s_rate_the_linter_says_so(folder: Any) -> None:
    folder.write("same.yaml", SUITE.format(metrics="", rate="1e-3"))
    said = folder.here("lorastudy check same.yaml", expect=1).stdout
    assert "LS103" in said
    assert "full fine-tuning and adapters both ran at 0.001" in said
