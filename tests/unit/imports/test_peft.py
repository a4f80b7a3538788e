"""Files of PEFT's method_comparison: what is read, and what is refused."""

import hashlib
import json
from dataclasses import replace

import pytest

from lorastudy.errors import DataError
from lorastudy.imports.peft import TOOL, read_peft
from lorastudy.store.views import ImportedScore


def test_a_result_by_our_names_with_its_source(write_peft):
    path = write_peft()
    (result,) = read_peft([path], suite_name="public", num_items=100)
    assert (result.suite_name, result.arm, result.seed, result.tool) == ("public", "lora/tiny-rank8", 0, TOOL)
    expected = {
        "method": "lora", "base_model": "org/tiny", "lora_rank": 8, "lora_alpha": 16, "learning_rate": 1e-4,
        "target_modules": ["q_proj", "v_proj"], "max_steps": 5000, "per_device_train_batch_size": 4,
        "max_seq_length": 768, "quantization": "bf16", "weight_decay": 0.1, "optimizer": "AdamW",
    }  # fmt: skip
    assert {key: result.settings[key] for key in expected} == expected
    assert result.scores == (
        ImportedScore(metric="test accuracy", value=0.5, unit="share", lower_is_better=False, num_items=100),
        ImportedScore(metric="forgetting", value=0.02, unit="", lower_is_better=True),
    )
    assert result.sources == {
        "base_model": "hub:org/tiny@abc", "dataset": "m", "eval_dataset": "g",
        "environment": "torch 2.13.0, transformers 5.13.1, peft 0.19.2, a GPU",
    }  # fmt: skip
    assert result.costs["peak_memory_bytes"] == 2**30
    assert result.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_without_adapter_is_full_fine_tuning(write_peft):
    (result,) = read_peft([write_peft("full", adapter=None)], suite_name="s", num_items=100)
    assert result.settings["method"] == "full"
    assert "lora_rank" not in result.settings
    assert "peft_config" not in result.settings


def test_other_details_of_the_adapter_make_another_configuration(write_peft):
    adapter = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]}
    plain, dora, versioned = read_peft(
        [
            write_peft("a", adapter=adapter),
            write_peft("b", adapter=adapter | {"use_dora": True}),
            write_peft("c", adapter=adapter | {"peft_version": "9", "megatron_config": None}),
        ],
        suite_name="s",
        num_items=100,
    )
    assert plain.settings != dora.settings
    assert plain.settings == versioned.settings


def damaged(body, *path, value):
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return body


def test_every_bad_file_is_named_at_once(write, write_peft, peft):
    files = [
        write_peft("fine"),
        write("no.json", "{"),
        write("other.json", "[1]"),
        write("failed.json", json.dumps(damaged(peft(), "train_info", "status", value="cancelled"))),
        write("seedless.json", json.dumps(damaged(peft(), "run_info", "train_config", "seed", value=None))),
        write("unscored.json", json.dumps(damaged(peft(), "train_info", "metrics", value=[]))),
        write("odd.json", json.dumps(peft(right=1, items=3))),
    ]
    with pytest.raises(DataError) as error:
        read_peft(files, suite_name="s", num_items=100)
    lines = str(error.value).splitlines()
    assert [line.split(":")[0].rpartition("/")[2] for line in lines[:-1]] == [
        "no.json", "other.json", "failed.json", "seedless.json", "unscored.json", "odd.json",
    ]  # fmt: skip
    assert "not valid JSON" in lines[0]
    assert "'cancelled'" in lines[2]
    assert "run_info.train_config.seed" in lines[3]
    assert "test accuracy" in lines[4]
    assert "is not a share of 100 items; say how many with --num-items" in lines[5]
    assert lines[-1].startswith("nothing was imported")


def test_the_same_result_has_one_identity_wherever_it_was_read(write_peft):
    (result,) = read_peft([write_peft()], suite_name="s", num_items=100)
    elsewhere = replace(result, file="copy.json", file_sha256="0", location="copy.json", imported_at="2026")
    assert result.id == elsewhere.id
    assert result.id.startswith("imp-")
    assert result.id != replace(result, seed=1).id
    assert result.id != replace(result, suite_name="t").id
    assert result.id != replace(result, scores=result.scores[:1]).id
