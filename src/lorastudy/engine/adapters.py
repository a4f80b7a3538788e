"""Adapter folders in PEFT's format, written and checked without PEFT."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorastudy.engine.arms import Arm
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.quantised import features
from lorastudy.engine.targets import resolve_targets, shortest_names
from lorastudy.errors import ModelError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."


def save_adapter(
    arm: Arm, weights: Mapping[str, tuple[Tensor, Tensor]], *, base: BaseModel, folder: Path
) -> int:  # fmt: skip
    """Write `adapter_model.safetensors` and `adapter_config.json`; return the bytes of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{PREFIX}{name}.{part}.weight": tensor.detach().cpu().contiguous()
        for name, pair in weights.items()
        for part, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    weights_file = folder / WEIGHTS_FILE
    weights_file.unlink(missing_ok=True)  # who reads an earlier one has its bytes mapped, and keeps them
    # Not `save_file`: of a full disk it raises an error of its own, which looks like the pack's own failure.
    weights_file.write_bytes(save(tensors, metadata={"format": "pt"}))
    save_config(arm, base=base, folder=folder)
    return weights_file.stat().st_size


def save_config(arm: Arm, *, base: BaseModel, folder: Path) -> None:
    """Write `adapter_config.json`, which PEFT reads as `peft_model.lora_config`; a key that is left out has its default.

    Not by PEFT: importing it takes a second of every worker's start, and it writes the modules in a random order.
    """
    modules = base.linear_layers
    config = {
        "base_model_name_or_path": base.name,
        "bias": "none",
        "fan_in_fan_out": is_transposed(arm, base=base),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": whole(arm.lora_alpha),
        "lora_dropout": arm.lora_dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": arm.r,
        "target_modules": sorted(shortest_names(arm.module_names, modules=list(modules))),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": arm.use_rslora,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_fits(base: BaseModel, folder: Path) -> None:
    """Refuse a folder that is no adapter, or one whose shapes are not this base's.

    Raises:
        ModelError: says which file is missing, or which layer differs and what base the adapter names.
    """
    config, tensors = _read(folder)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"checkpoint: {folder}: a {config.get('peft_type')} adapter; only LoRA is supported")
    another = f"checkpoint: {folder}: made for another base model ({config.get('base_model_name_or_path')})"
    modules = base.linear_layers
    present = set()
    for key, tensor in tensors.items():
        name, _, part = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if name not in modules or not _same_width(modules[name], tensor, part=part):
            shape = tuple(tensor.shape)
            raise ModelError(f"{another}: its {name} of shape {shape} does not fit {base.name}")
        present.add(name)
    absent = _selected(config, modules=list(modules)) - present
    if absent:
        # PEFT would leave these layers at their random start, with a warning.
        raise ModelError(f"{another}: it has no weights for {min(absent)} of {base.name}")


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter's configuration and weights."""
    pickle = folder / "adapter_model.bin"
    if pickle.exists() and not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(
            f"checkpoint: {folder}: has {pickle.name} and no {WEIGHTS_FILE}; reading a pickle runs the code in it, so it is "
            "not read. Save the adapter again with PEFT where you trust it"
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ModelError(
                f"checkpoint: {folder}: has no {name}; expected an adapter folder such as output/<name>/final_model"
            )
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"checkpoint: {folder}: damaged: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"checkpoint: {folder}: damaged: {CONFIG_FILE} is not a JSON object")
    if config.get("megatron_config"):  # PEFT imports the module that `megatron_core` names
        raise ModelError(
            f"checkpoint: {folder}: its megatron_config would load code; only plain LoRA is supported"
        )
    return config, tensors


def _selected(config: Mapping[str, Any], *, modules: Sequence[str]) -> set[str]:
    """The base's layers that the configuration names; none where it says it by other means than a list of names."""
    names = config.get("target_modules")
    if not isinstance(names, list) or config.get("layers_to_transform") or config.get("exclude_modules"):
        return set()
    return set(resolve_targets(modules, target_modules=names, layers_to_transform=None))


def _same_width(module: nn.Module, tensor: Tensor, *, part: str) -> bool:
    inputs, outputs = features(module)
    if part not in {"lora_A", "lora_B"} or tensor.ndim != 2:
        return False
    return tensor.shape[1] == inputs if part == "lora_A" else tensor.shape[0] == outputs


def is_transposed(arm: Arm, *, base: BaseModel) -> bool:
    """Whether the weights of the arm's layers stand as GPT-2's do, inputs first."""
    return any(isinstance(base.linear_layers[name], Conv1D) for name in arm.module_names)


def whole(value: float) -> Any:
    """PEFT's type for alpha is int; keep fractions only where there are any."""
    return int(value) if value == int(value) else value
