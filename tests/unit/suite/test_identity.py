"""The fingerprint of a base model follows its content, and a hub id its cached commit."""

import json
import shutil
from pathlib import Path

import pytest

from lorastudy.errors import ModelError
from lorastudy.suite.base_model import SAMPLE_BYTES, base_model_fingerprint

HEADER = json.dumps({"w": {"dtype": "F32", "shape": [262144], "data_offsets": [0, 1 << 20]}}).encode()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(len(HEADER).to_bytes(8, "little") + HEADER + bytes(1 << 20))
    return folder


def test_the_same_content_elsewhere_has_the_same_fingerprint(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("says nothing about the weights")
    first = base_model_fingerprint(str(model))
    assert first == base_model_fingerprint(str(tmp_path / "copy"))
    assert first.startswith("sha256:")
    assert len(first) == len("sha256:") + 64


@pytest.mark.parametrize("where", ["config", "tokenizer", "header", "middle", "end", "size", "name"])
def test_other_content_has_another_fingerprint(model: Path, where: str) -> None:
    before = base_model_fingerprint(str(model))
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if where in {"config", "tokenizer"}:
        path = model / {"config": "config.json", "tokenizer": "tokenizer.json"}[where]
        path.write_text(path.read_text() + " ")
    elif where == "size":
        weights.write_bytes(
            bytes(content[: len(content) // 4]) + bytes(3) + bytes(content[len(content) // 4 :])
        )
    elif where == "name":
        weights.rename(model / "other.safetensors")
    else:
        content[{"header": 20, "middle": len(content) // 2 + 5, "end": -5}[where]] ^= 1
        weights.write_bytes(bytes(content))
    assert base_model_fingerprint(str(model)) != before


def test_a_byte_between_the_samples_is_the_documented_blind_spot(model: Path) -> None:
    before = base_model_fingerprint(str(model))
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2 + SAMPLE_BYTES + 1] ^= 1
    weights.write_bytes(bytes(content))
    assert base_model_fingerprint(str(model)) == before


def test_a_torn_weight_file_still_has_a_fingerprint(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 12)
    assert base_model_fingerprint(str(model)).startswith("sha256:")


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        base_model_fingerprint(str(tmp_path))


def test_a_hub_id_is_pinned_by_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert base_model_fingerprint("microsoft/phi-2") == "hub:microsoft/phi-2@unresolved"
    refs = tmp_path / "hub" / "models--microsoft--phi-2" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("ef382358ec9e382308935a992d908de099b64c23\n")
    assert (
        base_model_fingerprint("microsoft/phi-2")
        == "hub:microsoft/phi-2@ef382358ec9e382308935a992d908de099b64c23"
    )
