"""What a command prints: never an escape sequence, whoever wrote it, and in failures no secrets or personal paths.

Everything goes through `say`, or through a `PlainConsole` where it is laid out: answers, rows and failures, but also
the names in a store or in a table, which anybody may have made.
"""

from functools import cache
from typing import TextIO

from lorastudy.suite.safe_text import Privacy, printable_lines


def say(text: object = "", *, file: TextIO | None = None) -> None:
    """Print a text as `print` does, with whatever would steer the terminal escaped."""
    print(shown(str(text)), file=file)


def shown(text: str) -> str:
    """The text with whatever would steer the terminal escaped; escaping it twice changes nothing."""
    return printable_lines(text)


def error_shown(message: str) -> str:
    """A message for the user: host names stay, since a store's lock is told by its host."""
    return printable_lines(_privacy().hidden(message))


def failure_shown(message: str) -> str:
    """What a failure said, which is what people paste elsewhere."""
    return printable_lines(_privacy().hidden_failure(message))


def runs_own_code(base_model: str) -> str:
    """The line that nobody should overlook."""
    return f"trust_remote_code: {shown(base_model)} runs its own Python code, with your rights"


@cache
def _privacy() -> Privacy:
    return Privacy.of_this_machine()
