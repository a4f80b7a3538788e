"""Greedy answers by transformers' own `generate`."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from lorastudy.engine.loading import BaseModel


@torch.no_grad()
def greedy(
    base: BaseModel, prompts: Sequence[Sequence[int]], *, copies: int, max_new_tokens: int
) -> list[list[int]]:  # fmt: skip
    """Greedy answers to the prompts, `copies` times over, each up to and without the end-of-text token.

    Prompts are padded on the left. With a packed engine attached, `copies` is its number of arms, and the
    answers come arm after arm.
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
