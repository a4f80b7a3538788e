"""The console for what is laid out or styled: text on it is text, whoever wrote it."""

from typing import IO, Any

from rich.console import Console
from rich.text import Text

from lorastudy.cli.terminal import shown


class PlainConsole(Console):
    """Rich without the languages that Rich reads out of a text: no markup, no names of emoji, no escape sequences.

    It holds for strings wherever they are printed, in the cells of a table too. A `Text` says its own style, so who
    makes one passes what others wrote through `terminal.shown`.
    """

    def __init__(self, *, file: IO[str] | None = None, stderr: bool = False) -> None:
        """Prints to standard output unless told otherwise."""
        super().__init__(file=file, stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as Rich lays it out, with whatever would steer the terminal escaped."""
        return super().render_str(shown(text), **options)
