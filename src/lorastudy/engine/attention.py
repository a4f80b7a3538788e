"""Attention that never crosses rows, for batches laid end to end.

Registered with transformers' attention interface under `NAME`; the model's own forward calls it. Which rows
there are is told by `rows(batch.buckets)` around the forward pass. In generation the model's own attention
serves.

    K arms, H heads, N tokens of all rows, S tokens of a bucket's rows, C channels of a head
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from lorastudy.engine.batch import Bucket
from lorastudy.engine.block_attention import block_attention, serves
from lorastudy.errors import ModelError

NAME = "lorastudy_rows"

#: What other models ask of attention beyond causality, by the names that transformers passes it under.
_MORE_THAN_CAUSAL = ("softcap", "s_aux", "position_bias")


class UnsupportedModelError(ModelError):
    """The packed engine cannot train this model; the reference engine can."""


class _Current:
    """The rows that are being run.

    Not a context variable: recomputed activations run the layers again in the backward pass, which on CUDA
    happens in a thread of autograd's own. A worker runs one batch at a time.
    """

    buckets: tuple[Bucket, ...] = ()
    num_calls = 0


_current = _Current()


class Calls:
    """How often a model's layers attended."""

    number = 0


@contextmanager
def counted() -> Iterator[Calls]:
    """Within, calls of the packed attention are counted; their number is there afterwards."""
    calls, before = Calls(), _current.num_calls
    yield calls
    calls.number = _current.num_calls - before


@contextmanager
def rows(buckets: tuple[Bucket, ...]) -> Iterator[None]:
    """Within, attention knows where rows begin and end. Activations are recomputed within, too."""
    before, _current.buckets = _current.buckets, buckets
    try:
        yield
    finally:
        _current.buckets = before


def row_attention(
    module: nn.Module,  # noqa: ARG001 - transformers' signature
    query_KHNC: Tensor,
    key_KHNC: Tensor,
    value_KHNC: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row; returns (arms, tokens, heads, channels) as transformers expects.

    Equal to a block-diagonal causal mask over all N tokens. transformers makes no mask for this back-end, so
    one that comes anyway is the model's own bias.

    Of `rest`, dropout is off in the frozen base, and what other back-ends need is not used.

    Raises:
        UnsupportedModelError: the model needs more than causality (soft caps, sinks, biases), or a row is longer
            than its sliding window.
    """
    _current.num_calls += 1
    more = [name for name in _MORE_THAN_CAUSAL if rest.get(name) is not None]
    if more or attention_mask is not None:
        raise UnsupportedModelError(f"its attention needs {', '.join(more) or 'a bias of its own'}")
    buckets = _current.buckets
    longest, sliding_window = max(bucket.length for bucket in buckets), rest.get("sliding_window")
    if sliding_window is not None and longest > sliding_window:
        raise UnsupportedModelError(
            f"rows of {longest} tokens exceed this model's sliding window of {sliding_window}, which the packed "
            "engine does not have"
        )
    groups = query_KHNC.shape[1] // key_KHNC.shape[1]
    if groups > 1:
        key_KHNC = key_KHNC.repeat_interleave(groups, dim=1)
        value_KHNC = value_KHNC.repeat_interleave(groups, dim=1)
    sizes = [bucket.num_tokens for bucket in buckets]
    split_q, split_k, split_v = (torch.split(x, sizes, dim=2) for x in (query_KHNC, key_KHNC, value_KHNC))
    parts = [
        _attend(bucket, qkv, scaling=scaling)
        for bucket, *qkv in zip(buckets, split_q, split_k, split_v, strict=True)
    ]
    out_KHNC = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out_KHNC.transpose(1, 2).contiguous(), None


def _attend(bucket: Bucket, qkv_KHSC: Sequence[Tensor], *, scaling: float | None) -> Tensor:
    """One call for a bucket: arms and heads are the batch, rows take the place of heads."""
    num_arms, num_heads = qkv_KHSC[0].shape[:2]
    query, key, value = (
        x.reshape(num_arms * num_heads, bucket.num_rows, bucket.length, -1) for x in qkv_KHSC
    )
    if serves(query):
        out = block_attention(
            *(x.flatten(0, 1) for x in (query, key, value)), scale=scaling or query.shape[-1] ** -0.5
        )
    else:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=bucket.length > 1, scale=scaling)
    return out.reshape(num_arms, num_heads, bucket.num_tokens, -1)


AttentionInterface.register(NAME, row_attention)
