from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import plain_flash
import tiny
from lorastudy.engine import attention
from lorastudy.engine.attention import UnsupportedModelError, row_attention, rows, takes_all_rows_on
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
    with rows(batch):
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
    with rows(batch):
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
    with rows(batch):
        out, _ = row_attention(nn.Identity(), query, key, value, None)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=block_diagonal([3, 5, 5]))
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "more", [{"softcap": 50.0}, {"s_aux": torch.zeros(4)}, {"position_bias": torch.zeros(1)}]
)
def test_more_than_causality_is_refused(more):
    x = draw(1, 4, 5, 8)
    with rows(batch_of([5])), pytest.raises(UnsupportedModelError, match=next(iter(more))):
        row_attention(nn.Identity(), x, x, x, None, **more)


def test_a_bias_of_the_models_own_is_refused():
    x = draw(1, 4, 5, 8)
    with rows(batch_of([5])), pytest.raises(UnsupportedModelError, match="bias"):
        row_attention(nn.Identity(), x, x, x, torch.zeros(5, 5))


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Rows go to flash attention in one call. It has no kernel on a CPU, so its plain twin takes its place."""
    monkeypatch.setattr(attention, "takes_all_rows", lambda *_: True)
    plain_flash.take_its_place(monkeypatch)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(1, 3), st.sampled_from([1, 2, 4]),
    st.sampled_from([None, 0.3]),
)  # fmt: skip
def test_one_call_for_all_rows_equals_a_call_for_each_length_with_gradients(
    as_on_cuda, lengths, num_arms, num_key_heads, scaling
):
    batch, num_tokens = batch_of(lengths), sum(lengths)
    inputs = [
        draw(num_arms, heads, num_tokens, 8, seed=seed).requires_grad_()
        for seed, heads in enumerate((4, num_key_heads, num_key_heads))
    ]
    dout = draw(num_arms, num_tokens, 4, 8, seed=9)
    results = []
    for in_one in (True, False):
        with mock.patch.object(attention, "takes_all_rows", lambda *_, in_one=in_one: in_one), rows(batch):
            out, _ = row_attention(nn.Identity(), *inputs, None, scaling=scaling)
            results.append([out, *torch.autograd.grad(out, inputs, dout)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "value_channels"), [(8, 6), (16, 8), (10, 10), (6, 8), (4, 12)])
def test_in_one_call_heads_may_have_any_size(as_on_cuda, channels, value_channels):
    """Values of another size than queries (latent attention), and sizes that are no multiple of eight."""
    lengths = [3, 6, 9]
    sizes = (channels, channels, value_channels)
    inputs = [draw(2, 4, 18, size, seed=seed).requires_grad_() for seed, size in enumerate(sizes)]
    with rows(batch_of(lengths)):
        out, _ = row_attention(nn.Identity(), *inputs, None)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=block_diagonal(lengths)).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert out.is_contiguous()
    dout = draw(*out.shape, seed=9)
    for mine, theirs in zip(
        torch.autograd.grad(out, inputs, dout), torch.autograd.grad(expected, inputs, dout), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [1, 3, 7])
def test_in_one_call_rows_may_be_longer_than_the_sliding_window(as_on_cuda, window):
    """A token sees `window` tokens, itself included, as transformers counts."""
    lengths = [3, 6, 9]
    query, key, value = (draw(2, 4, 18, 8, seed=seed) for seed in range(3))
    with rows(batch_of(lengths)):
        out, _ = row_attention(nn.Identity(), query, key, value, None, sliding_window=window)
    near = block_diagonal(lengths) & torch.ones(18, 18, dtype=torch.bool).triu(1 - window)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=near)
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_key_heads", [4, 2])
def test_torchs_kernel_takes_the_tensors_in_this_layout(num_key_heads):
    """On tensors of the meta device, on which torch checks shapes and options: forward and backward."""
    batch, meta = batch_of([3, 5]), torch.device("meta")
    inputs = [
        torch.empty(2, 8, heads, 64, dtype=torch.bfloat16, device=meta).transpose(1, 2).requires_grad_()
        for heads in (4, num_key_heads, num_key_heads)
    ]
    with (
        mock.patch.object(attention, "takes_all_rows", partial(takes_all_rows_on, device_kind="cuda")),
        rows(batch),
    ):
        out, _ = row_attention(nn.Identity(), *inputs, None, sliding_window=2)
        grads = torch.autograd.grad(out, inputs, torch.empty_like(out))
    assert (out.shape, out.dtype) == ((2, 8, 4, 64), torch.bfloat16)
    assert [grad.shape for grad in grads] == [x.shape for x in inputs]


@pytest.mark.parametrize(
    ("dtype", "channels", "value_channels", "serves"),
    [
        (torch.bfloat16, 80, 80, True), (torch.float16, 256, 256, True), (torch.float32, 64, 64, False),
        (torch.bfloat16, 60, 60, True), (torch.bfloat16, 264, 264, False), (torch.bfloat16, 192, 128, True),
        (torch.bfloat16, 64, 264, False),
    ],
)  # fmt: skip
def test_what_flash_attention_takes(dtype, channels, value_channels, serves):
    query, value = (torch.empty(1, 1, 1, size, dtype=dtype) for size in (channels, value_channels))
    assert takes_all_rows_on(query, value, device_kind="cuda") is serves
    assert not takes_all_rows_on(query, value, device_kind="cpu")


def test_rows_must_fit_the_sliding_window():
    x = draw(1, 4, 5, 8)
    with rows(batch_of([5])):
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
        with rows(batch):
            together = base.model(
                input_ids=batch.input_ids_N[None], position_ids=batch.position_ids_N[None], use_cache=False
            ).logits[0]
    order = sorted(range(5), key=lambda number: len(token_rows[number].input_ids))
    torch.testing.assert_close(together, torch.cat([alone[number] for number in order]), rtol=1e-4, atol=1e-4)
