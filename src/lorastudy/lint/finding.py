"""A rule of fair comparison, a breach of it, and how findings name the arms and rows concerned."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lorastudy.lint.case import Case
from lorastudy.protocol.records import DataSummary

Severity = Literal["note", "warning", "invalidates"]
#: In the order in which findings are listed.
SEVERITIES: tuple[Severity, ...] = ("invalidates", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class Breach:
    """What one rule found in one case."""

    arms: tuple[str, ...]
    """The arms concerned, in the order of the study."""
    found: str
    """What is wrong, in one sentence without the names of the arms."""
    severity: Severity


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of fair comparison. Codes are stable: a code is never given a second meaning."""

    code: str
    title: str
    why: str
    """One sentence: what goes wrong."""
    source: str
    """Where this was shown."""
    change: str
    """What to change in the suite, or in how its results are read."""
    find: Callable[[Case], Iterator[Breach]]


@dataclass(frozen=True, kw_only=True)
class LintFinding:
    """One breach with the words of its rule: everything that a page or a program shows."""

    code: str
    title: str
    severity: Severity
    arms: tuple[str, ...]
    found: str
    why: str
    source: str
    change: str


#: Of more arms than this, only the first few are named, with their number.
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
    """Which sample of the rows was searched for near copies; empty if all were compared with all."""
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
