"""The values that the rest of `data` passes on: a piece of text that is trained or not, and a rendered row."""

from dataclasses import dataclass
from typing import Literal

from lorastudy.data.formats import Format
from lorastudy.data.sources import Row

Layout = Literal["chat", "alpaca", "plain", "text"]
"""What laid a row out: the model's chat template, Alpaca's prompt, plain headings or nothing, or no prompt at all."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of text; the loss covers its tokens only if it is `trained`.

    `end` says what ends an answer besides its own text: nothing, the EOS token, or the special token that stands next,
    where a template marks the end of a turn by the mark of the next role. Either is trained with the answer.
    """

    text: str
    trained: bool
    end: Literal["", "eos", "next"] = ""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A row's text as segments that follow each other with nothing between them, and what laid it out.

    `fell_back` is true where the chat template has no notion of functions, so that they were given to it as text. What
    the template writes by itself is its `preamble`, such as a default system prompt, and the `date` that it has for today.
    """

    segments: tuple[Segment, ...]
    layout: Layout
    fell_back: bool = False
    unseen: tuple[str, ...] = ()
    """Fields of the row's messages of which the text shows nothing."""
    preamble: str | None = None
    date: str | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row with its rendering. Both hashes follow what the row says, not how a model renders it."""

    row: Row
    format: Format
    rendering: Rendering
    content_hash: str
    prompt_hash: str

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The rendered text."""
        return self.rendering.segments
