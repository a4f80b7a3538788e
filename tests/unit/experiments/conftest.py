"""A hub model on this machine, as far as its header goes."""

import json
from pathlib import Path

import pytest


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
