"""The ordinary way to run a model, as transformers documents it: rows padded to the longest, with an attention mask.

The reference engine and loaded adapters run this way; the packed engine only generates this way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from lorastudy.engine.batch import Batch
from lorastudy.engine.loading import BaseModel

_PAD = -1


def label_logits(model: Any, batch: Batch) -> Tensor:
    """Logits that predict the labels, (M, V) fp32."""
    lengths = [bucket.length for bucket in batch.buckets for _ in range(bucket.num_rows)]
    longest, device = max(lengths), batch.input_ids_N.device
    index_BL = torch.full((len(lengths), longest), _PAD, device=device)
    places: list[Tensor] = []
    start = 0
    for row, length in enumerate(lengths):
        index_BL[row, :length] = torch.arange(start, start + length, device=device)
        places.append(torch.arange(row * longest, row * longest + length, device=device))
        start += length
    ids_BL = batch.input_ids_N[index_BL.clamp(min=0)]
    # No cache: activation checkpointing would fill it twice.
    logits_BLV: Tensor = model(
        input_ids=ids_BL, attention_mask=(index_BL != _PAD).long(), use_cache=False
    ).logits
    return logits_BLV.flatten(0, 1)[torch.cat(places)[batch.label_index_M]].float()


@torch.no_grad()
def greedy_answers(
    base: BaseModel, prompts: Sequence[Sequence[int]], *, copies: int, max_new_tokens: int
) -> list[list[int]]:  # fmt: skip
    """Greedy answers to `copies` copies of the prompts. An answer ends before the end-of-text token.

    Prompts are padded on the left. While a packed engine owns the model, `copies` is its number of arms, and the
    answers are ordered by arm.
    """
    longest = max(len(prompt) for prompt in prompts)
    pad, end = base.pad_token_id, base.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=base.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=base.device)
    model: Any = base.model
    out = model.generate(
        input_ids=ids.repeat(copies, 1),
        attention_mask=mask.repeat(copies, 1),
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=end
        ),
    )
    answers: list[list[int]] = out[:, longest:].tolist()
    return [answer[: answer.index(end)] if end in answer else answer for answer in answers]
