"""Products with a weight, by the faster of two libraries. The products have no gradient.

For fp32 on a CPU torch calls MKL, which uses only half of the vector width on processors not made by Intel. oneDNN,
which torch includes and uses for bf16, uses all of it. On Intel's processors MKL is faster: a step takes a tenth less
time (docs/log.md). Both sum in fp32, so they differ only by rounding. The choice depends on processor, precision and
shape, never on a timing, so that the same run gives the same bits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorastudy.engine.environment import device_name

#: oneDNN's linear layer, as torch's compiler calls it; None if MKL is faster, or torch was built without oneDNN.
_ONEDNN_LINEAR: Any = (
    None
    if "Intel" in device_name(torch.device("cpu"))
    else getattr(torch.ops.mkldnn, "_linear_pointwise", None)
)

#: The multiply-adds per arm from which one oneDNN call per arm is faster than one batched call of torch.
_MIN_SIZE_ALONE = 1 << 21


def is_replaced(*, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `linear` uses another library than torch's own linear layer."""
    return device.type == "cpu" and dtype is torch.float32 and _ONEDNN_LINEAR is not None


def linear(x: Tensor, weight_OD: Tensor, *, bias_O: Tensor | None = None) -> Tensor:
    """`x W^T + b` over the last dimension: (..., D) -> (..., O). The weight may be a transposed view."""
    if not is_replaced(device=x.device, dtype=x.dtype):
        return F.linear(x, weight_OD, bias_O)
    y: Tensor = _ONEDNN_LINEAR(x, weight_OD, bias_O, "none", [], "")
    return y


def arm_linear(x_GND: Tensor, weight_GOD: Tensor) -> Tensor:
    """`x_g W_g^T` for each arm of a group: (G, N, D) -> (G, N, O). An arm alone may lack the first dimension."""
    num_inputs = x_GND.shape[-1]
    size = x_GND.shape[-2] * num_inputs * weight_GOD.shape[-2]
    is_alone = x_GND.dim() == 2
    if size < _MIN_SIZE_ALONE or not is_replaced(device=x_GND.device, dtype=x_GND.dtype):
        return (torch.mm if is_alone else torch.bmm)(x_GND, weight_GOD.mT)
    if is_alone:
        return linear(x_GND, weight_GOD)
    return torch.stack([linear(x_ND, weight_OD) for x_ND, weight_OD in zip(x_GND, weight_GOD, strict=True)])


def add_product(total_GIJ: Tensor, x_GIN: Tensor, *, times: Tensor) -> None:
    """Add `x_g y_g`, with y = `times` of shape (G, N, J), to an fp32 total, in place, for each arm of a slot.

    In half precision only CUDA's product keeps its fp32 sums; on a CPU they are rounded before they are added. An arm
    alone may lack the first dimension.
    """
    is_alone = total_GIJ.dim() == 2
    if x_GIN.dtype is total_GIJ.dtype:
        (total_GIJ.addmm_ if is_alone else total_GIJ.baddbmm_)(x_GIN, times)
    elif keeps_fp32_sums(total_GIJ.device):
        assert not is_alone, "on a GPU arms are padded"
        # Right only because `out` is the total itself: some versions of torch add to `out` and ignore the first tensor.
        torch.baddbmm(total_GIJ, x_GIN, times, out_dtype=torch.float32, out=total_GIJ)
    else:
        total_GIJ.add_(torch.matmul(x_GIN, times))


def keeps_fp32_sums(device: torch.device) -> bool:
    """Whether a product of half-precision matrices can return fp32."""
    return device.type == "cuda" and torch.version.hip is None
