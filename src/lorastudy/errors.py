"""Errors that the user can fix, and helpers to quote errors of libraries.

A `StudyError` is for the user: its message says what is wrong, where, and what to do. The command line prints it
without a traceback and exits with 2. Our own mistakes are `assert`s and show a traceback.
"""

import re
from collections.abc import Sequence

#: Errors that foreign code, such as a model's, raises for a configuration or tensors that it does not support.
FOREIGN_ERRORS = (
    RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError, ImportError, OSError,
)  # fmt: skip


def first_line(error: BaseException) -> str:
    """The first line of a library's error, to quote in our message; the error's type if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


#: Lines that begin a stack: Python's, which may lack its title, and faulthandler's. All other lines of it are indented.
_STACK = re.compile(r"\s*Traceback \(most recent call last\):|\s*File \".*\", line \d+")
_DUMP = re.compile(r".*\(most recent call first\):$")
_BESIDE_STACKS = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
    "Extension modules: ",
)


def without_tracebacks(text: str) -> str:
    """The text without stack traces. Of a chain of errors, only the last one's message stays."""
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
    """An error that the user can fix; the message says what, where and how."""


class SuiteFileError(StudyError):
    """All problems of a suite file, one line each: `file:line:col: path: cause`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class DataError(StudyError):
    """A data file cannot be used as it is. The message names the file and, if there is one, the line."""


class ModelError(StudyError):
    """A base model or an adapter cannot be loaded, or does not fit the settings."""


class StoreError(StudyError):
    """The results store is missing, locked, newer than this version, or damaged."""
