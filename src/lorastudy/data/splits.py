"""Which rows are held out, decided by what a row says and by nothing else.

A row's side follows from a hash of its own content. So a duplicate is always on the same side as its twin,
and adding, removing or reordering rows moves no other row across.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorastudy.data.examples import Example
from lorastudy.data.formats import Format
from lorastudy.data.sources import Row


@dataclass(frozen=True, kw_only=True)
class Split:
    """The three parts, each in the order of the rows. `test` is empty where no test part was asked for."""

    train: list[Example]
    held_out: list[Example]
    test: list[Example] = field(default_factory=list)


def content_hash(row: Row, fmt: Format) -> str:
    """SHA-256 (hex) of the row's texts in order, without regard to case, white space and Unicode form.

    Column names and empty texts play no part: the same question and answer as Alpaca row, as a pair and as a
    conversation of two turns are the same content.
    """
    return _digest([_normalised(text) for text in fmt.texts(row)])


def prompt_hash(row: Row, fmt: Format) -> str:
    """As `content_hash`, of what stands before the first answer. Plain text, and a row that asks nothing, has its content."""
    texts = [_normalised(text) for text in fmt.prompt(row)]
    return _digest(texts) if any(texts) else content_hash(row, fmt)


def prompt_groups(examples: Sequence[Example]) -> tuple[int, ...] | None:
    """For each row a number that rows of one prompt share, by first appearance; None where no two rows do."""
    numbers: dict[str, int] = {}
    groups = tuple(numbers.setdefault(example.prompt_hash, len(numbers)) for example in examples)
    return None if len(numbers) == len(groups) else groups


def split_by_content(
    examples: Sequence[Example], *, eval_fraction: float, test_fraction: float = 0.0, salt: str = ""
) -> Split:
    """Rows whose salted content hash, read as a number in [0, 1), is below `eval_fraction` are held out.

    Those of the next `test_fraction` are the test rows, so that asking for a test part takes rows from training
    and leaves the held-out ones as they were. The shares are met in expectation only: n rows give n * fraction
    held-out rows, give or take sqrt(n * fraction * (1 - fraction)).
    """
    split = Split(train=[], held_out=[])
    for example in examples:
        place = position(example.content_hash, purpose=f"split:{salt}")
        if place < eval_fraction:
            split.held_out.append(example)
        elif place < eval_fraction + test_fraction:
            split.test.append(example)
        else:
            split.train.append(example)
    return split


def position(content: str, *, purpose: str) -> float:
    """A number in [0, 1) drawn from the content hash; draws for two purposes are independent.

    They must be: a sample of the lowest hashes, split by the same hashes, would be held out whole.
    """
    digest = hashlib.sha256(f"{purpose}\n{content}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def num_duplicates(examples: Sequence[Example]) -> int:
    """Rows that repeat the content of an earlier row."""
    return len(examples) - len({example.content_hash for example in examples})


def overlap(train: Sequence[Example], held_out: Sequence[Example]) -> int:
    """Held-out rows whose content is also among the training rows."""
    seen = {example.content_hash for example in train}
    return sum(example.content_hash in seen for example in held_out)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(text for text in texts if text).encode()).hexdigest()


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
