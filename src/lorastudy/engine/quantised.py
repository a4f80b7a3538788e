"""Frozen linear layers of every precision; the only file that imports bitsandbytes.

The packed layer needs two things of whatever holds the frozen weight: its output for all arms, and the weight
itself for the derivative. For bitsandbytes layers both are made so that no arm can feel another and no
evaluation can disturb later training.
"""

from typing import Any

import bitsandbytes
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from lorastudy.engine.matmul import linear

#: What can carry an adapter. Conv1D is GPT-2's linear layer with the weight transposed.
LINEAR_TYPES: tuple[type[nn.Module], ...] = (nn.Linear, Conv1D)


def quantization_config(
    quantization: str, *, quant_type: str, double_quant: bool
) -> BitsAndBytesConfig | None:
    """What `from_pretrained` needs for `4bit` and `8bit`; None for a plain precision."""
    if quantization == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def keep_trainable_on_cpu(model: nn.Module) -> None:
    """Keep evaluation from repacking 4-bit weights.

    On CPUs with AVX512-BF16 the first no-grad forward of a `Linear4bit` repacks its weight for inference;
    a later training forward then reads the packed bytes as if they were not, and gradients are wrong or zero
    without a word. This switch, on every layer, turns the repacking off.
    """
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def feels_other_rows(layer: nn.Module) -> bool:
    """Whether a row's output depends on the other rows: LLM.int8() picks outlier columns over all of them."""
    return isinstance(layer, bitsandbytes.nn.Linear8bitLt)


def frozen_output(layer: nn.Module, x: Tensor, *, num_arms: int) -> Tensor:
    """W x + b for all arms. 4-bit weights are dequantised once for all; 8-bit layers run arm by arm."""
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        bias = layer.bias.to(x.dtype) if layer.bias is not None else None
        return linear(x, frozen_weight_OD(layer, dtype=x.dtype), bias_O=bias)
    if feels_other_rows(layer):
        return torch.cat([layer(x_k) for x_k in x.chunk(num_arms)])
    bias_O: Any = layer.bias
    return linear(x, frozen_weight_OD(layer, dtype=x.dtype), bias_O=bias_O)


def frozen_weight_OD(layer: nn.Module, *, dtype: torch.dtype) -> Tensor:
    """The layer's weight as (outputs, inputs), dequantised where it is quantised."""
    weight: Any = layer.weight
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        weight_OD: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return weight_OD.to(dtype)
    if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
        state: Any = layer.state if layer.state.CB is not None else weight
        codes_OD: Tensor = state.CB.to(dtype)
        return codes_OD.mul_((state.SCB / 127.0).unsqueeze(1))  # the scale in fp32, as bitsandbytes has it
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(layer, Conv1D) else weight


def features(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer, as PEFT counts them."""
    if isinstance(layer, Conv1D):
        num_inputs, num_outputs = layer.weight.shape
        return int(num_inputs), int(num_outputs)
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features
