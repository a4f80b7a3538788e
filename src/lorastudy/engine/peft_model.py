"""PEFT's own models with adapters on them; the only file that imports peft, and imported where one is needed."""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn

from lorastudy.engine.adapters import PREFIX, check_fits, is_transposed, whole
from lorastudy.engine.arms import Arm
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.targets import shortest_names
from lorastudy.errors import ModelError


def lora_config(arm: Arm, *, base: BaseModel) -> LoraConfig:
    """The arm as PEFT's own configuration; it does not name the base, which PEFT fills in itself."""
    return LoraConfig(
        r=arm.r,
        lora_alpha=whole(arm.lora_alpha),
        use_rslora=arm.use_rslora,
        lora_dropout=arm.lora_dropout,
        target_modules=shortest_names(arm.module_names, modules=list(base.linear_layers)),
        fan_in_fan_out=is_transposed(arm, base=base),
        task_type="CAUSAL_LM",
    )


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
        f"{PREFIX}{name}.{part}.weight": tensor
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
    try:
        model = PeftModel.from_pretrained(base.model, str(folder))
    except (ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        raise ModelError(f"checkpoint: {folder}: PEFT cannot load it: {error}") from error
    model.eval()
    return model


def trainable(model: nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
