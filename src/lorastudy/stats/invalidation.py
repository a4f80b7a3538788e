"""What takes a verdict away: found by the linter, or told from outside, and said in the verdict's own line."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Blocker:
    """Something that makes a verdict about an arm invalid. `code` is the finding's, `why` one clause."""

    code: str
    why: str
