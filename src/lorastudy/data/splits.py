"""Which rows are held out, decided by what a row asks and by nothing else.

A row's side follows from a hash of its prompt, so rows that ask the same are always on one side, whatever they
answer, and adding, removing or reordering rows moves no other row across.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorastudy.data.row_index import HASH_BYTES, RowKeys

#: With fewer prompts than this a split by prompt would leave a share far from the one asked for, or one side empty.
MIN_PROMPTS = 10

SplitBy = Literal["prompt", "row"]


def _numbers() -> "array[int]":
    return array("I")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The numbers of the rows of three parts, rising. `test` is empty where no test part was asked for."""

    by: SplitBy
    train: "array[int]" = field(default_factory=_numbers)
    held_out: "array[int]" = field(default_factory=_numbers)
    test: "array[int]" = field(default_factory=_numbers)


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
        len({bytes(part[at : at + HASH_BYTES]) for at in range(0, len(part), HASH_BYTES)}) for part in parts
    )
