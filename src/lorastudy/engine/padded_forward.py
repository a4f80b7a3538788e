"""The ordinary way to run a batch: rows padded to the longest, with an attention mask."""

from typing import Any

import torch
from torch import Tensor

from lorastudy.engine.batch import Batch

_PAD = -1


def label_logits(model: Any, batch: Batch) -> Tensor:
    """Logits that predict the labels, (M, V) fp32, from a causal LM called as its documentation says."""
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
    # No cache: with recomputed activations it would be filled twice.
    logits_BLV: Tensor = model(
        input_ids=ids_BL, attention_mask=(index_BL != _PAD).long(), use_cache=False
    ).logits
    return logits_BLV.flatten(0, 1)[torch.cat(places)[batch.label_index_M]].float()
