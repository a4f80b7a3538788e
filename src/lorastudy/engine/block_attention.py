"""Causal attention a block of queries at a time: softmax(scale Q K^T) V over the keys up to each query.

    G (arm, head, row) triples, S tokens of a row, C channels of a head, B queries of a block, E keys up to its end

For a CPU. torch's kernel there multiplies small tiles one triple after another, in bf16 far below what the processor's
products give, and does much of the work above the diagonal. Here a block of queries meets only the keys up to its
end, in products batched over all triples. Nothing of size S x S is kept: the backward pass forms a block's
probabilities again from the kept Q and K.

In half precision the scores are rounded before the softmax, as in transformers' eager attention; the softmax itself
is computed in fp32. `F.scaled_dot_product_attention` is the plain twin.
"""

from typing import Any

import torch
from torch import Tensor

#: Queries of a block. Smaller blocks skip more above the diagonal, and make more and smaller products.
BLOCK = 128


#: Rows from which it is used. Shorter ones gain nothing, and torch multiplies very small bf16 matrices in one way or
#: another depending on how many there are, so that an arm would feel its company.
MIN_LENGTH = 32


def serves(query: Tensor) -> bool:
    """Whether it is faster than torch's own attention here: long rows on a CPU, and no scores that fp16 cannot hold."""
    return (
        query.device.type == "cpu"
        and query.dtype in {torch.float32, torch.bfloat16}
        and query.shape[-2] >= MIN_LENGTH
    )


def block_attention(query_GSC: Tensor, key_GSC: Tensor, value_GSC: Tensor, *, scale: float) -> Tensor:
    """For each query the mean of the values up to its own place, weighted by softmax; (G, S, C)."""
    out_GSC: Tensor = _BlockAttention.apply(query_GSC, key_GSC, value_GSC, scale)  # type: ignore[no-untyped-call]  # torch
    return out_GSC


class _BlockAttention(torch.autograd.Function):
    """The derivatives of O = P V with P = softmax(Q K^T), the scale being part of Q.

    dV = P^T dO,    dS = softmax'(P, dO V^T),    dQ = dS K,    dK = dS^T Q
    """

    @staticmethod
    def forward(ctx: Any, q_GSC: Tensor, k_GSC: Tensor, v_GSC: Tensor, scale: float) -> Tensor:
        scaled_q_GSC = q_GSC * scale
        ctx.save_for_backward(scaled_q_GSC, k_GSC, v_GSC)
        ctx.scale = scale
        parts = [
            torch.bmm(_probabilities(scaled_q_GSC[:, start:stop], k_GSC[:, :stop]), v_GSC[:, :stop])
            for start, stop in _blocks(q_GSC.shape[1])
        ]
        return _joined(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dout_GSC,) = grads
        q_GSC, k_GSC, v_GSC = ctx.saved_tensors
        dq_parts, dk_GSC, dv_GSC = [], None, None
        # The last block first: it meets every key, so its part of dK and dV is where the others are added.
        for start, stop in reversed(_blocks(q_GSC.shape[1])):
            q_GBC, dout_GBC, k_GEC = q_GSC[:, start:stop], dout_GSC[:, start:stop], k_GSC[:, :stop]
            p_GBE = _probabilities(q_GBC, k_GEC)
            dp_GBE = torch.bmm(dout_GBC, v_GSC[:, :stop].mT)
            ds_GBE = torch._softmax_backward_data(dp_GBE, p_GBE, -1, p_GBE.dtype)
            dq_parts.append(torch.bmm(ds_GBE, k_GEC))
            dk_GSC = _added(dk_GSC, torch.bmm(ds_GBE.mT, q_GBC))
            dv_GSC = _added(dv_GSC, torch.bmm(p_GBE.mT, dout_GBC))
        return _joined(dq_parts[::-1]).mul_(ctx.scale), dk_GSC, dv_GSC, None


def _blocks(length: int) -> list[tuple[int, int]]:
    """First query of each block and of the next, blocks as even as can be."""
    count = -(-length // BLOCK)
    return [(length * number // count, length * (number + 1) // count) for number in range(count)]


def _probabilities(q_GBC: Tensor, k_GEC: Tensor) -> Tensor:
    """Softmax over the keys of a block's queries, which are the last of these keys; (G, B, E)."""
    size = q_GBC.shape[1]
    scores_GBE = torch.bmm(q_GBC, k_GEC.mT)
    scores_GBE[:, :, -size:] += q_GBC.new_full((size, size), -torch.inf).triu_(diagonal=1)
    return torch.softmax(scores_GBE, dim=-1)


def _added(total_GSC: Tensor | None, part_GEC: Tensor) -> Tensor:
    """The part added to the first of the total's places; alone where there is no total yet."""
    if total_GSC is None:
        return part_GEC
    total_GSC[:, : part_GEC.shape[1]] += part_GEC
    return total_GSC


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
