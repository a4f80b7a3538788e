"""The console for tables and styled text. Text on it is plain text, whoever wrote it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from lorastudy.cli.terminal import shown
from lorastudy.data.sources import ReadingProgress, watched

#: These marks surround the trained text besides its colour, for pipes and the colour-blind.
BEGIN, END = "[trained]", "[/trained]"


@contextmanager
def reading_shown() -> Iterator[None]:
    """Show on a terminal how far each pass over a data set is: rows, share of the file, time left."""
    console = PlainConsole(stderr=True)
    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    tasks: list[TaskID] = []

    def show(progress: ReadingProgress | None) -> None:
        if progress is None:
            while tasks:
                bar.remove_task(tasks.pop())
            bar.stop()
            return
        description = f"reading {shown(progress.name)}: {progress.num_rows:,} rows"
        if not tasks:
            bar.start()
            tasks.append(bar.add_task(description, total=progress.bytes_total))
        bar.update(tasks[0], completed=progress.bytes_read, description=description)

    try:
        with watched(show):
            yield
    finally:
        bar.stop()


class PlainConsole(Console):
    """Rich without its markup: no tags, no names of emoji, no escape sequences.

    That holds for strings everywhere, table cells included. A `Text` has its own style, so pass foreign text in it
    through `terminal.shown`.
    """

    def __init__(self, *, file: IO[str] | None = None, stderr: bool = False) -> None:
        """Prints to standard output by default."""
        super().__init__(file=file, stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as Rich lays it out, with terminal control characters escaped."""
        return super().render_str(shown(text), **options)
