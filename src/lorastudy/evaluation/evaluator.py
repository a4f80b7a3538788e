"""The evaluator seam: it takes held-out rows and gives scores with a value for every item; and the two evaluators.

`CompletionLoss` gives held-out loss, perplexity and token accuracy from one pass over the rows; `ExactMatch` compares greedily
generated answers.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from lorastudy.data.answers import asked_numbers, is_match, what_counts
from lorastudy.data.tokenise import TokenRow, answer_text
from lorastudy.engine.arms import Scorer
from lorastudy.engine.batch import assemble
from lorastudy.engine.loading import BaseModel, num_positions
from lorastudy.protocol.records import EXACT_MATCH_VERSION, LOSS_VERSION, Generation, Score

#: The most tokens in one scoring batch, summed over all arms, by kind of device. On a CPU the hidden states of smaller
#: batches stay in the cache: a fifth less time than with four times as many tokens (docs/log.md).
MAX_SCORED_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 14}

#: Answers per experiment and split that are stored as evidence.
NUM_KEPT = 100


class Evaluator(Protocol):
    """Scores all adapters of a scorer on the same rows. Changes neither weights nor later gradients."""

    def evaluate(
        self, scorer: Scorer, rows: Sequence[TokenRow], *, base: BaseModel, split: str
    ) -> Iterator[Score | Generation]:
        """Yield a score per arm and metric; `items` follow the order of `rows`."""
        ...


def in_parts(rows: Sequence[TokenRow], *, num_arms: int, max_tokens: int) -> Iterator[list[int]]:
    """Yield the row numbers of each batch of at most `max_tokens` tokens over all arms, or of one row.

    Rows of a batch have similar lengths, so that padding is short.
    """
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].input_ids))
    part: list[int] = []
    num_tokens = 0
    for number in order:
        length = len(rows[number].input_ids)
        if part and (num_tokens + length) * num_arms > max_tokens:
            yield part
            part, num_tokens = [], 0
        part.append(number)
        num_tokens += length
    if part:
        yield part


def sums_by_row(
    scorer: Scorer, rows: Sequence[TokenRow], *, base: BaseModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sums over the labelled tokens of each row, by (arm, row), in fp64.

    The first is of negative log-likelihoods, in nats. The second counts the tokens that are the most likely ones.
    """
    num_arms = len(scorer.experiment_ids)
    nll = torch.zeros(num_arms, len(rows), dtype=torch.float64)
    correct = torch.zeros_like(nll)
    max_tokens = MAX_SCORED_TOKENS.get(base.device.type, MAX_SCORED_TOKENS["cuda"])
    for part in in_parts(rows, num_arms=num_arms, max_tokens=max_tokens):
        batch = assemble([rows[number] for number in part], device=base.device)
        scores = scorer.score(batch)
        row_M = torch.tensor(part)[batch.label_row_M.cpu()]
        nll.index_add_(1, row_M, scores.nll_KM.cpu().double())
        correct.index_add_(1, row_M, scores.correct_KM.cpu().double())
    return nll, correct


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
        nll, correct = sums_by_row(scorer, rows, base=base)
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


@dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """Share of rows whose greedy answer is the reference.

    The reference is the text of the row's labelled answer tokens, so a model that generates exactly these tokens
    matches. Before the comparison, outer white space is removed and inner white space becomes one space; case counts.
    With a `pattern`, the comparison is between the first group of the last match in both texts; an answer without a
    match is wrong. In a conversation the model answers the last turn, given all turns before it. Rows without a prompt
    (plain text) are left out, and so are rows whose answer might not fit the model's positions. If no row remains there
    is no score.
    """

    max_new_tokens: int
    max_rows: int
    pattern: str | None = None

    def evaluate(
        self, scorer: Scorer, rows: Sequence[TokenRow], *, base: BaseModel, split: str
    ) -> Iterator[Score | Generation]:
        """Yield two scores per arm over the first `max_rows` rows with a prompt, and `NUM_KEPT` answers."""
        numbers = asked_numbers(
            rows,
            max_new_tokens=self.max_new_tokens,
            max_rows=self.max_rows,
            num_positions=num_positions(base.model.config),
        )
        if not numbers:
            return
        asked = [rows[number] for number in numbers]
        answers = scorer.generate([row.prompt_ids for row in asked], max_new_tokens=self.max_new_tokens)
        for experiment_id, arm_answers in zip(scorer.experiment_ids, answers, strict=True):
            texts = [answer_text(ids, base.tokenizer) for ids in arm_answers]
            hits = tuple(
                float(is_match(text, row.reference, pattern=self.pattern))
                for text, row in zip(texts, asked, strict=True)
            )
            for metric, items in (("exact_match", hits), ("same_answer", self._same_answers(texts))):
                yield Score(
                    experiment_id=experiment_id,
                    split=split,
                    metric=metric,
                    version=EXACT_MATCH_VERSION,
                    unit="",
                    value=sum(items) / len(items),
                    items=items,
                )
            for number, row, text in zip(numbers, asked, texts[:NUM_KEPT], strict=False):
                yield Generation(
                    experiment_id=experiment_id,
                    prompt=row.prompt_text,
                    reference=row.reference,
                    answer=text,
                    split=split,
                    row=number,
                )

    def _same_answers(self, texts: Sequence[str]) -> tuple[float, ...]:
        """1 for each row with the arm's most common answer, else 0. All are 1 if the arm always gives the same answer.

        Two answers without a match of the pattern are the same if their whole texts are equal.
        """
        found = [self._found_or_whole(text) for text in texts]
        ((commonest, _),) = Counter(found).most_common(1)
        return tuple(float(one == commonest) for one in found)

    def _found_or_whole(self, text: str) -> tuple[bool, str | None]:
        """Whether the pattern matches, and its match or else the whole text."""
        found = what_counts(text, pattern=self.pattern)
        return (True, found) if found is not None else (False, what_counts(text))
