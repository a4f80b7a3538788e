"""The packed linear layer as an obvious loop.

    y_k = W x_k + b + s_k B_k A_k x_k        for arms k = 1..K

    K arms, N tokens, D inputs, O outputs, R rank

`lora.PackedLinear` is tested against it; nothing else uses it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ArmWeights:
    """One arm's adapter in one layer. Dropout multiplies the adapter's input by `mask_ND`."""

    lora_A_RD: Tensor
    lora_B_OR: Tensor
    scaling: float
    mask_ND: Tensor | None = None


def packed_linear(
    x_KND: Tensor, *, weight_OD: Tensor, bias_O: Tensor | None, arms: Sequence[ArmWeights | None]
) -> Tensor:
    """Outputs of all arms, (K, N, O). None is an arm that does not adapt this layer. Gradients are autograd's."""
    outputs = []
    for x_ND, arm in zip(x_KND, arms, strict=True):
        y_NO = x_ND @ weight_OD.T
        if bias_O is not None:
            y_NO = y_NO + bias_O
        if arm is not None:
            dropped_ND = x_ND if arm.mask_ND is None else x_ND * arm.mask_ND
            y_NO = y_NO + arm.scaling * (dropped_ND @ arm.lora_A_RD.T @ arm.lora_B_OR.T)
        outputs.append(y_NO)
    return torch.stack(outputs)
