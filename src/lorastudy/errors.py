"""What can go wrong, in the user's words.

A `StudyError` is the user's to mend: its message says what is wrong, where, and what to do. The command
line prints it without a traceback and exits with 2. Mistakes of our own are `assert`s and stay loud.
"""

import re
from collections.abc import Sequence

#: What code of others raises where it cannot do what it is asked: that of any model, on a configuration or on tensors that it
#: was not written for.
FOREIGN_ERRORS = (
    RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError, ImportError, OSError,
)  # fmt: skip


def first_line(error: BaseException) -> str:
    """What an error of a library says in its first line, for a message of ours; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


#: Begin a stack of calls: Python's, which may have lost its title, and faulthandler's. Its other lines are indented.
_STACK = re.compile(r"\s*Traceback \(most recent call last\):|\s*File \".*\", line \d+")
_DUMP = re.compile(r".*\(most recent call first\):$")
_BESIDE_STACKS = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
    "Extension modules: ",
)


def without_tracebacks(text: str) -> str:
    """The text without stacks of calls; of errors that led to one another, what the last one says."""
    kept: list[str] = []
    last_error = 0
    is_in_stack = False
    for line in text.splitlines():
        if _STACK.match(line):
            is_in_stack, last_error = True, len(kept)
        elif _DUMP.match(line):
            is_in_stack = True
        elif not (is_in_stack and line[:1].isspace()):
            is_in_stack = False
            if not line.startswith(_BESIDE_STACKS):
                kept.append(line)
    return "\n".join(kept[last_error:]).strip() or "\n".join(kept).strip()


class StudyError(Exception):
    """Something the user can mend; the message says what, where and how."""


class SuiteFileError(StudyError):
    """All that is wrong with one suite file, each line as `file:line:col: path: cause`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class DataError(StudyError):
    """A data file that cannot be used as it stands; names the file and, where there is one, the line."""


class ModelError(StudyError):
    """A base model or an adapter that cannot be loaded, or does not fit what is asked of it."""


class StoreError(StudyError):
    """The results store is missing, locked, newer than this version, or damaged."""
