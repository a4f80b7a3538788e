"""What can go wrong, in the user's words.

A `StudyError` is the user's to mend: its message says what is wrong, where, and what to do. The command
line prints it without a traceback and exits with 2. Mistakes of our own are `assert`s and stay loud.
"""

from collections.abc import Sequence


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
