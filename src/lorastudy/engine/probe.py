"""Does the packed forward compute what the model computes? Asked of the model itself, before training.

Some models do more between embedding and logits than the packed engine does: logit soft caps or scales,
attention biases, sliding windows. Rather than keep a list of architectures, a few tokens go both ways and the
results must agree.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorastudy.data.tokenise import TokenRow
from lorastudy.engine import attention
from lorastudy.engine.attention import UnsupportedModelError
from lorastudy.engine.batch import Batch, assemble

#: Relative difference of logits that rounding explains, by bytes of the model's precision.
TOLERANCE = {4: 1e-4, 2: 5e-2}

#: Relative difference between the model's logits and its head applied to its last hidden states, in any
#: precision: the same operations on the same numbers, so next to nothing. A soft cap of 30 on logits of 3 is 3e-3.
HEAD_TOLERANCE = 1e-3

#: Shortest first, as a batch lays its rows.
ROW_LENGTHS = (3, 5, 7)


def probe_batch(model: PreTrainedModel, *, device: torch.device) -> Batch:
    """Three short rows in which every token but the first has a label."""
    num_ids = model.config.get_text_config().vocab_size
    rows = [
        _row(tuple((7 * number + 3 * place + 1) % num_ids for place in range(length)))
        for number, length in enumerate(ROW_LENGTHS)
    ]
    return assemble(rows, device=device)


@torch.no_grad()
def check_supported(
    model: PreTrainedModel,
    *,
    body_forward: Callable[[Batch], Tensor],
    running: Callable[[Batch], AbstractContextManager[None]],
    head: Callable[..., Any] | None,
    own_attention: str,
    batch: Batch,
) -> None:
    """Compare logits of the probe's rows, laid end to end against one by one, and the head with what it stands for.

    Raises:
        UnsupportedModelError: they differ by more than rounding, or the packed way does not run at all.
    """
    kind = type(model).__name__
    if head is None:
        raise UnsupportedModelError(f"{kind} has no output head that the packed engine can use")
    try:
        packed = head(body_forward(batch)[0]).float()
        with running(batch):
            whole = model(
                input_ids=batch.input_ids_N[None], position_ids=batch.position_ids_N[None], use_cache=False
            )
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{kind}: {error}") from error
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise UnsupportedModelError(
            f"{kind}: its forward does not run on rows laid end to end: {error}"
        ) from error
    difference = _relative(packed, whole.logits[0].float())
    if not difference <= HEAD_TOLERANCE:
        raise UnsupportedModelError(
            f"{kind}: its logits are not its output head's: they differ by {difference:.1e} (relative)"
        )
    model.set_attn_implementation(own_attention)
    try:
        alone = torch.cat(
            [
                model(input_ids=ids_S[None]).logits[0]
                for ids_S in torch.split(batch.input_ids_N, list(ROW_LENGTHS))
            ]
        ).float()
    finally:
        model.set_attn_implementation(attention.NAME)
    difference = _relative(packed, alone)
    if not difference <= TOLERANCE.get(model.dtype.itemsize, TOLERANCE[2]):
        raise UnsupportedModelError(
            f"{kind}: the packed forward differs from the model's own by {difference:.1e} (relative)"
        )


def _relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _row(ids: tuple[int, ...]) -> TokenRow:
    return TokenRow(input_ids=ids, labels=ids, prompt_ids=(), prompt_text="", reference="")
