"""The initial weights of adapters in the reference engine, where PEFT does not make them.

Plain LoRA starts as in the packed engine. LoftQ (arXiv 2310.08659) starts from what quantisation took away: lora_B lora_A is
the best approximation of rank r of W - Q, where W are the weights in the model's files and Q the quantised ones. It equals
PEFT's `replace_lora_weights_loftq`, which runs on a GPU only: one step of LoftQ, with the base as it is quantised.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from lorastudy.engine.arms import TrainingArm, initial_lora_A
from lorastudy.engine.loading import BaseModel, local_folder
from lorastudy.engine.quantised import frozen_weight_OD, is_4bit
from lorastudy.errors import ModelError
from lorastudy.suite.methods import LOFTQ
from lorastudy.suite.targets import TargetLayer


def initial_weights(arm: TrainingArm, *, base: BaseModel) -> dict[str, tuple[Tensor, Tensor]]:
    """`lora_A` and `lora_B` of each of the arm's layers, in fp32.

    Raises:
        ModelError: for LoftQ, the model's files do not hold the weights of a layer.
    """
    layers = base.targets_by_name
    plain = {name: _plain(arm, layers[name]) for name in arm.module_names}
    if arm.method.init_lora_weights != LOFTQ:
        return plain
    quantised = [name for name in arm.module_names if is_4bit(base.linear_layers[name])]
    return plain | {
        name: _of_difference(base, name, weight_OD=weight_OD, rank=arm.method.rank_of(name, r=arm.r))
        for name, weight_OD in _weights_in_files(base, quantised).items()
    }


def _plain(arm: TrainingArm, layer: TargetLayer) -> tuple[Tensor, Tensor]:
    """The same initial weights as in the packed engine. Each expert has its own stream; their matrices are stacked."""
    rank = arm.method.rank_of(layer.name, r=arm.r)
    numbered = [f"{layer.name}.{number}" for number in range(layer.num_experts)]
    streams = numbered if layer.is_parameter else [layer.name]
    lora_A = [
        initial_lora_A(replace(arm, r=rank), module_name=stream, in_features=layer.in_features)
        for stream in streams
    ]
    return torch.cat(lora_A), torch.zeros(layer.out_features, rank * layer.num_experts)


@torch.no_grad()
def _of_difference(base: BaseModel, name: str, *, weight_OD: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """With U S V the singular values of W - Q: lora_B = U sqrt(S) and lora_A = sqrt(S) V, the largest `rank` of them."""
    layer = base.linear_layers[name]
    quantised_OD = frozen_weight_OD(layer, dtype=torch.float32)
    if weight_OD.shape != quantised_OD.shape or rank > min(weight_OD.shape):
        raise ModelError(
            f"init_lora_weights: {LOFTQ}: {name} is {tuple(weight_OD.shape)} in the model's files and "
            f"{tuple(quantised_OD.shape)} when quantised, at rank {rank}; set init_lora_weights: true"
        )
    U, S, V = torch.linalg.svd(
        weight_OD.to(quantised_OD.device, torch.float32) - quantised_OD, full_matrices=False
    )
    roots = S[:rank].sqrt()
    return roots.unsqueeze(1) * V[:rank], U[:, :rank] * roots


def _weights_in_files(base: BaseModel, names: list[str]) -> Mapping[str, Tensor]:
    """The layers' weights by name, as the model's files hold them. PEFT, too, looks for names without the model's prefix."""
    found: dict[str, Tensor] = {}
    prefix = f"{base.model.base_model_prefix}."
    for path in sorted(Path(local_folder(base.name, with_code=False)).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            keys = set(file.keys())
            for name in names:
                key = f"{name}.weight"
                own = key if key in keys else key.removeprefix(prefix)
                if own in keys:
                    found[name] = file.get_tensor(own)
    missing = [name for name in names if name not in found]
    if missing:
        raise ModelError(
            f"init_lora_weights: {LOFTQ}: the files of {base.name} hold no weights named {missing[0]}"
        )
    return found
