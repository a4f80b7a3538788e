"""What can go wrong, in the user's words.

A `StudyError` is the user's to mend: its message says what is wrong, where, and what to do. The command
line prints it without a traceback and exits with 2. Mistakes of our own are `assert`s and stay loud.
"""

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
