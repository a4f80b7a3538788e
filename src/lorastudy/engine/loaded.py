"""A trained adapter, loaded by PEFT, that can be scored and asked."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from lorastudy.engine.arms import TokenScores
from lorastudy.engine.batch import Batch
from lorastudy.engine.generation import greedy
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.padded_forward import label_logits
from lorastudy.engine.peft_model import load_adapter


class LoadedAdapter:
    """A `Scorer` of one arm: what a user gets who loads `final_model` with `PeftModel.from_pretrained`."""

    def __init__(self, base: BaseModel, folder: Path) -> None:
        """Load the adapter onto the base.

        Raises:
            ModelError: not an adapter folder, or an adapter of another base.
        """
        self._base = base
        self._model = load_adapter(base, folder)
        self.experiment_ids = (folder.name,)

    def close(self) -> None:
        """Take the adapter off the base, which then is as it was."""
        self._model.unload()
        self._base.model.requires_grad_(requires_grad=False)

    @torch.no_grad()
    def score(self, batch: Batch) -> TokenScores:
        """Score a batch."""
        logits_MV = label_logits(self._model, batch)
        nll_M = F.cross_entropy(logits_MV, batch.targets_M, reduction="none")
        correct_M = logits_MV.argmax(dim=-1) == batch.targets_M
        return TokenScores(nll_KM=nll_M.unsqueeze(0), correct_KM=correct_M.unsqueeze(0))

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[list[int]]]:
        """Greedy answers, `[0][prompt]`, up to and without the end-of-text token."""
        return [greedy(self._base, prompts, copies=1, max_new_tokens=max_new_tokens)]
