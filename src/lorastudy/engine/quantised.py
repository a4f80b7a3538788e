"""Frozen linear layers of every precision, and an optimizer. The only file that imports bitsandbytes.

The packed layer needs two things from a frozen layer: its output for all arms, and its weight for the derivative. For
bitsandbytes layers both are computed so that arms do not affect each other and evaluation does not affect training.

bitsandbytes is imported only when a layer is built with it. The import takes a second, which a study in plain precision
does not need.
"""

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from lorastudy.engine.matmul import linear

#: Subclasses of `nn.Linear` that override `forward` with the same product.
_SAME_PRODUCT = frozenset({"FalconLinear", "Linear4bit", "Linear8bitLt"})


def quantization_config(
    quantization: str, *, quant_type: str, double_quant: bool
) -> BitsAndBytesConfig | None:
    """The argument of `from_pretrained` for `4bit` and `8bit`; None for a plain precision."""
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

    On CPUs with AVX512-BF16 the first no-grad forward of a `Linear4bit` repacks its weight for inference; a later
    training forward then misreads the packed bytes, and gradients are wrong or zero without an error. This switch, set
    on every layer, turns the repacking off.
    """
    module: Any
    for module in model.modules():
        if is_4bit(module):
            module.support_avx512bf16_for_cpu = False


def feels_other_rows(layer: nn.Module) -> bool:
    """Whether a row's output depends on the other rows: LLM.int8() picks outlier columns over all of them."""
    return _is_of(layer, "Linear8bitLt")


def depends_on_rows(layer: nn.Module) -> bool:
    """Whether bitsandbytes' own product depends on the number of rows, and so a number of an arm on its pack.

    A `Linear8bitLt` mixes rows (`feels_other_rows`). A `Linear4bit` without gradients has one kernel for few rows and
    another for many. `frozen_output` dequantises the weight instead, always.
    """
    return is_4bit(layer) or feels_other_rows(layer)


def frozen_output(layer: Any, x: Tensor, *, num_arms: int, sizes_K: Sequence[int] | None = None) -> Tensor:
    """W x + b for all arms. 4-bit weights are dequantised once for all; 8-bit layers run arm by arm.

    `sizes_K` are the tokens of each arm, (..., T, D), if arms have rows of their own.
    """
    if is_4bit(layer):
        bias = layer.bias.to(x.dtype) if layer.bias is not None else None
        return linear(x, frozen_weight_OD(layer, dtype=x.dtype), bias_O=bias)
    if feels_other_rows(layer):
        if sizes_K is not None:
            own = torch.split(x, [size for size in sizes_K if size], dim=-2)
            return torch.cat([layer(x_k) for x_k in own], dim=-2)
        return torch.cat([layer(x_k) for x_k in x.chunk(num_arms)])
    bias_O: Any = layer.bias
    return linear(x, frozen_weight_OD(layer, dtype=x.dtype), bias_O=bias_O)


def frozen_weight_OD(layer: Any, *, dtype: torch.dtype) -> Tensor:
    """The layer's weight as (outputs, inputs), dequantised where it is quantised."""
    weight: Any = layer.weight
    if is_4bit(layer):
        weight_OD: Tensor = _bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)
        return weight_OD.to(dtype)
    if feels_other_rows(layer):
        state: Any = layer.state if layer.state.CB is not None else weight
        codes_OD: Tensor = state.CB.to(dtype)
        return codes_OD.mul_((state.SCB / 127.0).unsqueeze(1))  # the scale in fp32, as in bitsandbytes
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(layer, Conv1D) else weight


def computes_linearly(layer: nn.Module) -> bool:
    """Whether a layer's output is its input times one matrix, plus a bias. GPT-2's Conv1D is one, transposed.

    A subclass of `nn.Linear` may do more: routers return tuples, and a grouped layer multiplies by parts of its weight.
    """
    if isinstance(layer, Conv1D):
        return True
    kind = type(layer)
    return isinstance(layer, nn.Linear) and (
        kind.forward is nn.Linear.forward or kind.__name__ in _SAME_PRODUCT
    )


def compute_dtype(layer: nn.Module, *, dtype: torch.dtype) -> torch.dtype:
    """The precision in which a layer computes: its weight's, or `dtype` if the weight is quantised."""
    weight: Any = layer.weight
    own: torch.dtype = weight.dtype
    return own if own.is_floating_point else dtype


def features(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer, as PEFT counts them."""
    if isinstance(layer, Conv1D):
        num_inputs, num_outputs = layer.weight.shape
        return int(num_inputs), int(num_outputs)
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def fake_quantised(
    linear: nn.Module, quantization: str, *, quant_type: str, double_quant: bool
) -> nn.Module:  # fmt: skip
    """A bitsandbytes layer of the same shape for counting memory: its tensors have the right sizes and no content.

    They are on the device of the given layer, which is one of fake tensors. 4-bit: two weights per byte. A block of 64 weights has one fp32 constant; with
    double quantization it has one byte, and a block of 256 such bytes has one fp32. 8-bit: one byte per weight and one
    fp32 per output. The threshold is 0, since outlier columns depend on content.
    """
    inputs, outputs = features(linear)
    double = {"compress_statistics": double_quant, "quant_type": quant_type}
    with unset_fake_temporarily():  # bitsandbytes' parameter class cannot be faked
        layer: nn.Module = (
            _bitsandbytes().nn.Linear4bit(1, 1, bias=False, compute_dtype=torch.bfloat16, **double)
            if quantization == "4bit"
            else _bitsandbytes().nn.Linear8bitLt(1, 1, bias=False, has_fp16_weights=False, threshold=0.0)
        )
    layer.__dict__.update(in_features=inputs, out_features=outputs)
    given: Any = linear.weight
    weight: Any
    with given.device:
        if quantization == "4bit":
            weight = nn.Parameter(
                torch.empty(-(-inputs * outputs // 2), 1, dtype=torch.uint8), requires_grad=False
            )
            weight.quant_state = _fake_quant_state(
                (outputs, inputs), quant_type=quant_type, double_quant=double_quant
            )
        else:
            weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.int8), requires_grad=False)
            weight.CB, weight.SCB = weight.data, torch.empty(outputs)
    layer.weight = weight
    bias: Any = getattr(linear, "bias", None)
    layer.bias = bias
    return layer


def tensors_of(layer: Any) -> list[Tensor]:
    """Every tensor of a layer, quantisation constants included, which are neither parameters nor buffers."""
    own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
    weight = getattr(layer, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        inner = [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
        own += [state.absmax, state.code, *inner]
    if feels_other_rows(layer):
        own += [
            tensor
            for tensor in (getattr(weight, "SCB", None), layer.state.SCB, layer.state.CB)
            if tensor is not None
        ]
    return own


def is_4bit(layer: nn.Module) -> bool:
    """Whether bitsandbytes holds the layer's weight in 4 bits."""
    return _is_of(layer, "Linear4bit")


def _is_of(layer: nn.Module, kind: str) -> bool:
    """Whether a layer is of that bitsandbytes class. False if bitsandbytes was never imported."""
    own: Any = type(layer)
    return _is_subclass(own, kind)


@cache
def _is_subclass(own: type, kind: str) -> bool:
    """Each layer asks this several times a step. No answer changes: a class exists only once its library is there."""
    library: Any = sys.modules.get("bitsandbytes")
    return library is not None and issubclass(own, getattr(library.nn, kind))


def adamw_of_bitsandbytes() -> Any:
    """The class that transformers' Trainer takes for `adamw_8bit` and `paged_adamw_8bit`."""
    return _bitsandbytes().optim.AdamW


def _bitsandbytes() -> Any:
    import bitsandbytes

    return bitsandbytes


def _fake_quant_state(shape: tuple[int, int], *, quant_type: str, double_quant: bool) -> Any:
    num_blocks = -(-shape[0] * shape[1] // 64)
    inner = (
        _bitsandbytes().functional.QuantState(
            absmax=torch.empty(-(-num_blocks // 256)),
            code=torch.empty(256),
            blocksize=256,
            dtype=torch.float32,
        )
        if double_quant
        else None
    )
    return _bitsandbytes().functional.QuantState(
        absmax=torch.empty(num_blocks, dtype=torch.uint8 if double_quant else torch.float32),
        shape=torch.Size(shape),
        code=torch.empty(16),
        blocksize=64,
        quant_type=quant_type,
        dtype=torch.bfloat16,
        offset=torch.empty(()) if double_quant else None,
        state2=inner,
    )
