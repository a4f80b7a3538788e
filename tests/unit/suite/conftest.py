"""A folder in which a good suite file finds what it names; and a hub model on this machine, as far as its header goes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

GOOD = """\
suite_name: good
base_model: lab
dataset_path: rows.jsonl
experiments:
  - name: small
    lora_rank: 8
  - lora_rank: 16
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    return tmp_path


@pytest.fixture
def write(folder: Path) -> Callable[[str], Path]:
    def write_suite(text: str) -> Path:
        (folder / "s.yaml").write_text(text, encoding="utf-8")
        return Path("s.yaml")

    return write_suite


@pytest.fixture
def phi_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that holds the header of phi-2's weights, two layers of it."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--microsoft--phi-2"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    names = {f"self_attn.{name}": [2560, 2560] for name in ("q_proj", "k_proj", "v_proj", "dense")}
    names |= {"mlp.fc1": [10240, 2560], "mlp.fc2": [2560, 10240]}
    shapes = {f"model.layers.{n}.{name}.weight": shape for n in (0, 1) for name, shape in names.items()}
    shapes |= {"model.embed_tokens.weight": [51200, 2560], "lm_head.weight": [51200, 2560]}
    entries = {
        name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()
    }
    header = json.dumps(entries).encode()
    weights = folder / "snapshots" / "c0ffee" / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
