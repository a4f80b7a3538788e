"""A base model's configuration and shapes, from its files alone."""

import json
from pathlib import Path

import pytest

from lorastudy.errors import ModelError
from lorastudy.suite.base_model import read_config, weight_shapes


def write_weights(file: Path, shapes: dict[str, list[int]]) -> None:
    header = json.dumps(
        {"__metadata__": {"format": "pt"}}
        | {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    ).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)


def test_the_labs_own_model():
    config, shapes = read_config("lab"), weight_shapes("lab")
    assert config is not None
    assert (config["model_type"], config["hidden_size"]) == ("llama", 96)
    assert shapes is not None
    assert shapes["model.layers.2.mlp.down_proj.weight"] == (96, 256)


def test_shapes_come_from_every_file_of_a_folder(tmp_path):
    write_weights(tmp_path / "model-00001-of-00002.safetensors", {"a": [2, 3]})
    write_weights(tmp_path / "model-00002-of-00002.safetensors", {"b": [4]})
    assert weight_shapes(str(tmp_path)) == {"a": (2, 3), "b": (4,)}


def test_a_hub_model_is_read_from_the_cache_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert read_config("org/model") is None
    assert weight_shapes("org/model") is None
    snapshot = tmp_path / "models--org--model" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--model" / "refs").mkdir()
    (tmp_path / "models--org--model" / "refs" / "main").write_text("c0ffee")
    (snapshot / "config.json").write_text('{"text_config": {"model_type": "qwen3", "hidden_size": 64}}')
    write_weights(snapshot / "model.safetensors", {"a": [1]})
    assert read_config("org/model") == {"model_type": "qwen3", "hidden_size": 64}
    assert weight_shapes("org/model") == {"a": (1,)}


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"not json")
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        read_config(str(tmp_path))
    with pytest.raises(ModelError, match=r"model\.safetensors: its safetensors header cannot be read"):
        weight_shapes(str(tmp_path))
