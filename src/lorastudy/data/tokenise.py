"""Token ids and labels from rendered rows.

Segments are tokenised one by one, so no token straddles the border between prompt and answer, and the prompt
has the same tokens in training as at inference. Labels are aligned with the ids (the shift happens in the
loss) and are -100 wherever nothing is trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorastudy.data.chat import ChatTemplate, Message
from lorastudy.data.examples import Example
from lorastudy.errors import DataError
from lorastudy.records import DataSummary

IGNORED = -100
#: Subword tokenizers know every text; more than this means a vocabulary of words that are not these.
MAX_UNKNOWN_SHARE = 0.02


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    @property
    def eos_token(self) -> Any:
        """The text of the end-of-sequence token, or None."""
        ...

    @property
    def eos_token_id(self) -> Any:
        """Its id, or None."""
        ...

    @property
    def all_special_tokens(self) -> list[str]:
        """The texts of all tokens that only mark structure."""
        ...

    def __call__(self, text: Any, /, *, add_special_tokens: bool, verbose: bool) -> Any:
        """`{"input_ids": ...}` of a text, or of each of a list of texts."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """One row as the model sees it.

    `prompt_ids` is what a generated answer starts from: everything before the last answer that begins within
    `max_seq_length`; empty for plain text. `reference` is that answer, whole even where `input_ids` is cut,
    without end markers and the white space around them.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    prompt_text: str
    reference: str

    @property
    def num_completion_tokens(self) -> int:
        """Tokens that the loss covers."""
        return len(self.labels) - self.labels.count(IGNORED)


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """The rows that can be used, and what became of all of them (`num_rows` counts the usable ones)."""

    rows: tuple[TokenRow, ...]
    summary: DataSummary
    whole_lengths: tuple[int, ...]
    """Tokens of every row before the cut, of refused ones too."""
    places: tuple[int, ...]
    """Where each usable row stands among all that were given."""


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """A whole example before the cut. `answers` says where each trained segment begins: (token, segment)."""

    ids: list[int]
    labels: list[int]
    answers: list[tuple[int, int]]


def tokenise(
    examples: Sequence[Example], *, tokenizer: Tokenizer, max_seq_length: int, split: str
) -> TokenSet:
    """The examples as tokens, each at most `max_seq_length` long, cut at the end.

    In front comes what the tokenizer itself puts there (a BOS token, or nothing), once. After the last answer
    comes its EOS token, which is trained. The very first token has no label: there is nothing to predict it
    from. A row of which no answer token is left is refused, and counted.

    Raises:
        DataError: every row was refused, or the tokenizer does not know the answers' words.
    """
    assert examples
    special = tokenizer.all_special_tokens
    rows: list[TokenRow] = []
    places: list[int] = []
    whole_lengths: list[int] = []
    num_truncated = 0
    for place, (example, encoded) in enumerate(zip(examples, _encode(examples, tokenizer), strict=True)):
        whole_lengths.append(len(encoded.ids))
        row = _cut(example, encoded, max_seq_length=max_seq_length, special=special)
        if row is not None:
            rows.append(row)
            places.append(place)
            num_truncated += len(encoded.ids) > max_seq_length
    if not rows:
        raise DataError(
            f"{split}: of all {len(examples)} rows the answer was cut away entirely at "
            f"{max_seq_length} tokens; raise max_seq_length"
        )
    _refuse_unknown_words(rows, tokenizer, split=split)
    summary = DataSummary(
        split=split,
        format=examples[0].format.name,
        num_rows=len(rows),
        num_refused_rows=len(examples) - len(rows),
        num_truncated_rows=num_truncated,
        num_tokens=sum(len(row.input_ids) for row in rows),
        num_completion_tokens=sum(row.num_completion_tokens for row in rows),
    )
    return TokenSet(
        rows=tuple(rows), summary=summary, whole_lengths=tuple(whole_lengths), places=tuple(places)
    )


def _refuse_unknown_words(rows: Sequence[TokenRow], tokenizer: Tokenizer, *, split: str) -> None:
    """Refuse answers that the tokenizer cannot write: trained on them, a model learns to say "unknown"."""
    unknown_id = getattr(tokenizer, "unk_token_id", None)
    if unknown_id is None or unknown_id == tokenizer.eos_token_id:
        return
    labels = [label for row in rows for label in row.labels if label not in {IGNORED, tokenizer.eos_token_id}]
    share = labels.count(unknown_id) / max(1, len(labels))
    if share > MAX_UNKNOWN_SHARE:
        raise DataError(
            f"{split}: {share:.0%} of the answers' tokens are unknown to the base model's tokenizer, so nothing "
            f"can be {'learnt from' if split == 'train' else 'told by'} them; take a base model that knows this text (`lab` knows only its own few words)"
        )


def chat_template_of(tokenizer: Any) -> ChatTemplate | None:
    """The tokenizer's chat template as a function to text; None when it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return None

    def apply(messages: Sequence[Message], /, *, tools: Any, add_generation_prompt: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        return text

    return apply


def _encode(examples: Sequence[Example], tokenizer: Tokenizer) -> Iterator[_Encoded]:
    """Each example whole. All texts go through the tokenizer in one call: it runs in parallel, in Rust."""
    prefix, eos_id = _prefix(tokenizer), tokenizer.eos_token_id
    texts = [text for example in examples for text in _texts(example, tokenizer.eos_token)]
    # Not verbose: it would warn of rows longer than the model's context, and rows are cut after this.
    all_ids = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    for example in examples:
        segment_ids = [list(next(all_ids)) for _ in example.segments]
        if eos_id is not None and segment_ids[-1][-1:] != [eos_id]:
            segment_ids[-1].append(eos_id)
        yield _joined(example, segment_ids, prefix=prefix)


def _prefix(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before a text of its own accord, found by comparing with and without."""
    with_special = list(tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
    without = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    for start in range(len(with_special) - len(without) + 1):
        if with_special[start : start + len(without)] == without:
            return with_special[:start]
    return []


def _texts(example: Example, eos: str | None) -> list[str]:
    """The segments' texts. Chat templates write EOS and a line break; nothing after EOS is wanted."""
    assert example.segments[-1].trained
    texts = [segment.text for segment in example.segments]
    if eos and texts[-1].rstrip().endswith(eos):
        texts[-1] = texts[-1].rstrip()
    return texts


def _joined(example: Example, segment_ids: Sequence[list[int]], *, prefix: list[int]) -> _Encoded:
    has_prefix = segment_ids[0][: len(prefix)] == prefix  # a chat template may have written the BOS token
    ids = [] if has_prefix else list(prefix)
    labels = [IGNORED] * len(ids)
    answers = []
    for number, (segment, piece) in enumerate(zip(example.segments, segment_ids, strict=True)):
        if segment.trained:
            answers.append((len(ids), number))
        ids += piece
        labels += piece if segment.trained else [IGNORED] * len(piece)
    labels[:1] = [IGNORED]
    return _Encoded(ids=ids, labels=labels, answers=answers)


def _cut(
    example: Example, encoded: _Encoded, *, max_seq_length: int, special: Sequence[str]
) -> TokenRow | None:
    """The row at its length limit; None when no answer token is left."""
    labels = tuple(encoded.labels[:max_seq_length])
    if labels.count(IGNORED) == len(labels):
        return None
    start, number = [answer for answer in encoded.answers if answer[0] < max_seq_length][-1]
    return TokenRow(
        input_ids=tuple(encoded.ids[:max_seq_length]),
        labels=labels,
        prompt_ids=tuple(encoded.ids[:start]),
        prompt_text="".join(segment.text for segment in example.segments[:number]),
        reference=_without_end_marker(example.segments[number].text, special),
    )


def _without_end_marker(text: str, special: Sequence[str]) -> str:
    text = text.rstrip()
    while marker := next((token for token in special if text.endswith(token)), None):
        text = text.removesuffix(marker).rstrip()
    return text
