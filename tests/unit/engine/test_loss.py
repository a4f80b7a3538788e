import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lorastudy.engine import loss
from lorastudy.engine.loss import completion_loss, token_scores

pytestmark = pytest.mark.usefixtures("one_thread")


def make(num_arms, num_labels, *, vocabulary=11, bias=True):
    generator = torch.Generator().manual_seed(num_arms * 10 + num_labels)
    head = nn.Linear(6, vocabulary, bias=bias).requires_grad_(requires_grad=False)
    hidden = torch.randn(num_arms, num_labels, 6, generator=generator) * 3
    targets = torch.randint(vocabulary, (num_labels,), generator=generator)
    return head, hidden, targets


@pytest.fixture(params=[1 << 23, 22, 1], ids=["one chunk", "chunks of two", "chunks of one"], autouse=True)
def chunk(request, monkeypatch):
    monkeypatch.setitem(loss.CHUNK_ELEMENTS, "cpu", request.param)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("num_arms", "num_labels"), [(1, 1), (1, 5), (3, 1), (3, 5)])
def test_value_and_gradient_equal_cross_entropy(num_arms, num_labels, bias):
    head, hidden, targets = make(num_arms, num_labels, bias=bias)
    scale = torch.linspace(0.5, 2.0, num_arms)
    x = hidden.clone().requires_grad_()
    sums = completion_loss(x, head, targets_M=targets, grad_scale_K=scale)
    sums.sum().backward()

    y = hidden.clone().requires_grad_()
    expected = torch.stack([F.cross_entropy(head(y_k), targets, reduction="sum") for y_k in y])
    (expected * scale).sum().backward()
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("bias", [True, False])
def test_smoothed_labels_equal_cross_entropy_with_them(bias):
    head, hidden, targets = make(3, 5, bias=bias)
    scale, smoothing = torch.linspace(0.5, 2.0, 3), torch.tensor([0.0, 0.1, 0.7])
    x = hidden.clone().requires_grad_()
    sums = completion_loss(x, head, targets_M=targets, grad_scale_K=scale, label_smoothing_K=smoothing)
    sums.sum().backward()

    y = hidden.clone().requires_grad_()
    expected = torch.stack(
        [
            F.cross_entropy(head(y_k), targets, reduction="sum", label_smoothing=e.item())
            for y_k, e in zip(y, smoothing, strict=True)
        ]
    )
    (expected * scale).sum().backward()
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(x.grad, y.grad)


def test_an_arm_without_smoothing_keeps_its_bits_beside_one_with_it():
    head, hidden, targets = make(3, 5)
    found = []
    for smoothing in (None, torch.tensor([0.0, 0.3, 0.0])):
        x = hidden.clone().requires_grad_()
        sums = completion_loss(
            x, head, targets_M=targets, grad_scale_K=torch.ones(3), label_smoothing_K=smoothing
        )
        sums.sum().backward()
        found.append((sums.detach(), x.grad))
    for arm in (0, 2):
        assert found[0][0][arm] == found[1][0][arm]
        assert torch.equal(found[0][1][arm], found[1][1][arm])
    assert found[0][0][1] != found[1][0][1]


def test_scores_equal_cross_entropy_and_argmax():
    head, hidden, targets = make(3, 7)
    targets[0] = head(hidden[1, 0]).argmax()
    nll, correct = token_scores(hidden, head, targets_M=targets)
    logits = head(hidden)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.repeat(3), reduction="none").view(3, 7)
    torch.testing.assert_close(nll, expected)
    assert torch.equal(correct, logits.argmax(-1) == targets)
    assert correct[1, 0]


def test_an_arm_that_is_not_finite_stays_by_itself():
    head, hidden, targets = make(3, 4)
    clean, broken = hidden.clone().requires_grad_(), hidden.clone()
    broken[1] = float("inf")
    broken.requires_grad_()
    results = []
    for x in (clean, broken):
        sums = completion_loss(x, head, targets_M=targets, grad_scale_K=torch.ones(3))
        sums.sum().backward()
        results.append((sums.detach(), x.grad))
    assert not results[1][0][1].isfinite()
    for arm in (0, 2):
        assert results[0][0][arm] == results[1][0][arm]
        assert torch.equal(results[0][1][arm], results[1][1][arm])


def test_half_precision_gradients_are_scaled_before_they_are_rounded():
    """p - 1 = -1 / (1 + e^10) = -4.5e-5, times the weight 5e-4, is below fp16's smallest number, 6e-8."""
    head = nn.Linear(1, 2, bias=False).half().requires_grad_(requires_grad=False)
    head.weight.copy_(torch.tensor([[5e-4], [0.0]]))
    grads = {}
    for scale in (1.0, 2.0**16):
        x = torch.full((1, 1, 1), 2e4, dtype=torch.float16, requires_grad=True)
        completion_loss(
            x, head, targets_M=torch.tensor([0]), grad_scale_K=torch.tensor([scale])
        ).sum().backward()
        grads[scale] = x.grad.item() / scale
    assert grads[1.0] == 0.0
    assert grads[2.0**16] == pytest.approx(-4.54e-5 * 5e-4, rel=1e-2)


@settings(max_examples=20, deadline=None)
@given(st.floats(-60, 60), st.floats(-60, 60))
def test_large_logits_do_not_overflow(first, second):
    head = nn.Linear(2, 2, bias=False).requires_grad_(requires_grad=False)
    head.weight.copy_(torch.eye(2) * 1000)
    x = torch.tensor([[[first, second]]], requires_grad=True)
    value = completion_loss(x, head, targets_M=torch.tensor([1]), grad_scale_K=torch.ones(1))
    value.sum().backward()
    # From the same fp32 logits: products rounded from doubles may differ by an ulp of 60,000, which is 0.004.
    expected = F.cross_entropy(x.detach()[0] * 1000, torch.tensor([1]))
    assert value.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    assert x.grad.isfinite().all()
