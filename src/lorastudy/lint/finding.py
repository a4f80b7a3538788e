"""What the linter says: a rule of fair comparison, and one breach of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lorastudy.lint.case import Case
from lorastudy.protocol.records import DataSummary

Severity = Literal["note", "warning", "invalidates"]

#: The gravest first, as they are listed.
SEVERITIES: tuple[Severity, ...] = ("invalidates", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Breach:
    """What one rule found in one case."""

    arms: tuple[str, ...]
    """The arms concerned, in the order of the study."""
    found: str
    """What is so, in one sentence without the arms' names."""
    severity: Severity


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of fair comparison. Codes are stable: a code is never given a second meaning."""

    code: str
    title: str
    why: str
    """One sentence: what goes wrong."""
    source: str
    """Where that was shown."""
    change: str
    """What to change in the suite, or in the reading of its results."""
    find: Callable[[Case], Iterator[Breach]]


@dataclass(frozen=True, kw_only=True)
class LintFinding:
    """One breach with its rule's words: all that a page or a program needs of it."""

    code: str
    title: str
    severity: Severity
    arms: tuple[str, ...]
    found: str
    why: str
    source: str
    change: str


#: With more arms than this only the first few are named, and how many there are is said.
MAX_NAMES = 6

NUM_NAMED_OF_MANY = 3


def arms_in_words(arms: Sequence[str], *, num_arms: int) -> str:
    """`r4, r8`; `all 5 arms`; `12 of 30 arms: r4, r8, ...` where a list would be too long to read."""
    if len(arms) == num_arms:
        return f"all {num_arms} arms"
    shown = [f"“{name}”" if " " in name or "," in name else name for name in arms]
    if len(arms) > MAX_NAMES:
        return f"{len(arms)} of {num_arms} arms: {', '.join(shown[:NUM_NAMED_OF_MANY])}, ..."
    return ", ".join(shown)


def sample_in_words(data: DataSummary) -> str:
    """On which part of the rows near copies were counted; empty where all were compared with all."""
    compared, compared_with, known = data.num_compared_rows, data.num_compared_with, data.num_known_rows
    if compared is None or compared_with is None or known is None:
        return ""
    num_texts = data.num_usable_texts + data.num_refused_rows
    if compared >= num_texts and compared_with >= known:
        return ""
    things = "rows" if data.num_usable_texts == data.num_rows else "texts"
    these = f"a sample of {compared:,} of {num_texts:,} {things} was compared"
    if compared >= num_texts:
        these = f"all {num_texts:,} {things} were compared"
    others = f"a sample of {compared_with:,} of {known:,}" if compared_with < known else f"all {known:,}"
    whose = "trained on or among the rows that choose" if data.split == "test" else "trained on"
    return f"{these} with {others} that are {whose}"
