"""Which rows are held out. Only a row's prompt decides.

A hash of the prompt puts a row on a side. Rows with the same prompt are therefore on the same side, whatever their
answers. Adding, removing or reordering rows moves no other row across.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorastudy.data.row_index import HASH_BYTES, RowKeys

#: With fewer prompts, a split by prompt would miss the requested share by far, or leave one side empty.
MIN_PROMPTS = 10

SplitBy = Literal["prompt", "row"]


def _numbers() -> "array[int]":
    return array("I")


@dataclass(frozen=True, kw_only=True)
class Split:
    """The row numbers of the three parts, rising. `test` is empty if no test part was requested."""

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
    """The split of all rows, or of the rows with these numbers, by their salted prompt hash.

    The hash gives a number in [0, 1). Rows below `eval_fraction` are held out, and rows in the next `test_fraction` are
    test rows. A test part therefore takes rows from training and leaves the held-out rows unchanged. The shares hold
    only in expectation: n prompts give n * fraction held-out ones, give or take sqrt(n * fraction * (1 - fraction)),
    and prompts differ in their number of rows. With fewer than `MIN_PROMPTS` prompts, a row's whole content replaces
    its prompt.
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
    """A number in [0, 1) from the hash of a row. The numbers for two purposes are independent.

    A sample of the rows with the lowest hashes, split by the same hashes, would be held out whole.
    """
    digest = hashlib.sha256(f"{purpose}\n{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def num_duplicates(keys: RowKeys, numbers: Sequence[int] | None = None) -> int:
    """The number of rows, of all or of these, that repeat the content of an earlier one."""
    num_rows = len(keys if numbers is None else numbers)
    return num_rows - _num_distinct(keys.contents(numbers))


def _has_distinct(hashes: Iterable[bytes], number: int) -> bool:
    """Whether at least `number` of the hashes differ."""
    found: set[bytes] = set()
    for key in hashes:
        if len(found) >= number:
            break
        found.add(key)
    return len(found) >= number


def _num_distinct(hashes: Iterable[bytes]) -> int:
    """The number of different hashes.

    Sixteen parts are counted one by one, because a set takes six times the bytes of its hashes.
    """
    parts = [bytearray() for _ in range(16)]
    for key in hashes:
        parts[key[0] % 16] += key
    return sum(
        len({bytes(part[at : at + HASH_BYTES]) for at in range(0, len(part), HASH_BYTES)}) for part in parts
    )
