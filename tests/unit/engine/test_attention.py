import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import tiny
from lorastudy.engine.attention import UnsupportedModelError, row_attention, rows
from lorastudy.engine.batch import assemble

pytestmark = pytest.mark.usefixtures("one_thread")


def block_diagonal(lengths):
    """True where a token may look: causally, within its own row."""
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(row))
    return (row[:, None] == row[None, :]) & (place[:, None] >= place[None, :])


def batch_of(lengths):
    return assemble([tiny.make_row([2] * length, prompt_tokens=1) for length in lengths], device=tiny.CPU)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(1, 3), st.sampled_from([1, 2, 4]),
    st.sampled_from([None, 0.3]),
)  # fmt: skip
def test_equals_a_block_diagonal_mask_with_gradients(lengths, num_arms, num_key_heads, scaling):
    batch, num_tokens = batch_of(lengths), sum(lengths)
    inputs = [
        draw(num_arms, heads, num_tokens, 8, seed=seed).requires_grad_()
        for seed, heads in enumerate((4, num_key_heads, num_key_heads))
    ]
    with rows(batch.buckets):
        out, weights = row_attention(nn.Identity(), *inputs, None, scaling=scaling)
    assert weights is None
    grads = torch.autograd.grad(out, inputs, draw(*out.shape, seed=9))

    query, key, value = inputs
    groups = 4 // num_key_heads
    expected = F.scaled_dot_product_attention(
        query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1),
        attn_mask=block_diagonal(sorted(lengths)), scale=scaling,
    ).transpose(1, 2)  # fmt: skip
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(
        grads, torch.autograd.grad(expected, inputs, draw(*out.shape, seed=9)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_long_rows_equal_a_block_diagonal_mask_too():
    """Long rows take another path on a CPU (`block_attention`), short ones beside them do not."""
    lengths = [40, 5, 40, 300]
    batch, num_tokens = batch_of(lengths), sum(lengths)
    query, key, value = (draw(2, 4, num_tokens, 8, seed=seed).requires_grad_() for seed in range(3))
    with rows(batch.buckets):
        out, _ = row_attention(nn.Identity(), query, key, value, None)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=block_diagonal(sorted(lengths)))
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)
    dout = draw(*out.shape, seed=9)
    for mine, theirs in zip(
        torch.autograd.grad(out, (query, key, value), dout),
        torch.autograd.grad(expected.transpose(1, 2), (query, key, value), dout),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_values_may_have_other_channels_than_queries():
    batch = batch_of([3, 5, 5])
    query, key, value = draw(2, 4, 13, 8), draw(2, 4, 13, 8, seed=1), draw(2, 4, 13, 6, seed=2)
    with rows(batch.buckets):
        out, _ = row_attention(nn.Identity(), query, key, value, None)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=block_diagonal([3, 5, 5]))
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "more", [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}, {"position_bias": torch.zeros(1)}]
)
def test_more_than_causality_is_refused(more):
    x = draw(1, 4, 5, 8)
    with rows(batch_of([5]).buckets), pytest.raises(UnsupportedModelError, match=next(iter(more))):
        row_attention(nn.Identity(), x, x, x, None, **more)


def test_a_bias_of_the_models_own_is_refused():
    x = draw(1, 4, 5, 8)
    with rows(batch_of([5]).buckets), pytest.raises(UnsupportedModelError, match="bias"):
        row_attention(nn.Identity(), x, x, x, torch.zeros(5, 5))


def test_rows_must_fit_the_sliding_window():
    x = draw(1, 4, 5, 8)
    with rows(batch_of([5]).buckets):
        row_attention(nn.Identity(), x, x, x, None, sliding_window=5)
        with pytest.raises(UnsupportedModelError, match="5 tokens exceed this model's sliding window of 4"):
            row_attention(nn.Identity(), x, x, x, None, sliding_window=4)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_models_own_forward_sees_no_other_row(architecture):
    """Row by row through transformers' SDPA, against all rows at once through ours."""
    base = tiny.make_base(architecture)
    token_rows = tiny.make_rows(5, seed=4)
    batch = assemble(token_rows, device=tiny.CPU)
    with torch.no_grad():
        alone = [base.model(torch.tensor([row.input_ids])).logits[0] for row in token_rows]
        base.model.set_attn_implementation("lorastudy_rows")
        with rows(batch.buckets):
            together = base.model(
                input_ids=batch.input_ids_N[None], position_ids=batch.position_ids_N[None], use_cache=False
            ).logits[0]
    order = sorted(range(5), key=lambda number: len(token_rows[number].input_ids))
    torch.testing.assert_close(together, torch.cat([alone[number] for number in order]), rtol=1e-4, atol=1e-4)
