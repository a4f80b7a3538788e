"""The loss over labelled tokens, without all logits in memory at once.

    K arms, D hidden size, M labelled tokens of the batch, C labelled tokens of a chunk, V vocabulary

The frozen output head runs on one chunk of labelled hidden states at a time. The gradient with respect to these states
is computed while the chunk's logits exist. So (arms x labels x hidden) is kept, never (arms x tokens x vocabulary).
"""

from typing import Any

import torch
from torch import Tensor, nn

from lorastudy.engine.arm_layout import Spans
from lorastudy.engine.matmul import linear

#: Logits per chunk, in elements. On a CPU they stay in its cache (fp32: 4 MiB). On a GPU fewer chunks are fewer kernels;
#: at 10 bytes for each element a chunk takes 640 MiB there.
CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}


def completion_loss(
    hidden_KMD: Tensor,
    head: nn.Module,
    *,
    targets_M: Tensor,
    grad_scale_K: Tensor,
    labels: Spans | None = None,
    label_smoothing_K: Tensor | None = None,
) -> Tensor:
    """Summed negative log-likelihood per arm in nats, (K,), fp32; with label smoothing, the loss that this trains.

    `hidden_KMD` are the states that predict `targets_M`. Equals
    `cross_entropy(head(hidden).float(), targets, reduction="sum")` for each arm. The backward pass gives
    d(sum)/d(hidden) times `grad_scale_K`: 1 / tokens of the step, times the loss scale of fp16, which must be
    applied before the gradient is rounded to half precision.

    If arms have rows of their own, `labels` are the spans of the arms in M, and the states are (1, M, D).

    Label smoothing e gives the target the share 1 - e, and each token of the vocabulary, the target too, e / V: the loss of
    a token is (1 - e) nll + e mean(-log p), as `cross_entropy(label_smoothing=e)` and transformers' `LabelSmoother`.
    """
    of_arms = (grad_scale_K, label_smoothing_K)
    loss_K: Tensor = _CompletionLoss.apply(hidden_KMD, head, targets_M, of_arms, labels)  # type: ignore[no-untyped-call]  # torch
    return loss_K


@torch.no_grad()
def token_scores(hidden_KMD: Tensor, head: nn.Module, *, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    """Per-token negative log-likelihood in nats (K, M) fp32, and whether the likeliest token is the target."""
    hidden, targets, chunks = _rows(hidden_KMD, head, targets_M=targets_M)
    nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    correct = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    weight_VD, bias_V = _weights(head)
    for chunk in chunks:
        logits_CV = linear(hidden[chunk], weight_VD, bias_O=bias_V).float()
        nll[chunk] = _chosen(torch.log_softmax(logits_CV, dim=-1), targets[chunk]).neg()
        correct[chunk] = logits_CV.argmax(dim=-1) == targets[chunk]
    return nll.view(hidden_KMD.shape[:2]), correct.view(hidden_KMD.shape[:2])


class _CompletionLoss(torch.autograd.Function):
    """d loss / d logits = softmax(logits) - labels, computed chunk by chunk already in the forward pass.

    The labels of a row are one-hot, or smoothed: (1 - e) onehot + e / V.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KMD: Tensor,
        head: nn.Module,
        targets_M: Tensor,
        of_arms: tuple[Tensor, Tensor | None],
        labels: Spans | None,
    ) -> Tensor:
        """`of_arms` are the factor on each arm's gradient, and its label smoothing."""
        hidden, targets, chunks = _rows(hidden_KMD, head, targets_M=targets_M)
        nll = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden)
        weight_VD, bias_V = _weights(head)
        scale, smoothing = (
            None if values_K is None else _spread(values_K, hidden_KMD, labels=labels) for values_K in of_arms
        )
        assert scale is not None
        for chunk in chunks:
            logits_CV = linear(hidden[chunk], weight_VD, bias_O=bias_V).float()
            log_p_CV = torch.log_softmax(logits_CV, dim=-1)
            nll[chunk] = _chosen(log_p_CV, targets[chunk]).neg()
            share: Tensor | float = 1.0
            if smoothing is not None:
                share = 1.0 - smoothing[chunk]
                nll[chunk] = share * nll[chunk] - smoothing[chunk] * log_p_CV.mean(dim=-1)
            dlogits_CV = log_p_CV.exp_()
            dlogits_CV[torch.arange(len(dlogits_CV), device=hidden.device), targets[chunk]] -= share
            if smoothing is not None:
                dlogits_CV -= smoothing[chunk, None] / dlogits_CV.shape[1]
            dlogits_CV *= scale[chunk, None]
            grad[chunk] = linear(dlogits_CV.to(weight_VD.dtype), weight_VD.mT)
        ctx.save_for_backward(grad.view(hidden_KMD.shape))
        ctx.labels = labels
        return nll.view(hidden_KMD.shape[:2]).sum(dim=1) if labels is None else labels.sums(nll)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_KMD,) = ctx.saved_tensors
        own_K = grads[0].to(grad_KMD.dtype)
        own = own_K[:, None, None] if ctx.labels is None else ctx.labels.spread(own_K)[None, :, None]
        return grad_KMD * own, None, None, None, None


def _spread(values_K: Tensor, hidden_KMD: Tensor, *, labels: Spans | None) -> Tensor:
    """Each arm's value for each of its rows of `_rows`."""
    return values_K.repeat_interleave(hidden_KMD.shape[1]) if labels is None else labels.spread(values_K)


def _rows(hidden_KMD: Tensor, head: nn.Module, *, targets_M: Tensor) -> tuple[Tensor, Tensor, list[slice]]:
    """Arms and labels as one long list of rows, and the slices that cut it into chunks."""
    hidden = hidden_KMD.reshape(-1, hidden_KMD.shape[-1])
    targets = targets_M.repeat(len(hidden_KMD))
    weight_VD, _ = _weights(head)
    step = max(1, CHUNK_ELEMENTS.get(hidden.device.type, CHUNK_ELEMENTS["cuda"]) // weight_VD.shape[0])
    return hidden, targets, [slice(start, start + step) for start in range(0, len(targets), step)]


def _weights(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The head's (vocabulary, hidden) weight and its bias. `self_check` has shown that the head is a linear layer."""
    weight: Any = head.weight
    bias: Any = getattr(head, "bias", None)
    return weight, bias


def _chosen(x_CV: Tensor, targets_C: Tensor) -> Tensor:
    return x_CV.gather(1, targets_C[:, None]).squeeze(1)
