"""The output of commands: never an escape sequence, whoever wrote it, and in failures no secrets or personal paths.

All output goes through `say`, or through a `PlainConsole` for tables and styles. Answers, rows and failures are foreign
text, and so are the names in a store or a table, which anybody may have made.
"""

from functools import cache
from typing import TextIO

from lorastudy.suite.safe_text import Privacy, printable_lines


def say(text: object = "", *, file: TextIO | None = None) -> None:
    """Print a text like `print`, with terminal control characters escaped."""
    print(shown(str(text)), file=file)


def shown(text: str) -> str:
    """The text with terminal control characters escaped. Escaping it twice changes nothing."""
    return printable_lines(text)


def error_shown(message: str) -> str:
    """A message for the user. Host names stay, because they identify the holder of a store's lock."""
    return printable_lines(_privacy().hidden(message))


def failure_shown(message: str) -> str:
    """The message of a failure, without secrets or personal paths: people paste it elsewhere."""
    return printable_lines(_privacy().hidden_failure(message))


def runs_own_code(base_model: str) -> str:
    """The warning about code that the base model brings; nobody should overlook it."""
    return f"trust_remote_code: {shown(base_model)} runs its own Python code, with your rights"


@cache
def _privacy() -> Privacy:
    return Privacy.of_this_machine()
