"""What the linter says: a rule of fair comparison, and one breach of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from lorastudy.lint.case import Case

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
