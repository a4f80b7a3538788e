"""Attention that never crosses rows, for batches laid end to end.

Registered with transformers' attention interface under `NAME`; the model's own forward calls it. Which rows
there are is told by `rows(batch.buckets)` around the forward pass. Without it, in generation, transformers'
own SDPA serves.

    K arms, H heads, N tokens of all rows, B rows of a bucket, L its longest row, C channels of a head
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from lorastudy.engine.batch import Bucket

NAME = "lorastudy_rows"

_buckets: ContextVar[tuple[Bucket, ...]] = ContextVar("buckets")


@contextmanager
def rows(buckets: tuple[Bucket, ...]) -> Iterator[None]:
    """Within, attention knows where rows begin and end."""
    token = _buckets.set(buckets)
    try:
        yield
    finally:
        _buckets.reset(token)


def row_attention(
    module: nn.Module,
    query_KHNC: Tensor,
    key_KHNC: Tensor,
    value_KHNC: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - transformers' signature; there is no mask to apply
    *,
    scaling: float | None = None,
    **unused: Any,  # noqa: ARG001 - dropout (off in the frozen base) and what other back-ends need
) -> tuple[Tensor, None]:
    """Causal attention within each row; returns (arms, tokens, heads, channels) as transformers expects.

    Equal to a block-diagonal causal mask over all N tokens. Models that need more than causality (sliding
    windows shorter than a row, soft caps, biases) are refused by `packed.probe` before training.
    """
    groups = query_KHNC.shape[1] // key_KHNC.shape[1]
    if groups > 1:
        key_KHNC = key_KHNC.repeat_interleave(groups, dim=1)
        value_KHNC = value_KHNC.repeat_interleave(groups, dim=1)
    buckets = _buckets.get()
    sizes = [bucket.num_tokens for bucket in buckets]
    parts = [
        _attend(bucket, qkv, scaling=scaling)
        for bucket, qkv in zip(
            buckets,
            zip(
                query_KHNC.split(sizes, dim=2),
                key_KHNC.split(sizes, dim=2),
                value_KHNC.split(sizes, dim=2),
                strict=True,
            ),
            strict=True,
        )
    ]
    out_KHNC = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out_KHNC.transpose(1, 2).contiguous(), None


def _attend(bucket: Bucket, qkv_KHSC: tuple[Tensor, ...], *, scaling: float | None) -> Tensor:
    """One call for a bucket: arms and heads are the batch, rows take the place of heads."""
    num_arms, num_heads, _, num_channels = qkv_KHSC[0].shape
    num_rows, longest = len(bucket.lengths), bucket.lengths[-1]
    if bucket.padded_BL is not None:
        qkv_KHSC = tuple(x.index_select(2, bucket.padded_BL) for x in qkv_KHSC)
    query, key, value = (x.reshape(num_arms * num_heads, num_rows, longest, -1) for x in qkv_KHSC)
    out = F.scaled_dot_product_attention(query, key, value, is_causal=longest > 1, scale=scaling)
    out_KHSC = out.reshape(num_arms, num_heads, num_rows * longest, num_channels)
    return out_KHSC if bucket.kept is None else out_KHSC.index_select(2, bucket.kept)


AttentionInterface.register(NAME, row_attention)
