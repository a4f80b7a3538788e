"""Held-out loss, perplexity and token accuracy from one pass over the rows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lorastudy.data.tokenise import TokenRow
from lorastudy.engine.arms import Scorer
from lorastudy.engine.batch import assemble
from lorastudy.engine.loading import BaseModel
from lorastudy.evaluation.evaluator import in_parts
from lorastudy.protocol.records import LOSS_VERSION, Score


@dataclass(frozen=True, kw_only=True)
class CompletionLoss:
    """Teacher-forced metrics over completion tokens, the end marker included.

    - `loss`: mean negative log-likelihood of the completion tokens over all rows (nats per token; a long answer weighs
      more than a short one). An item is one row's mean, and its weight is the row's number of completion tokens. Equals
      `cross_entropy(logits, labels)` over all rows at once.
    - `perplexity`: exp(loss). Comparable only within one tokenizer.
    - `token_accuracy`: share of completion tokens that are the most likely token given the true prefix.
    """

    def evaluate(
        self, scorer: Scorer, rows: Sequence[TokenRow], *, base: BaseModel, split: str
    ) -> Iterator[Score]:  # fmt: skip
        """Yield three scores per arm."""
        num_arms = len(scorer.experiment_ids)
        nll = torch.zeros(num_arms, len(rows), dtype=torch.float64)
        correct = torch.zeros_like(nll)
        for part in in_parts(rows, num_arms=num_arms):
            batch = assemble([rows[number] for number in part], device=base.device)
            scores = scorer.score(batch)
            row_M = torch.tensor(part)[batch.label_row_M.cpu()]
            nll.index_add_(1, row_M, scores.nll_KM.cpu().double())
            correct.index_add_(1, row_M, scores.correct_KM.cpu().double())
        weights = tuple(row.num_completion_tokens for row in rows)
        for number, experiment_id in enumerate(scorer.experiment_ids):
            yield from _scores(
                experiment_id, split, nll=nll[number], correct=correct[number], weights=weights
            )


def _scores(
    experiment_id: str, split: str, *, nll: torch.Tensor, correct: torch.Tensor, weights: tuple[int, ...]
) -> list[Score]:
    counts = torch.tensor(weights, dtype=torch.float64)
    loss = (nll.sum() / counts.sum()).item()
    mean_nll: list[float] = (nll / counts).tolist()
    metrics = (
        ("loss", "nats/token", loss, mean_nll),
        ("perplexity", "", _exp(loss), [_exp(value) for value in mean_nll]),
        ("token_accuracy", "", (correct.sum() / counts.sum()).item(), (correct / counts).tolist()),
    )
    return [
        Score(
            experiment_id=experiment_id,
            split=split,
            metric=metric,
            version=LOSS_VERSION,
            unit=unit,
            value=value,
            items=tuple(items),
            weights=weights,
        )
        for metric, unit, value, items in metrics
    ]


def _exp(value: float) -> float:
    """exp(value), limited to about 1e308, near the largest double."""
    return math.exp(min(value, 709.0))
