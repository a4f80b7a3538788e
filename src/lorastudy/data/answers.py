"""Answers: which rows are asked, when two answers match, and what trivial predictors score on them.

A trivial predictor needs no model; its score follows from tokens alone. Each predictor knows the answers of the
training rows but not the prompts:

- `constant` always gives the most frequent training answer. It has an exact match and a token accuracy.
- `frequencies` gives each answer as often as training has it. It has a loss.
- `unigram` gives each token of an answer as often as the training answers have it, at any position. It has a loss.

An arm that does not beat them has learnt nothing from the prompts.

**Unseen answers and tokens.** Of N training answers, n occur once. An answer that occurs c times has the probability c
/ (N + n + 1), and all unseen answers share (n + 1) / (N + n + 1). That is Good and Turing's estimate with one more
count, so the share is never 0 (method X1 of Moffat, Neal and Witten, ACM TOIS 16, 1998). For labels the share is nearly
nothing: 1 of N + 1. An unseen answer gets a part of the share: its probability under `unigram`. Tokens follow the same
rule, and unseen tokens divide their share equally.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from lorastudy.data.tokenise import IGNORED, TokenRow, TokenSet
from lorastudy.protocol.records import EXACT_MATCH_VERSION, LOSS_VERSION, TrivialPredictor, TrivialScore
from lorastudy.suite.settings import Settings

#: The scored splits that come from the domain of the training rows.
_SPLITS = ("eval", "test")


def asked_rows(
    rows: Sequence[TokenRow], *, max_new_tokens: int, max_rows: int, num_positions: int | None
) -> list[TokenRow]:
    """The first `max_rows` rows that have a prompt and leave room for the answer in the model's positions."""
    numbers = asked_numbers(
        rows, max_new_tokens=max_new_tokens, max_rows=max_rows, num_positions=num_positions
    )
    return [rows[number] for number in numbers]


def asked_numbers(
    rows: Sequence[TokenRow], *, max_new_tokens: int, max_rows: int, num_positions: int | None
) -> list[int]:
    """The numbers of `asked_rows`."""
    longest = math.inf if num_positions is None else num_positions - max_new_tokens
    return [number for number, row in enumerate(rows) if row.asks and len(row.prompt_ids) <= longest][
        :max_rows
    ]


def is_match(answer: str, reference: str, *, pattern: str | None = None) -> bool:
    """Whether the answer equals the reference in the part that counts; see `ExactMatch`."""
    compared = what_counts(answer, pattern=pattern)
    return compared is not None and compared == what_counts(reference, pattern=pattern)


def what_counts(text: str, *, pattern: str | None = None) -> str | None:
    """The part of an answer that is compared; None if the pattern matches nothing.

    Without a pattern it is the whole answer, else the first group of the last match. White space at the ends is
    removed, and inner white space becomes one space.
    """
    if pattern is None:
        return _normal(text)
    found = list(re.finditer(pattern, text))
    return _normal(found[-1].group(1) or "") if found else None


def _normal(text: str) -> str:
    return " ".join(text.split())


def trivial_scores(
    sets: Mapping[str, TokenSet], settings: Settings, *, vocab_size: int, num_positions: int | None
) -> Iterator[TrivialScore]:
    """Each predictor's scores on each scored split.

    They have the same rows, units and weights as the arms' scores. `vocab_size` is the number of tokens that an answer
    can use, `num_positions` the largest number of tokens in a row.
    """
    pattern = settings.exact_match_pattern
    known = _Known.of(sets["train"].counted.rows, pattern=pattern)
    for split in _SPLITS:
        if split in sets:
            rows = sets[split].rows
            yield from _losses(known, rows, split=split, vocab_size=vocab_size)
            yield _constant_accuracy(known, rows, split=split)
            limits = (settings.max_new_tokens, settings.max_generation_samples)
            asked = asked_rows(
                rows, max_new_tokens=limits[0], max_rows=limits[1], num_positions=num_positions
            )
            if asked:
                yield _constant_match(known, asked, split=split, pattern=pattern)


@dataclass(frozen=True, kw_only=True)
class _Frequencies:
    """How often each thing occurred, with a share for unseen things as in the module's docstring."""

    counts: Mapping[Hashable, int]
    num_unseen: int
    total: int

    @classmethod
    def of(cls, things: Iterable[Hashable]) -> "_Frequencies":
        counts = Counter(things)
        num_unseen = 1 + sum(count == 1 for count in counts.values())
        return cls(counts=counts, num_unseen=num_unseen, total=counts.total() + num_unseen)

    def nats(self, thing: Hashable, *, among_unseen: float) -> float:
        """The negative log-probability. `among_unseen` is that of an unseen thing within the unseen share."""
        count = self.counts.get(thing)
        if count is None:
            return math.log(self.total / self.num_unseen) + among_unseen
        return math.log(self.total / count)


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the predictors know of the training answers."""

    tokens: _Frequencies
    answers: _Frequencies
    constant: tuple[int, ...]
    """The most frequent answer; of several, the first."""
    constant_text: str | None
    """The most frequent answer text among training rows that are asked; None if no row is asked."""

    @classmethod
    def of(cls, train: Sequence[TokenRow], *, pattern: str | None) -> "_Known":
        answers = [_answer(row) for row in train]
        compared = (what_counts(row.reference, pattern=pattern) for row in train if row.asks)
        texts = Counter(text for text in compared if text is not None)
        ((constant, _),) = Counter(answers).most_common(1)
        return cls(
            tokens=_Frequencies.of(chain.from_iterable(answers)),
            answers=_Frequencies.of(answers),
            constant=constant,
            constant_text=next((text for text, _ in texts.most_common(1)), None),
        )


def _losses(
    known: _Known, rows: Sequence[TokenRow], *, split: str, vocab_size: int
) -> Iterator[TrivialScore]:
    tokens, answers = known.tokens, known.answers
    even = math.log(max(1, vocab_size - len(tokens.counts)))
    of_tokens = [sum(tokens.nats(token, among_unseen=even) for token in _answer(row)) for row in rows]
    of_answers = [
        answers.nats(_answer(row), among_unseen=nats) for row, nats in zip(rows, of_tokens, strict=True)
    ]
    weights = tuple(row.num_completion_tokens for row in rows)
    by_predictor: dict[TrivialPredictor, list[float]] = {"frequencies": of_answers, "unigram": of_tokens}
    for predictor, nats in by_predictor.items():
        yield TrivialScore(
            predictor=predictor,
            split=split,
            metric="loss",
            version=LOSS_VERSION,
            unit="nats/token",
            value=math.fsum(nats) / sum(weights),
            items=tuple(value / weight for value, weight in zip(nats, weights, strict=True)),
            weights=weights,
        )


def _constant_accuracy(known: _Known, rows: Sequence[TokenRow], *, split: str) -> TrivialScore:
    """The share of completion tokens that equal the token of the most frequent answer at the same position."""
    right = [sum(map(int.__eq__, known.constant, _answer(row))) for row in rows]
    weights = tuple(row.num_completion_tokens for row in rows)
    return TrivialScore(
        predictor="constant",
        split=split,
        metric="token_accuracy",
        version=LOSS_VERSION,
        unit="",
        value=sum(right) / sum(weights),
        items=tuple(number / weight for number, weight in zip(right, weights, strict=True)),
        weights=weights,
    )


def _constant_match(
    known: _Known, asked: Sequence[TokenRow], *, split: str, pattern: str | None
) -> TrivialScore:
    """The share of the asked rows whose reference equals the most frequent training answer."""
    constant = known.constant_text
    references = [what_counts(row.reference, pattern=pattern) for row in asked]
    hits = tuple(float(constant is not None and reference == constant) for reference in references)
    return TrivialScore(
        predictor="constant",
        split=split,
        metric="exact_match",
        version=EXACT_MATCH_VERSION,
        unit="",
        value=sum(hits) / len(hits),
        items=hits,
        answer=constant,
    )


def _answer(row: TokenRow) -> tuple[int, ...]:
    """The tokens that the loss covers, over all the row's answers."""
    return tuple(label for label in row.labels if label != IGNORED)
