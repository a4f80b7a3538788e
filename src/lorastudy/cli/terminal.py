"""What other people wrote, as it may stand on a terminal: without escape sequences, secrets or personal paths.

Everything that a command prints and that did not come from its own command line goes through here: answers,
rows, failures, names in files.
"""

from functools import cache

from lorastudy.spec.printable import printable_lines
from lorastudy.spec.privacy import Privacy


def shown(text: str) -> str:
    """The text with whatever would steer the terminal escaped."""
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
