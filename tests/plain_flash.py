"""Torch's flash attention as a plain loop over rows, which runs on a CPU: the twin of a kernel that has no CPU version."""

import itertools

import torch
from torch.nn import functional as F

from lorastudy.engine import attention


def take_its_place(monkeypatch):
    """Have `flash_attention` call the twin."""
    monkeypatch.setattr(attention, "_flash_forward", flash_forward)
    monkeypatch.setattr(attention, "_flash_backward", flash_backward)


def attended(query, key, value, *, cum_seq_q, cum_seq_k, window_size_left, scale, **rest):
    """What torch's kernel promises of its first result, row by row."""
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0
    assert torch.equal(cum_seq_q, cum_seq_k)
    assert cum_seq_q.dtype is torch.int32
    assert rest == {
        "max_q": (cum_seq_q[1:] - cum_seq_q[:-1]).max(), "max_k": rest["max_q"], "dropout_p": 0.0, "is_causal": True
    }  # fmt: skip
    groups = query.shape[1] // key.shape[1]
    parts = []
    for start, stop in itertools.pairwise(cum_seq_q.tolist()):
        q, k, v = (x[start:stop].transpose(0, 1)[None] for x in (query, key, value))
        near = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
        if window_size_left is not None:
            near = near.triu(-window_size_left)
        k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=near, scale=scale)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def flash_forward(*qkv, return_debug_mask, **options):
    assert not return_debug_mask
    return (attended(*qkv, **options), *(torch.zeros(2) for _ in range(4)))


def flash_backward(dout, query, key, value, *_, **options):
    for name in ("rng_state", "unused"):
        options.pop(name)
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (query, key, value)]
        return torch.autograd.grad(attended(*inputs, **options), inputs, dout)
