"""Does the packed forward compute what the model computes? Asked of the model itself, before training.

Some models do more between embedding and logits than the packed engine does: logit soft caps or scales,
attention biases, sliding windows. Rather than keep a list of architectures, a few tokens go both ways and the
results must agree.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lorastudy.data.tokenise import TokenRow
from lorastudy.engine import attention
from lorastudy.engine.batch import Batch, assemble
from lorastudy.errors import ModelError

#: Relative difference of logits that rounding explains, by bytes of the model's precision.
TOLERANCE = {4: 1e-4, 2: 5e-2}


class UnsupportedModelError(ModelError):
    """The packed engine cannot train this model; the reference engine can."""


@torch.no_grad()
def check_supported(
    model: PreTrainedModel,
    *,
    body_forward: Callable[[Batch], Tensor],
    head: Callable[..., Any] | None,
    device: torch.device,
) -> None:
    """Compare logits of three short rows, laid end to end against one by one.

    Raises:
        UnsupportedModelError: they differ by more than rounding, or the packed way does not run at all.
    """
    kind = type(model).__name__
    if head is None:
        raise UnsupportedModelError(f"{kind} has no output head that the packed engine can use")
    num_ids = model.config.get_text_config().vocab_size
    ids = [[(7 * row + 3 * place + 1) % num_ids for place in range(3 + 2 * row)] for row in range(3)]
    rows = [_row(tuple(row)) for row in ids]
    try:
        packed = head(body_forward(assemble(rows, device=device))[0]).float()
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise UnsupportedModelError(
            f"{kind}: its forward does not run on rows laid end to end: {error}"
        ) from error
    model.set_attn_implementation("sdpa")
    try:
        alone = torch.cat(
            [model(input_ids=torch.tensor([row], device=device)).logits[0] for row in ids]
        ).float()
    finally:
        model.set_attn_implementation(attention.NAME)
    difference = ((packed - alone).norm() / alone.norm()).item()
    if not difference <= TOLERANCE.get(model.dtype.itemsize, TOLERANCE[2]):
        raise UnsupportedModelError(
            f"{kind}: the packed forward differs from the model's own by {difference:.1e} (relative)"
        )


def _row(ids: tuple[int, ...]) -> TokenRow:
    return TokenRow(input_ids=ids, labels=ids, prompt_ids=(), prompt_text="", reference="")
