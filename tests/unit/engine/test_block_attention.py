import pytest
import torch
from torch.nn import functional as F

from lorastudy.engine import attention as module
from lorastudy.engine.attention import block_attention

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(length, *, channels=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(3, length, channels, generator=generator).to(dtype).requires_grad_() for _ in range(4)
    ]


def with_gradients(attend, query, key, value, dout):
    out = attend(query, key, value)
    return [out, *torch.autograd.grad(out, (query, key, value), dout)]


def plainly(query, key, value, *, scale):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


@pytest.mark.parametrize("block", [1, 3, 128])
@pytest.mark.parametrize("length", [1, 2, 7, 12, 130])
def test_equals_torchs_own_attention_with_gradients(length, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    query, key, value, dout = draw(length)
    blockwise = with_gradients(lambda *qkv: block_attention(*qkv, scale=0.3), query, key, value, dout)
    plain = with_gradients(lambda *qkv: plainly(*qkv, scale=0.3), query, key, value, dout)
    torch.testing.assert_close(blockwise, plain, rtol=1e-12, atol=1e-12)


def test_no_query_sees_a_later_key(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 3)
    query, key, value, _ = draw(8)
    before = block_attention(query, key, value, scale=0.3)
    later_key, later_value = key.detach().clone(), value.detach().clone()
    later_key[:, 5:], later_value[:, 5:] = 1e3, 1e3
    after = block_attention(query, later_key, later_value, scale=0.3)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_in_half_precision_it_is_as_near_to_the_truth_as_eager_attention():
    query, key, value, dout = draw(200, channels=64, dtype=torch.bfloat16, seed=1)
    truth = with_gradients(
        lambda *qkv: plainly(*qkv, scale=0.125), *(x.detach().double().requires_grad_() for x in (query, key, value)),
        dout.double(),
    )  # fmt: skip

    def eager(query, key, value):
        scores = (query @ key.mT) * 0.125
        scores = scores.masked_fill(torch.ones(200, 200, dtype=torch.bool).triu(1), -torch.inf)
        return torch.softmax(scores, dim=-1, dtype=torch.float32).bfloat16() @ value

    errors = [
        [_relative(one.detach(), true.detach()) for one, true in zip(results, truth, strict=True)]
        for results in (
            with_gradients(lambda *qkv: block_attention(*qkv, scale=0.125), query, key, value, dout),
            with_gradients(eager, query, key, value, dout),
        )
    ]
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 1.2 * theirs


def _relative(one, true):
    return float((one.double() - true).norm() / true.norm())
