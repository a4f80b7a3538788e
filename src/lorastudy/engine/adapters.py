"""Adapters in PEFT's format; the only file that imports peft."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorastudy.engine.arms import Arm
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.quantised import features
from lorastudy.engine.targets import shortest_names
from lorastudy.errors import ModelError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_PREFIX = "base_model.model."


def lora_config(arm: Arm, *, base: BaseModel) -> LoraConfig:
    """The arm as PEFT's own configuration; it does not name the base, which PEFT fills in itself."""
    modules = base.linear_layers
    transposed = any(isinstance(modules[name], Conv1D) for name in arm.module_names)
    return LoraConfig(
        r=arm.r,
        lora_alpha=_whole(arm.lora_alpha),
        use_rslora=arm.use_rslora,
        lora_dropout=arm.lora_dropout,
        target_modules=shortest_names(arm.module_names, modules=list(modules)),
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )


def save_adapter(
    arm: Arm, weights: Mapping[str, tuple[Tensor, Tensor]], *, base: BaseModel, folder: Path
) -> int:  # fmt: skip
    """Write `adapter_model.safetensors` and `adapter_config.json`; return the bytes of the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_PREFIX}{name}.{part}.weight": tensor.detach().cpu().contiguous()
        for name, pair in weights.items()
        for part, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    save_config(arm, base=base, folder=folder)
    return (folder / WEIGHTS_FILE).stat().st_size


def save_config(arm: Arm, *, base: BaseModel, folder: Path) -> None:
    """Write `adapter_config.json`."""
    config = lora_config(arm, base=base)
    config.base_model_name_or_path = base.name
    config.inference_mode = True
    config.save_pretrained(str(folder))


def wrap(base: BaseModel, arms: Mapping[str, Arm]) -> PeftModel:
    """PEFT's model around the base with one named adapter per arm, weights as PEFT draws them."""
    names = iter(arms)
    first = next(names)
    model = get_peft_model(base.model, lora_config(arms[first], base=base), adapter_name=first)
    for name in names:
        model.add_adapter(name, lora_config(arms[name], base=base))
    return model


def set_weights(model: nn.Module, weights: Mapping[str, tuple[Tensor, Tensor]], *, adapter_name: str) -> None:
    """Give a named adapter of PEFT's model these weights."""
    state = {
        f"{_PREFIX}{name}.{part}.weight": tensor
        for name, pair in weights.items()
        for part, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    set_peft_model_state_dict(model, state, adapter_name=adapter_name)


def load_adapter(base: BaseModel, folder: Path) -> PeftModel:
    """PEFT's own loading of an adapter onto the base, for evaluation.

    Raises:
        ModelError: not an adapter folder, or an adapter of another base.
    """
    check_fits(base, folder)
    model = PeftModel.from_pretrained(base.model, str(folder))
    model.eval()
    return model


def check_fits(base: BaseModel, folder: Path) -> None:
    """Refuse a folder that is no adapter, or one whose shapes are not this base's.

    Raises:
        ModelError: says which file is missing, or which layer differs and what base the adapter names.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ModelError(
                f"checkpoint: {folder}: has no {name}; expected an adapter folder such as output/<name>/final_model"
            )
    made_for = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    modules = base.linear_layers
    for key, tensor in load_file(folder / WEIGHTS_FILE).items():
        name, part = key.removeprefix(_PREFIX).removesuffix(".weight").rsplit(".", 1)
        module = modules.get(name)
        if module is None or not _same_width(module, tensor, part=part):
            raise ModelError(
                f"checkpoint: {folder}: made for another base model ({made_for}): its {name} of shape "
                f"{tuple(tensor.shape)} does not fit {base.name}"
            )


def _same_width(module: nn.Module, tensor: Tensor, *, part: str) -> bool:

    inputs, outputs = features(module)
    return tensor.shape[1] == inputs if part == "lora_A" else tensor.shape[0] == outputs


def _whole(value: float) -> Any:
    """PEFT's type for alpha is int; keep fractions only where there are any."""
    return int(value) if value == int(value) else value


def trainable(model: nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
