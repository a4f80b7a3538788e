"""Answers as exact match takes them: which rows are asked, and when an answer says what the reference says."""

import math
import re
from collections.abc import Sequence

from lorastudy.data.tokenise import TokenRow


def asked_rows(
    rows: Sequence[TokenRow], *, max_new_tokens: int, max_rows: int, num_positions: int | None
) -> list[TokenRow]:
    """The first `max_rows` rows that ask something and whose answer fits the model's positions."""
    longest = math.inf if num_positions is None else num_positions - max_new_tokens
    return [row for row in rows if row.asks and len(row.prompt_ids) <= longest][:max_rows]


def is_match(answer: str, reference: str, *, pattern: str | None = None) -> bool:
    """Whether the answer says what the reference says; see `ExactMatch`."""
    said = what_counts(answer, pattern=pattern)
    return said is not None and said == what_counts(reference, pattern=pattern)


def what_counts(text: str, *, pattern: str | None = None) -> str | None:
    """The part of an answer that is compared; None where the pattern finds nothing in it.

    The whole of it without a pattern, else the first group of the last find. White space around it is removed, and inner
    white space is one space.
    """
    if pattern is None:
        return _normal(text)
    found = list(re.finditer(pattern, text))
    return _normal(found[-1].group(1) or "") if found else None


def _normal(text: str) -> str:
    return " ".join(text.split())
