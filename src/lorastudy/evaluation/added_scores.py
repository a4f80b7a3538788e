"""The metrics that a suite adds, measured on the adapters of a scorer: one `AddedScore` per arm, metric and split.

- Metrics of answers read greedy answers to the rows that exact match asks, in the same order.
- `bits_per_byte` and `choice_accuracy` read the likelihood of given texts, for every row of the split.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lorastudy.data.answers import asked_numbers
from lorastudy.data.prompts import Example
from lorastudy.data.token_sets import split_tokens
from lorastudy.data.tokenise import IGNORED, TokenRow, TokenSet, answer_text
from lorastudy.engine.arms import Scorer
from lorastudy.engine.loading import BaseModel, num_positions
from lorastudy.errors import DataError, StudyError
from lorastudy.evaluation.evaluator import sums_by_row
from lorastudy.evaluation.own_metric import OwnMetric, RowFailedError
from lorastudy.evaluation.text_metrics import TEXT_METRICS
from lorastudy.protocol.scoring import AddedScore, FailedRow, Scoring
from lorastudy.suite.metrics import MetricDefinition
from lorastudy.suite.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ScoredSplit:
    """The rows of one split: as in their file, and as tokens. `examples` has one entry for each row of tokens."""

    name: str
    examples: Sequence[Example]
    tokens: TokenSet

    @classmethod
    def of(
        cls, name: str, examples: Sequence[Example], *, settings: Settings, base: BaseModel
    ) -> "ScoredSplit":
        """The split with its tokens.

        Raises:
            DataError: as `split_tokens`.
        """
        tokens = split_tokens(examples, settings=settings, tokenizer=base.tokenizer, split=name)
        return cls(name=name, examples=[examples[place] for place in tokens.places], tokens=tokens)


def added_scores(
    scorer: Scorer, split: ScoredSplit, *, scoring: Scoring, settings: Settings, base: BaseModel
) -> Iterator[AddedScore]:
    """Every metric of the scoring on one split, arm by arm. Answers are generated once for all metrics.

    Raises:
        StudyError: the file of a user's metric cannot be used.
    """
    scored = _Measurement(scorer=scorer, split=split, scoring=scoring, settings=settings, base=base)
    answered = [metric for metric in scoring.metrics if metric.reads == "answers"]
    if answered:
        yield from scored.of_answers(answered)
    for metric in scoring.metrics:
        if metric.reads == "likelihood":
            yield from scored.bits_per_byte(metric)
        elif metric.reads == "choices":
            yield from scored.choice_accuracy(metric)


@dataclass(frozen=True, kw_only=True)
class _AskedRow:
    """A row that is answered: as tokens, and as in its file."""

    tokens: TokenRow
    example: Example


@dataclass(frozen=True, kw_only=True)
class _Measurement:
    """The measurement of all arms on one split."""

    scorer: Scorer
    split: ScoredSplit
    scoring: Scoring
    settings: Settings
    base: BaseModel

    def of_answers(self, metrics: Sequence[MetricDefinition]) -> Iterator[AddedScore]:
        """The metrics of generated answers.

        Raises:
            StudyError: no row can be asked, or the file of a user's metric cannot be used.
        """
        limit = self.settings.max_new_tokens
        numbers = asked_numbers(
            self.split.tokens.rows,
            max_new_tokens=limit,
            max_rows=self.settings.max_generation_samples,
            num_positions=num_positions(self.base.model.config),
        )
        asked = [
            _AskedRow(tokens=self.split.tokens.rows[number], example=self.split.examples[number])
            for number in numbers
        ]
        if not asked:
            raise StudyError(
                f"metrics: {metrics[0].name}: no {self.split.name} row has a prompt and room for an answer, so nothing is "
                "generated; take other rows, or a metric of likelihoods"
            )
        answers = self.scorer.generate([row.tokens.prompt_ids for row in asked], max_new_tokens=limit)
        for metric in metrics:
            measure = self._answer_metric(metric)
            for experiment_id, of_arm in zip(self.scorer.experiment_ids, answers, strict=True):
                items = [
                    measure(answer_text(ids, self.base.tokenizer), row)
                    for ids, row in zip(of_arm, asked, strict=True)
                ]
                examples = [row.example for row in asked]
                yield self._score(experiment_id, metric, items=items, examples=examples)

    def _answer_metric(self, metric: MetricDefinition) -> Callable[[str, _AskedRow], float | str]:
        """A function of answer and row: the number, or the message if there is none."""
        if metric.file is None:
            compare, pattern = TEXT_METRICS[metric.name], self.settings.exact_match_pattern
            return lambda answer, row: compare(answer, row.tokens.reference, pattern=pattern)
        own = OwnMetric.load(metric)

        def measure(answer: str, row: _AskedRow) -> float | str:
            asked, values = row.tokens, row.example.row.values
            try:
                return own(prompt=asked.prompt_text, answer=answer, reference=asked.reference, row=values)
            except RowFailedError as error:
                return str(error)

        return measure

    def bits_per_byte(self, metric: MetricDefinition) -> Iterator[AddedScore]:
        """The negative log-likelihood of a row's labelled tokens in bits, by the bytes of their text.

            bits per byte = sum of nats / (ln 2 x UTF-8 bytes of the answer)

        The end marker's nats count, its bytes do not: to end at the right place is a part of the answer. An item is one
        row's ratio, and its weight is the row's bytes. Unlike loss and perplexity it compares across tokenizers.
        """
        rows = self.split.tokens.rows
        nll, _ = sums_by_row(self.scorer, rows, base=self.base)
        num_bytes = tuple(_num_bytes(row, self.base) for row in rows)
        for number, experiment_id in enumerate(self.scorer.experiment_ids):
            items: list[float | str] = [
                nats / math.log(2) / length if length else "its answer has no text"
                for nats, length in zip(nll[number].tolist(), num_bytes, strict=True)
            ]
            yield self._score(experiment_id, metric, items=items, weights=num_bytes)

    def choice_accuracy(self, metric: MetricDefinition) -> Iterator[AddedScore]:
        """Whether the likeliest of a row's choices is its answer, where a choice's likelihood is taken by byte.

            choice = argmax over the choices of log p(choice | prompt) / UTF-8 bytes of the choice

        It is `acc_norm` of lm-evaluation-harness, with bytes for characters. The marks that end an answer do not count.
        Of equally likely choices the first is taken.
        """
        read = [
            _choice_rows(example, settings=self.settings, base=self.base) for example in self.split.examples
        ]
        rows = [row for one in read if not isinstance(one, str) for row in one.rows]
        nll = sums_by_row(self.scorer, rows, base=self.base)[0] if rows else None
        for number, experiment_id in enumerate(self.scorer.experiment_ids):
            costs = iter(() if nll is None else nll[number].tolist())
            items = [one if isinstance(one, str) else one.is_right(costs) for one in read]
            yield self._score(experiment_id, metric, items=items)

    def _score(
        self,
        experiment_id: str,
        metric: MetricDefinition,
        *,
        items: Sequence[float | str],
        weights: tuple[int, ...] | None = None,
        examples: Sequence[Example] | None = None,
    ) -> AddedScore:
        """The score of one arm: the weighted mean of the rows that have a number. A text is why a row has none.

        `examples` are the rows of the items; by default all rows of the split.
        """
        weighed = zip(items, weights or (1,) * len(items), strict=True)
        known = [(item, weight) for item, weight in weighed if not isinstance(item, str)]
        total = sum(weight for _, weight in known)
        rows = zip(items, examples or self.split.examples, strict=True)
        return AddedScore(
            experiment_id=experiment_id,
            attempt=self.scoring.adapters[experiment_id].attempt,
            split=self.split.name,
            metric=metric.key,
            version=metric.version,
            unit="" if metric.unit == "share" else metric.unit,
            value=math.fsum(item * weight for item, weight in known) / total if total else None,
            items=tuple(None if isinstance(item, str) else item for item in items),
            weights=weights,
            failed_rows=tuple(
                FailedRow(where=example.row.where, message=item)
                for item, example in rows
                if isinstance(item, str)
            ),
            source_sha256=metric.source_sha256,
        )


def _num_bytes(row: TokenRow, base: BaseModel) -> int:
    trained = [label for label in row.labels if label != IGNORED]
    return len(str(base.tokenizer.decode(trained, skip_special_tokens=True)).encode())


@dataclass(frozen=True, kw_only=True)
class _ChoiceRows:
    """One row with each of its choices as the answer."""

    rows: Sequence[TokenRow]
    num_bytes: Sequence[int]
    right: int

    def is_right(self, costs: Iterator[float]) -> float:
        """1 if the choice of the least nats by byte is the right one. Takes the costs of these rows from the iterator."""
        by_byte = [next(costs) / length for length in self.num_bytes]
        return float(by_byte.index(min(by_byte)) == self.right)


def _choice_rows(example: Example, *, settings: Settings, base: BaseModel) -> _ChoiceRows | str:
    """The row with each choice in the place of its answer; a message if it has no choices, or not its answer.

    A row that answers by a letter is given the letters, and a row that answers by a text the texts.
    """
    if example.format.name not in ("alpaca", "prompt_completion"):
        return "it lists no choices"
    instruction = example.format.instruction(example.row)
    if len(instruction.choices) < 2:
        return "it lists no choices"
    answer = instruction.answer.strip()
    letters, texts = ([one.strip() for one in column] for column in zip(*instruction.choices, strict=True))
    candidates = letters if answer in letters else texts
    if not answer or not all(candidates):
        return "its answer or a choice is empty"
    trained = [number for number, segment in enumerate(example.segments) if segment.trained]
    last = example.segments[trained[-1]]
    before, found, after = last.text.rpartition(answer)
    if answer not in candidates or not found:
        return "its answer is none of its choices"
    rows = []
    for choice in candidates:
        segments = list(example.segments)
        segments[trained[-1]] = replace(last, text=before + choice + after)
        rendering = replace(example.rendering, segments=tuple(segments))
        row = _only_row(replace(example, rendering=rendering), settings=settings, base=base)
        if row is None:
            return "max_seq_length cuts off one of its choices"
        rows.append(row)
    return _ChoiceRows(
        rows=rows,
        num_bytes=[len(choice.encode()) for choice in candidates],
        right=candidates.index(answer),
    )


def _only_row(example: Example, *, settings: Settings, base: BaseModel) -> TokenRow | None:
    """The example as tokens, with labels on its last answer alone, without the marks that end it.

    None if `max_seq_length` leaves no such label.
    """
    try:
        tokens = split_tokens([example], settings=settings, tokenizer=base.tokenizer, split="eval")
    except DataError:
        return None
    row, marks = tokens.rows[0], base.tokenizer.added_tokens_decoder
    labels = tuple(
        label if number >= len(row.prompt_ids) and label not in marks else IGNORED
        for number, label in enumerate(row.labels)
    )
    return replace(row, labels=labels) if set(labels) != {IGNORED} else None
