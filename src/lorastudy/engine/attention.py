"""Attention that never crosses rows, for batches laid end to end.

`row_attention` is registered with transformers' attention interface under `NAME`, and the model's own forward calls it.
Wrap the forward pass in `rows(batch)`, which sets the bounds of the rows. Generation uses the model's own attention.

    K arms, H heads, N tokens of all rows, S tokens of one row, C channels of a head
    T tokens of all arms, one arm's rows after the other's
    G (arm, head, row) triples, B queries of a block, E keys up to the block's end

On a GPU in half precision `flash_attention` takes all rows of all arms in one call, of any lengths, with fewer heads of
keys than of queries, with values of another size (latent attention), and with a sliding window. Elsewhere rows of one
length are a bucket, and a bucket is one call. If arms have rows of their own, a bucket has the rows of all arms.

On a CPU, long rows use `block_attention`: softmax(scale Q K^T) V, a block of queries at a time, over the keys up to
each query. torch's CPU kernel multiplies small tiles one triple after another. In bf16 that is far slower than the
processor's large products, and much of the work is above the diagonal. `block_attention` multiplies a block of queries
only with the keys up to its end, in products batched over all triples. Nothing of size S x S is kept: the backward pass
recomputes a block's probabilities from Q and K. In half precision the scores are rounded before the softmax, as in
transformers' eager attention; the softmax itself is fp32. `F.scaled_dot_product_attention` is the plain twin.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from lorastudy.engine.batch import Batch, Bucket
from lorastudy.errors import ModelError
from lorastudy.protocol.jobs import attends_in_one_call

NAME = "lorastudy_rows"

#: Arguments by which transformers asks attention for more than causality, in some models.
_MORE_THAN_CAUSAL = ("softcap", "s_aux", "position_bias")

#: Queries per block. Smaller blocks skip more work above the diagonal, but need more and smaller products.
BLOCK = 128

#: The shortest rows that use `block_attention`. Shorter rows gain nothing, and torch's product of very small bf16
#: matrices depends on their number, so that an arm's result would depend on the other arms of its pack.
MIN_LENGTH = 32

#: The largest head of flash attention. Its heads are a multiple of eight channels; others are widened with zeros.
MAX_CHANNELS = 256
_HALF = frozenset({torch.bfloat16, torch.float16})


class UnsupportedModelError(ModelError):
    """The packed engine cannot train this model; the reference engine can."""


@contextmanager
def rows(batch: Batch) -> Iterator[None]:
    """Set the bounds of the rows for attention in this context. Run the backward pass inside too."""
    before = _current.batch, _current.ends
    _current.batch, _current.ends = batch, {}
    try:
        yield
    finally:
        _current.batch, _current.ends = before


class _Current:
    """The current batch, and for each number of arms where every row begins in T and where the last one ends, int32.

    Not a context variable: with activation checkpointing the layers run again in the backward pass, which on CUDA is in
    autograd's own thread. A worker runs one batch at a time.
    """

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self.ends: dict[int, Tensor] = {}
        self.num_calls = 0


_current = _Current()


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

    Equal to a block-diagonal causal mask over all N tokens. transformers makes no mask for this back-end, so any mask
    is the model's own bias. `rest` is not needed: dropout is off in the frozen base, and the other options are for
    other back-ends.

    Raises:
        UnsupportedModelError: the model needs more than causality (soft caps, sinks, biases), or a row is longer
            than its sliding window, which only `flash_attention` has.
    """
    _current.num_calls += 1
    more = [name for name in _MORE_THAN_CAUSAL if rest.get(name) is not None]
    if more or attention_mask is not None:
        raise UnsupportedModelError(f"its attention needs {', '.join(more) or 'a bias of its own'}")
    assert _current.batch is not None
    buckets = _current.batch.buckets
    longest, sliding_window = max(bucket.length for bucket in buckets), rest.get("sliding_window")
    if takes_all_rows(query_KHNC, value_KHNC):
        window = sliding_window if sliding_window is not None and longest > sliding_window else None
        return _in_one_call(
            (query_KHNC, key_KHNC, value_KHNC), longest=longest, scaling=scaling, window=window
        ), None
    if sliding_window is not None and longest > sliding_window:
        raise UnsupportedModelError(
            f"rows of {longest} tokens exceed this model's sliding window of {sliding_window}, which the packed "
            "engine does not have"
        )
    if _current.batch.layout is not None:
        return _of_all_arms((query_KHNC, key_KHNC, value_KHNC), batch=_current.batch, scaling=scaling), None
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


def _in_one_call(
    qkv_KHNC: Sequence[Tensor], *, longest: int, scaling: float | None, window: int | None
) -> Tensor:
    """The attention of all arms and rows, (K, N, H, C)."""
    num_arms, _, num_tokens, channels = qkv_KHNC[0].shape
    value_channels = qkv_KHNC[2].shape[-1]
    size = -(-max(channels, value_channels) // 8) * 8
    query, key, value = (_widened(x.transpose(1, 2).flatten(0, 1), size=size) for x in qkv_KHNC)
    out_THC = flash_attention(
        (query, key, value),
        ends=_ends(num_arms, num_tokens=num_tokens),
        longest=longest,
        scale=channels**-0.5 if scaling is None else scaling,
        window=window,
    )
    out_KNHC = out_THC.view(num_arms, num_tokens, *out_THC.shape[1:])
    return out_KNHC if size == value_channels else out_KNHC[..., :value_channels].contiguous()


def _widened(x_THC: Tensor, *, size: int) -> Tensor:
    """The tensor with zeros as further channels: they change no product of queries and keys, and give zeros as values."""
    return x_THC if x_THC.shape[-1] == size else F.pad(x_THC, (0, size - x_THC.shape[-1]))


def _ends(num_arms: int, *, num_tokens: int) -> Tensor:
    """`_Current.ends` for that many arms. Made once a batch, on the device."""
    if num_arms not in _current.ends:
        assert _current.batch is not None
        starts_B = _current.batch.row_starts_B
        firsts_K = torch.arange(0, num_arms * num_tokens, num_tokens, device=starts_B.device)
        starts = (firsts_K[:, None] + starts_B).flatten()
        end = starts.new_full((1,), num_arms * num_tokens)
        _current.ends[num_arms] = torch.cat([starts, end]).int()
    return _current.ends[num_arms]


def _of_all_arms(qkv_1HTC: Sequence[Tensor], *, batch: Batch, scaling: float | None) -> Tensor:
    """The attention of arms with rows of their own, (1, T, H, C). A bucket has the rows of one length of all arms."""
    assert batch.layout is not None
    order_T, inverse_T = batch.layout.order_T, batch.layout.inverse_T
    query, key, value = (
        _reordered(x.transpose(1, 2).flatten(0, 1), order_T, inverse_T=inverse_T) for x in qkv_1HTC
    )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    sizes = [bucket.num_tokens for bucket in batch.buckets]
    split_q, split_k, split_v = (torch.split(x, sizes) for x in (query, key, value))
    parts = [
        _attend_rows(bucket, qkv, scaling=scaling)
        for bucket, *qkv in zip(batch.buckets, split_q, split_k, split_v, strict=True)
    ]
    out_THC = parts[0] if len(parts) == 1 else torch.cat(parts)
    return _reordered(out_THC, inverse_T, inverse_T=order_T).unsqueeze(0)


def _attend_rows(bucket: Bucket, qkv_THC: Sequence[Tensor], *, scaling: float | None) -> Tensor:
    """The attention of a bucket in one call. Rows form the batch."""
    shape = (bucket.num_rows, bucket.length)
    query, key, value = (x.view(*shape, *x.shape[1:]).transpose(1, 2) for x in qkv_THC)
    if serves(query):
        scale = scaling or query.shape[-1] ** -0.5
        out = block_attention(*(x.flatten(0, 1) for x in (query, key, value)), scale=scale)
        out = out.view(*query.shape[:3], -1)
    else:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=bucket.length > 1, scale=scaling)
    return out.transpose(1, 2).flatten(0, 1)


def _reordered(x_THC: Tensor, order_T: Tensor, *, inverse_T: Tensor) -> Tensor:
    """The tokens in this order."""
    y_THC: Tensor = _Reordered.apply(x_THC, order_T, inverse_T)  # type: ignore[no-untyped-call]  # torch
    return y_THC


class _Reordered(torch.autograd.Function):
    """The gradient takes the inverse order, which is faster than adding at places."""

    @staticmethod
    def forward(ctx: Any, x_THC: Tensor, order_T: Tensor, inverse_T: Tensor) -> Tensor:
        ctx.inverse_T = inverse_T
        return x_THC.index_select(0, order_T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].index_select(0, ctx.inverse_T), None, None


def _attend(bucket: Bucket, qkv_KHSC: Sequence[Tensor], *, scaling: float | None) -> Tensor:
    """The attention of a bucket in one call. Arms and heads form the batch, and rows take the place of heads."""
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


def takes_all_rows(query: Tensor, value: Tensor) -> bool:
    """Whether `flash_attention` serves these tensors."""
    return takes_all_rows_on(query, value, device_kind=query.device.type) and _has_flash_attention(
        query.device
    )


def has_windows(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether rows may be longer than a layer's sliding window on this device, in this precision."""
    return attends_in_one_call(device.type, is_half=dtype in _HALF) and _has_flash_attention(device)


@cache
def _has_flash_attention(device: torch.device) -> bool:
    """Whether this build of torch and this device have the kernel. ROCm calls its devices cuda too."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def takes_all_rows_on(query: Tensor, value: Tensor, *, device_kind: str) -> bool:
    """As `takes_all_rows`, on a device of that kind that has the kernel."""
    return (
        attends_in_one_call(device_kind, is_half=query.dtype in _HALF)
        and max(query.shape[-1], value.shape[-1]) <= MAX_CHANNELS
    )


def flash_attention(
    qkv_THC: Sequence[Tensor], *, ends: Tensor, longest: int, scale: float, window: int | None
) -> Tensor:
    """Causal attention of rows laid end to end, (T, H, C), in one kernel for any number of rows.

    `ends` are the first tokens of the rows and the end of the last one. Keys and values may have fewer heads than
    queries. With `window` a token sees that many tokens, itself included. torch's `varlen_attn` calls the same kernel;
    it writes a tensor more in each call, and its arguments differ between torch 2.11 and 2.13.
    """
    out_THC: Tensor = _FlashAttention.apply(*qkv_THC, ends, longest, scale, window)  # type: ignore[no-untyped-call]  # torch
    return out_THC


class _FlashAttention(torch.autograd.Function):
    """torch's flash attention, forward and backward. It keeps the output and one number per query and head."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, key, value, ends, longest, scale, window = inputs
        ctx.options = {
            "cum_seq_q": ends,
            "cum_seq_k": ends,
            "max_q": longest,
            "max_k": longest,
            "dropout_p": 0.0,
            "is_causal": True,
            "scale": scale,
            "window_size_left": None if window is None else window - 1,
        }
        out: Tensor
        out, log_sums, rng_state, unused, _ = _flash_forward(
            query, key, value, return_debug_mask=False, **ctx.options
        )
        ctx.save_for_backward(query, key, value, out, log_sums, rng_state, unused)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *saved, rng_state, unused = ctx.saved_tensors
        dq, dk, dv = _flash_backward(
            grads[0].contiguous(), *saved, rng_state=rng_state, unused=unused, **ctx.options
        )
        return dq, dk, dv, None, None, None, None


_flash_forward: Any = torch.ops.aten._flash_attention_forward
_flash_backward: Any = torch.ops.aten._flash_attention_backward


class Calls:
    """The number of calls of the packed attention."""

    number = 0


@contextmanager
def counted() -> Iterator[Calls]:
    """Count the calls of the packed attention within the block; read `number` after it."""
    calls, before = Calls(), _current.num_calls
    yield calls
    calls.number = _current.num_calls - before


def serves(query: Tensor) -> bool:
    """Whether `block_attention` is faster than torch's kernel: long rows on a CPU. fp16 scores would overflow."""
    return serves_on(query, device_kind=query.device.type)


def serves_on(query: Tensor, *, device_kind: str) -> bool:
    """As `serves`, on a device of that kind."""
    return (
        device_kind == "cpu"
        and query.dtype in {torch.float32, torch.bfloat16}
        and query.shape[-2] >= MIN_LENGTH
    )


def block_attention(query_GSC: Tensor, key_GSC: Tensor, value_GSC: Tensor, *, scale: float) -> Tensor:
    """For each query, the softmax-weighted mean of the values up to its own position; (G, S, C)."""
    out_GSC: Tensor = _BlockAttention.apply(query_GSC, key_GSC, value_GSC, scale)  # type: ignore[no-untyped-call]  # torch
    return out_GSC


class _BlockAttention(torch.autograd.Function):
    """O = P V and its derivatives, with P = softmax(Q K^T). Q includes the scale.

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
        # The last block first: it uses every key, so the other blocks add into its dK and dV.
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
    """The first query of each block and of the next one. Blocks are as even as possible."""
    count = -(-length // BLOCK)
    return [(length * number // count, length * (number + 1) // count) for number in range(count)]


def _probabilities(q_GBC: Tensor, k_GEC: Tensor) -> Tensor:
    """The softmax over the keys for the B queries of a block, which are at the last B key positions; (G, B, E)."""
    size = q_GBC.shape[1]
    scores_GBE = torch.bmm(q_GBC, k_GEC.mT)
    scores_GBE[:, :, -size:] += q_GBC.new_full((size, size), -torch.inf).triu_(diagonal=1)
    return torch.softmax(scores_GBE, dim=-1)


def _added(total_GSC: Tensor | None, part_GEC: Tensor) -> Tensor:
    """Add a part to the first positions of the total, or begin the total with it."""
    if total_GSC is None:
        return part_GEC
    total_GSC[:, : part_GEC.shape[1]] += part_GEC
    return total_GSC


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


AttentionInterface.register(NAME, row_attention)
