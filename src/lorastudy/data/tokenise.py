"""Token ids and labels from rendered rows.

A row's text is tokenised as a whole. Many tokenizers put a word mark before any text, so a text cut into prompt and
answer first would get other tokens. The characters that a token stands for decide whether it belongs to an answer; a
token that crosses the border belongs to the answer. Labels are aligned with the ids (the shift happens in the loss) and
are -100 wherever nothing is trained.
"""

import copy
import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, islice, pairwise
from typing import Any, Protocol, overload

from lorastudy.data.prompts import Example
from lorastudy.errors import DataError
from lorastudy.protocol.records import DataSummary

IGNORED = -100
#: Subword tokenizers know every text. A larger share of unknown tokens means a vocabulary of whole words that lacks
#: these.
MAX_UNKNOWN_SHARE = 0.02
#: Rows per call of the tokenizer. It runs in parallel in Rust, and needs much memory for each token.
_ROWS_AT_ONCE = 256

Span = tuple[int, int]
"""A half-open range of characters or tokens: (start, end)."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that this module uses."""

    @property
    def is_fast(self) -> bool:
        """Whether the tokenizer reports which characters a token stands for."""
        ...

    @property
    def eos_token(self) -> Any:
        """The text of the end-of-sequence token, or None."""
        ...

    @property
    def eos_token_id(self) -> Any:
        """The id of `eos_token`, or None."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """The added tokens by id, such as those that only mark structure."""
        ...

    def __call__(self, text: Any, /, *, add_special_tokens: bool, verbose: bool, **options: Any) -> Any:
        """`{"input_ids": ...}` of one text, or of each text in a list."""
        ...

    def decode(self, token_ids: Any, /, *, skip_special_tokens: bool) -> Any:
        """The text of the ids."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """One row as the model sees it.

    `prompt_ids` is the prompt for a generated answer: all tokens before the last answer that begins within
    `max_seq_length`. It is empty for plain text. `reference` is the text of that answer, decoded as a generated answer
    is decoded (`answer_text`). It is whole even where `input_ids` is cut.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    prompt_text: str
    reference: str
    num_reference_tokens: int = 0
    """The number of tokens that an answer needs to equal `reference`, without the marks that end it."""

    @property
    def asks(self) -> bool:
        """Whether the row has a prompt. Plain text has none."""
        return bool(self.prompt_text) and bool(self.prompt_ids)

    @property
    def num_completion_tokens(self) -> int:
        """The number of tokens that the loss covers."""
        return len(self.labels) - self.labels.count(IGNORED)


class TokenRows(Sequence[TokenRow]):
    """Rows in arrays: five bytes a token, where a `TokenRow` has about fifty. A `TokenRow` is made on reading.

    A label is either the token's own id or -100, so one flag a token stores it. A prompt is always the beginning of its
    row, so its length stores it.
    """

    def __init__(self, rows: Iterable[TokenRow] = ()) -> None:
        self._ids = array("I")
        self._is_trained = bytearray()
        self._ends = array("Q", [0])
        self._num_prompt_tokens = array("I")
        self._texts: list[tuple[str, str]] = []
        self._num_reference_tokens = array("I")
        for row in rows:
            self.append(row)

    def append(self, row: TokenRow) -> None:
        """Add a row at the end."""
        self._ids.extend(row.input_ids)
        self._is_trained += bytes(map(IGNORED.__ne__, row.labels))
        self._ends.append(len(self._ids))
        self._num_prompt_tokens.append(len(row.prompt_ids))
        self._texts.append((row.prompt_text, row.reference))
        self._num_reference_tokens.append(row.num_reference_tokens)

    def __len__(self) -> int:
        return len(self._texts)

    def with_inputs_trained(self) -> "TokenRows":
        """The same rows with every token trained but the first one of each row, which nothing comes before."""
        found = copy.copy(self)
        found._is_trained = bytearray(b"\1" * len(self._ids))
        for start in self._ends[:-1]:
            found._is_trained[start] = 0
        return found

    @property
    def digest(self) -> str:
        """A hash of all that a loss over these rows depends on: their ids, which of them have a label, where rows end."""
        parts = (self._ids.tobytes(), bytes(self._is_trained), self._ends.tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()  # the number of rows tells the parts' lengths

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenRow]: ...

    def __getitem__(self, index: int | slice) -> TokenRow | Sequence[TokenRow]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        tokens = slice(self._ends[number], self._ends[number + 1])
        ids = tuple(self._ids[tokens])
        prompt_text, reference = self._texts[number]
        return TokenRow(
            input_ids=ids,
            labels=tuple(
                token if is_trained else IGNORED
                for token, is_trained in zip(ids, self._is_trained[tokens], strict=True)
            ),
            prompt_ids=ids[: self._num_prompt_tokens[number]],
            prompt_text=prompt_text,
            reference=reference,
            num_reference_tokens=self._num_reference_tokens[number],
        )

    def num_tokens(self, number: int) -> int:
        """The number of tokens of one row."""
        return self._ends[number + 1] - self._ends[number]

    def num_trained_tokens(self, number: int) -> int:
        """The number of tokens of one row that the loss covers."""
        return sum(self._is_trained[self._ends[number] : self._ends[number + 1]])

    def lengths(self) -> Iterator[int]:
        """The number of tokens of each row."""
        return (end - start for start, end in pairwise(self._ends))

    @property
    def num_all_tokens(self) -> int:
        """The number of tokens of all rows."""
        return len(self._ids)

    @property
    def num_completion_tokens(self) -> int:
        """The number of tokens that the loss covers, over all rows."""
        return self._is_trained.count(1)

    def trained_tokens(self) -> Iterator[int]:
        """The tokens that the loss covers, row after row."""
        return compress(self._ids, self._is_trained)


@dataclass(frozen=True, kw_only=True)
class TokenSet:
    """The usable rows, and what happened to every given row."""

    rows: TokenRows
    summary: DataSummary
    whole_lengths: tuple[int, ...]
    """Tokens of every row before the cut, refused rows included. Each piece of a long plain text counts as a row."""
    places: tuple[int, ...]
    """The place of each usable row among the `num_given` given ones. All pieces of one text have the same place."""
    refused: frozenset[int]
    """The places of the rows of which nothing can be trained."""
    num_given: int
    sample: "TokenSet | None" = None
    """The rows that `summary` and trivial predictors are about, if these are not `rows`."""

    @property
    def counted(self) -> "TokenSet":
        """The rows that are counted: a sample if there is one, else these."""
        return self.sample or self


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """One answer of a row: the range of its tokens, and all text before it."""

    start: int
    stop: int
    prompt_text: str


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """A whole example before the cut."""

    ids: list[int]
    labels: list[int]
    answers: list[_Answer]


def tokenise(
    examples: Iterable[Example], *, tokenizer: Tokenizer, max_seq_length: int, split: str
) -> TokenSet:
    """The examples as tokens, each row at most `max_seq_length` long.

    A plain text is split into pieces; any other row is cut at the end. A conversation has the tokens of the model's
    chat template. Any other row begins with the tokens that the tokenizer itself adds (a BOS token, or none), once. The
    last answer ends with its EOS token, which is trained; anything that a template writes after it is left out. The
    first token has no label, because nothing comes before it. A row without any answer token left is refused and
    counted.

    Raises:
        DataError: every row was refused, the tokenizer does not know the answers' words, or it cannot locate the
            answers.
    """
    rows = TokenRows()
    places: list[int] = []
    whole_lengths: list[int] = []
    seen = _Counts()
    num_truncated = 0
    for place, part in _parts(seen.each(examples), tokenizer, max_seq_length=max_seq_length):
        whole_lengths.append(len(part.ids))
        row = _cut(part, max_seq_length=max_seq_length, tokenizer=tokenizer)
        if row is not None:
            rows.append(row)
            places.append(place)
            num_truncated += len(part.ids) > max_seq_length
    if not rows:
        raise DataError(
            f"{split}: of all {seen.num_examples} rows the answer was cut away entirely at "
            f"{max_seq_length} tokens; raise max_seq_length"
        )
    _refuse_unknown_words(rows, tokenizer, split=split)
    refused = frozenset(range(seen.num_examples)).difference(places)
    summary = DataSummary(
        split=split,
        num_rows=len(rows),
        num_refused_rows=len(refused),
        num_truncated_rows=num_truncated,
        num_tokens=rows.num_all_tokens,
        num_completion_tokens=rows.num_completion_tokens,
        num_texts=len(set(places)),
        **seen.for_summary(),
    )
    return TokenSet(
        rows=rows,
        summary=summary,
        whole_lengths=tuple(whole_lengths),
        places=tuple(places),
        refused=refused,
        num_given=seen.num_examples,
    )


class _Counts:
    """Counts over the examples that pass through. Only the first example is kept."""

    def __init__(self) -> None:
        self.num_examples = 0
        self._first: Example | None = None
        self._num_fallback = 0
        self._unseen: dict[str, None] = {}

    def each(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Pass the examples on and count them."""
        for example in examples:
            self._first = self._first or example
            self.num_examples += 1
            self._num_fallback += example.rendering.fell_back
            self._unseen.update(dict.fromkeys(example.rendering.unseen))
            yield example

    def for_summary(self) -> dict[str, Any]:
        """The counts under the names that `DataSummary` has for them."""
        assert self._first is not None
        fmt, rendering = self._first.format, self._first.rendering
        return {
            "format": fmt.name,
            "layout": rendering.layout,
            "num_fallback_rows": self._num_fallback,
            "template_preamble": rendering.preamble,
            "template_date": rendering.date,
            "unused_columns": tuple(fmt.unused),
            "unseen_fields": tuple(self._unseen),
        }


def whole_row(example: Example, *, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids and labels of an example before the cut."""
    ((_, encoded),) = _encode([example], tokenizer)
    return encoded.ids, encoded.labels


def answer_text(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """The text of an answer's tokens up to the EOS token, without special tokens, as a user reads it.

    A generated answer and its reference are both decoded this way. A generated answer of exactly the trained tokens
    therefore equals the reference, whatever marks the chat template writes.
    """
    end = tokenizer.eos_token_id
    answer = list(ids[: ids.index(end)] if end in ids else ids)
    return str(tokenizer.decode(answer, skip_special_tokens=True))


def _refuse_unknown_words(rows: TokenRows, tokenizer: Tokenizer, *, split: str) -> None:
    """Refuse answers that the tokenizer cannot write. A model trained on them learns to say "unknown"."""
    unknown_id = getattr(tokenizer, "unk_token_id", None)
    if unknown_id is None or unknown_id == tokenizer.eos_token_id:
        return
    numbers = Counter(rows.trained_tokens())
    del numbers[tokenizer.eos_token_id]
    share = numbers[unknown_id] / max(1, numbers.total())
    if share > MAX_UNKNOWN_SHARE:
        raise DataError(
            f"{split}: {share:.0%} of the answers' tokens are unknown to the base model's tokenizer, so nothing "
            f"can be {'learnt from' if split == 'train' else 'told by'} them; take a base model that knows this text (`lab` knows only its own few words)"
        )


def _parts(
    examples: Iterable[Example], tokenizer: Tokenizer, *, max_seq_length: int
) -> Iterator[tuple[int, _Encoded]]:
    """Each example or piece of a plain text that becomes a row, with the place of its example."""
    num_repeated = len(_prefix(tokenizer))
    for place, (example, encoded) in enumerate(_encode(examples, tokenizer)):
        is_text = example.rendering.layout == "text"
        pieces = (
            _pieces(encoded, max_seq_length=max_seq_length, num_repeated=num_repeated)
            if is_text
            else [encoded]
        )
        yield from ((place, piece) for piece in pieces)


def _pieces(encoded: _Encoded, *, max_seq_length: int, num_repeated: int) -> list[_Encoded]:
    """A plain text in as few pieces as possible, of lengths as equal as possible.

    A short last piece would weigh as much as a long one. Each piece begins with the tokens that the tokenizer adds
    before a text, as the model expects. Every other token is in exactly one piece. If the tokenizer adds none, the
    first token of each piece has no label.
    """
    ids, labels = encoded.ids, encoded.labels
    longest = max_seq_length - num_repeated
    if len(ids) <= max_seq_length or longest < 1:
        return [encoded]
    num_tokens = len(ids) - num_repeated
    num_pieces = -(-num_tokens // longest)
    borders = [num_repeated + num_tokens * number // num_pieces for number in range(num_pieces + 1)]
    pieces = []
    for start, stop in pairwise(borders):
        piece_labels = [*labels[:num_repeated], *labels[start:stop]]
        piece_labels[:1] = [IGNORED]
        answer = _Answer(start=num_repeated, stop=num_repeated + stop - start, prompt_text="")
        pieces.append(
            _Encoded(ids=[*ids[:num_repeated], *ids[start:stop]], labels=piece_labels, answers=[answer])
        )
    return pieces


def _encode(examples: Iterable[Example], tokenizer: Tokenizer) -> Iterator[tuple[Example, _Encoded]]:
    """Each example with its tokens, before any cut."""
    prefix = _prefix(tokenizer)
    coming = iter(examples)
    while part := list(islice(coming, _ROWS_AT_ONCE)):
        texts = [_Text.of(example, eos=tokenizer.eos_token) for example in part]
        for example, text, (ids, spans) in zip(part, texts, _ids_and_spans(texts, tokenizer), strict=True):
            is_chat = example.rendering.layout == "chat"
            encoded = _labelled(
                text, ids=ids, spans=spans, tokenizer=tokenizer, prefix=[] if is_chat else prefix
            )
            yield example, encoded


@dataclass(frozen=True, kw_only=True)
class _Text:
    """A row as one text. `answers` are its trained parts; `ends_at_next` says which of them end with the next token."""

    text: str
    answers: list[Span]
    ends_at_next: list[bool]

    @classmethod
    def of(cls, example: Example, *, eos: str | None) -> "_Text":
        """The segments joined, with EOS once after each answer that needs it. A token ends the last one, not text."""
        pieces: list[str] = []
        position = 0
        answers: list[Span] = []
        ends_at_next: list[bool] = []
        for number, segment in enumerate(example.segments, start=1):
            text = segment.text
            is_last = number == len(example.segments)
            if eos and segment.end == "eos":
                has_end = text.rstrip().endswith(eos)
                text = text.rstrip() if has_end else text if is_last else text + eos
            if segment.trained:
                answers.append((position, position + len(text)))
                ends_at_next.append(segment.end == "next")
            pieces.append(text)
            position += len(text)
        return cls(text="".join(pieces), answers=answers, ends_at_next=ends_at_next)


def _ids_and_spans(
    texts: Sequence[_Text], tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[Span] | None]]:
    """The ids of each text, and the characters of each token.

    The characters are None for a tokenizer that does not report them.
    """
    # Not verbose: the tokenizer would warn about rows longer than the model's context, which are cut later.
    options = {"return_offsets_mapping": True} if tokenizer.is_fast else {}
    found = tokenizer([text.text for text in texts], add_special_tokens=False, verbose=False, **options)
    for number, ids in enumerate(found["input_ids"]):
        yield list(ids), _spans(found["offset_mapping"][number]) if tokenizer.is_fast else None


def _spans(offsets: Sequence[Span]) -> list[Span]:
    """The characters that each token stands for.

    Some tokenizers leave white space out of their offsets, and give an empty range to a token of white space alone.
    Such a token gets the characters between its neighbours.
    """
    spans: list[Span] = []
    position = 0
    for start, end in offsets:
        spans.append((start, end) if start < end else (min(position, start), end))
        position = max(position, end)
    return spans


def _prefix(tokenizer: Tokenizer) -> list[int]:
    """The tokens that the tokenizer adds before a text, found by tokenising with and without special tokens."""
    with_special = list(tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"])
    without = list(tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"])
    for start in range(len(with_special) - len(without) + 1):
        if with_special[start : start + len(without)] == without:
            return with_special[:start]
    return []


def _labelled(
    text: _Text, *, ids: list[int], spans: list[Span] | None, tokenizer: Tokenizer, prefix: list[int]
) -> _Encoded:
    """The ids between the prefix and the EOS token, up to the last answer, and the labels of the answers."""
    if spans is None:
        borders = [_borders_by_prefix(text, span, ids=ids, tokenizer=tokenizer) for span in text.answers]
    else:
        borders = [_overlapping(span, spans) for span in text.answers]
    shift = 0 if ids[: len(prefix)] == prefix else len(prefix)  # the row's text may contain its BOS token
    ids = [*prefix[:shift], *ids]
    labels = [IGNORED] * len(ids)
    answers = []
    marks = tokenizer.added_tokens_decoder
    for (start, stop), (first, _), ends_at_next in zip(borders, text.answers, text.ends_at_next, strict=True):
        begin, end = start + shift, stop + shift
        if ends_at_next and end < len(ids) and ids[end] in marks:
            end += 1
        labels[begin:end] = ids[begin:end]
        answers.append(_Answer(start=begin, stop=end, prompt_text=text.text[:first]))
    del ids[answers[-1].stop :], labels[answers[-1].stop :]
    eos_id = tokenizer.eos_token_id
    if eos_id is not None and ids[-1:] != [eos_id]:
        ids.append(eos_id)
        labels.append(eos_id)
    labels[:1] = [IGNORED]
    return _Encoded(ids=ids, labels=labels, answers=answers)


def _overlapping(answer: Span, spans: Sequence[Span]) -> Span:
    """The range of tokens that stand for characters of the answer.

    A token that stands for no character, such as a word mark, belongs to the token after it.
    """
    start, end = answer
    inside = [
        number
        for number, (first, last) in enumerate(spans)
        if (first < end and last > start) or (first == last and start <= first < end)
    ]
    if inside:
        return inside[0], inside[-1] + 1
    place = sum(last <= start for _, last in spans)
    return place, place


def _borders_by_prefix(text: _Text, answer: Span, *, ids: list[int], tokenizer: Tokenizer) -> Span:
    """The range of the answer's tokens, if the tokens before a border do not depend on the text after it.

    Raises:
        DataError: they do depend on it, so the answer's tokens cannot be located.
    """
    borders = []
    for place in answer:
        before = list(tokenizer(text.text[:place], add_special_tokens=False, verbose=False)["input_ids"])
        if ids[: len(before)] != before:
            raise DataError(
                "the base model's tokenizer does not say which characters its tokens stand for, and at "
                f"{text.text[max(0, place - 20) : place + 20]!r} a token reaches over the border between prompt and "
                "answer, so the trained tokens cannot be told; take a model folder with a tokenizer.json (a fast "
                "tokenizer), or let white space stand at that border"
            )
        borders.append(len(before))
    return borders[0], borders[1]


def _cut(encoded: _Encoded, *, max_seq_length: int, tokenizer: Tokenizer) -> TokenRow | None:
    """The row cut to `max_seq_length`; None if no answer token is left."""
    labels = tuple(encoded.labels[:max_seq_length])
    if labels.count(IGNORED) == len(labels):
        return None
    answer = [answer for answer in encoded.answers if answer.start < max_seq_length][-1]
    reference_ids = encoded.ids[answer.start : answer.stop] if answer.prompt_text else []
    marks = tokenizer.added_tokens_decoder if reference_ids else {}  # a new table each time
    spoken = [i for i, token in enumerate(reference_ids) if token not in marks]
    return TokenRow(
        input_ids=tuple(encoded.ids[:max_seq_length]),
        labels=labels,
        prompt_ids=tuple(encoded.ids[: answer.start]),
        prompt_text=answer.prompt_text,
        reference=answer_text(reference_ids, tokenizer),
        num_reference_tokens=spoken[-1] + 1 if spoken else 0,
    )
