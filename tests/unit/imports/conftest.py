"""Small files in the form of those that other tools write; all numbers in them are made up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def peft_body(
    name: str = "lora/tiny-rank8", *, right: int = 50, items: int = 100, **changes: Any
) -> dict[str, Any]:
    """A result as PEFT's method_comparison writes it; `changes` go into train_config, `adapter` is the peft_config."""
    adapter = changes.pop(
        "adapter", {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"]}
    )
    packages = changes.pop("packages", {"torch-version": "2.13.0", "transformers-version": "5.13.1"})
    train = {
        "model_id": "org/tiny", "dtype": "bfloat16", "max_seq_length": 768, "batch_size": 4, "max_steps": 5000,
        "seed": 0, "optimizer_type": "AdamW", "optimizer_kwargs": {"lr": 1e-4, "weight_decay": 0.1},
        "lr_scheduler": "cosine", "grad_norm_clip": 1.0,
    }  # fmt: skip
    last = {"step": 5000, "test accuracy": right / items, "train loss": 0.5, "forgetting": 0.02}
    return {
        "run_info": {
            "created_at": "2026-07-15T05:41:18+00:00",
            "experiment_name": name,
            "train_config": train | changes,
            "peft_config": adapter,
            "error_msg": "",
        },
        "train_info": {
            "status": "success",
            "metrics": [{"step": 250, "valid accuracy": 0.3}, last],
            "num_trainable_params": 1000,
            "num_total_params": 100_000,
            "file_size": 4096,
            "accelerator_memory_max": 2**30,
            "train_time": 12.5,
        },
        "meta_info": {
            "model_info": {"sha": "abc"},
            "dataset_info": {"metamath": {"sha": "m"}, "gsm8k": {"sha": "g"}},
            "package_info": {"peft-version": "0.19.2", "peft-commit-hash": None, **packages},
            "system_info": {"accelerator": "a GPU"},
        },
    }


@pytest.fixture
def write_peft(tmp_path: Path) -> Callable[..., Path]:
    """Write such a file into `results` and return its path."""

    def write_peft(name: str = "lora/tiny-rank8", **options: Any) -> Path:
        folder = tmp_path / "results"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name.replace('/', '--')}.json"
        path.write_text(json.dumps(peft_body(name, **options)), encoding="utf-8")
        return path

    return write_peft


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Save a text under a name."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def peft() -> Callable[..., dict[str, Any]]:
    return peft_body
