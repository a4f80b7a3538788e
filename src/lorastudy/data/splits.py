"""Which rows are held out, decided by what a row asks and by nothing else.

A row's side follows from a hash of its prompt, so rows that ask the same are always on one side, whatever they
answer, and adding, removing or reordering rows moves no other row across.
"""

import hashlib
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from lorastudy.data.examples import Example
from lorastudy.data.formats import ReadRow

#: With fewer prompts than this a split by prompt would leave a share far from the one asked for, or one side empty.
MIN_PROMPTS = 10
_HASH_BYTES = 16

SplitBy = Literal["prompt", "row"]


class RowKeys:
    """What is remembered of each row for splits and for counts of copies: two hashes, 32 bytes a row."""

    BYTES_PER_ROW = 2 * _HASH_BYTES

    def __init__(self) -> None:
        self._contents = bytearray()
        self._prompts = bytearray()

    @classmethod
    def blank(cls, num_rows: int) -> Self:
        """Keys of so many rows, all zero: `columns` are to be filled."""
        keys = cls()
        keys._contents, keys._prompts = bytearray(num_rows * _HASH_BYTES), bytearray(num_rows * _HASH_BYTES)
        return keys

    def columns(self) -> tuple[memoryview, memoryview]:
        """The hashes of contents and of prompts, one after another, as bytes that can be written and filled."""
        return memoryview(self._contents), memoryview(self._prompts)

    def add(self, *, content: bytes, prompt: bytes) -> None:
        """Append a row's `row_hashes`."""
        self._contents += content
        self._prompts += prompt

    def __len__(self) -> int:
        return len(self._contents) // _HASH_BYTES

    def content(self, number: int) -> bytes:
        """The hash of a row's content."""
        return bytes(self._contents[number * _HASH_BYTES : (number + 1) * _HASH_BYTES])

    def prompt(self, number: int) -> bytes:
        """The hash of a row's prompt."""
        return bytes(self._prompts[number * _HASH_BYTES : (number + 1) * _HASH_BYTES])

    def contents(self, numbers: Sequence[int] | None = None) -> Iterator[bytes]:
        """The hashes of the content of all rows or of some."""
        return map(self.content, range(len(self)) if numbers is None else numbers)

    def prompts(self, numbers: Sequence[int] | None = None) -> Iterator[bytes]:
        """The hashes of the prompt of all rows or of some."""
        return map(self.prompt, range(len(self)) if numbers is None else numbers)


def _numbers() -> "array[int]":
    return array("I")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The numbers of the rows of three parts, rising. `test` is empty where no test part was asked for."""

    by: SplitBy
    train: "array[int]" = field(default_factory=_numbers)
    held_out: "array[int]" = field(default_factory=_numbers)
    test: "array[int]" = field(default_factory=_numbers)


def row_hashes(read: ReadRow) -> tuple[bytes, bytes]:
    """The hash of a row's content, and of its prompt: the first 16 bytes of SHA-256 over its texts in order.

    Case, white space and Unicode form do not count, nor do column names and empty texts: the same question and answer as
    Alpaca row, as a pair and as a conversation of two turns are the same content. The prompt is what stands before the
    first answer. Plain text, and a row that asks nothing, has its content for it.
    """
    texts = [_normalised(text) for text in read.texts]
    content = _digest(texts)
    prompt = texts[: read.num_prompt_texts]
    return content, _digest(prompt) if any(prompt) else content


def asked_text(read: ReadRow) -> str:
    """What the hash of its prompt is of, as it stands in the row."""
    return "\n".join(read.prompt if any(map(_normalised, read.prompt)) else read.texts)


def prompt_groups(examples: Sequence[Example]) -> tuple[int, ...] | None:
    """For each row a number that rows of one prompt share, by first appearance; None where no two rows do."""
    numbers: dict[str, int] = {}
    groups = tuple(numbers.setdefault(example.prompt_hash, len(numbers)) for example in examples)
    return None if len(numbers) == len(groups) else groups


def split_rows(
    keys: RowKeys,
    numbers: Sequence[int] | None = None,
    *,
    eval_fraction: float,
    test_fraction: float = 0.0,
    salt: str = "",
) -> Split:
    """Rows (all or those of some numbers) whose salted prompt hash, a number in [0, 1), is below `eval_fraction` are held out.

    Those of the next `test_fraction` are the test rows, so that asking for a test part takes rows from training
    and leaves the held-out ones as they were. The shares are met in expectation only: n prompts give n * fraction
    held-out ones, give or take sqrt(n * fraction * (1 - fraction)), and prompts differ in their number of rows.
    With fewer than `MIN_PROMPTS` prompts a row's whole content takes the place of its prompt.
    """
    numbers = range(len(keys)) if numbers is None else numbers
    is_by_row = not _has_distinct(keys.prompts(numbers), min(MIN_PROMPTS, len(numbers)))
    split = Split(by="row" if is_by_row else "prompt")
    key_of = keys.content if is_by_row else keys.prompt
    for number in numbers:
        place = position(key_of(number).hex(), purpose=f"split:{salt}")
        if place < eval_fraction:
            split.held_out.append(number)
        elif place < eval_fraction + test_fraction:
            split.test.append(number)
        else:
            split.train.append(number)
    return split


def position(key: str, *, purpose: str) -> float:
    """A number in [0, 1) drawn from the hash of a row; draws for two purposes are independent.

    They must be: a sample of the lowest hashes, split by the same hashes, would be held out whole.
    """
    digest = hashlib.sha256(f"{purpose}\n{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def num_duplicates(keys: RowKeys, numbers: Sequence[int] | None = None) -> int:
    """Rows, of all or of some, that repeat the content of an earlier one."""
    num_rows = len(keys if numbers is None else numbers)
    return num_rows - _num_distinct(keys.contents(numbers))


def _has_distinct(hashes: Iterable[bytes], number: int) -> bool:
    """Whether so many of the hashes differ."""
    found: set[bytes] = set()
    for key in hashes:
        if len(found) >= number:
            break
        found.add(key)
    return len(found) >= number


def _num_distinct(hashes: Iterable[bytes]) -> int:
    """How many of the hashes differ. They are counted part by part: a set holds six times as much as the hashes have bytes."""
    parts = [bytearray() for _ in range(16)]
    for key in hashes:
        parts[key[0] % 16] += key
    return sum(
        len({bytes(part[at : at + _HASH_BYTES]) for at in range(0, len(part), _HASH_BYTES)}) for part in parts
    )


def _digest(texts: Sequence[str]) -> bytes:
    joined = "\x1f".join(text for text in texts if text)
    return hashlib.sha256(joined.encode()).digest()[:_HASH_BYTES]


def _normalised(text: str) -> str:
    if text.isascii():  # which has one form, and whose small letters are its folded ones
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
