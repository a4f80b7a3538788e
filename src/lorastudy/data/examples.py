"""The two values that the rest of `data` passes on: a piece of text that is trained or not, and a rendered row."""

from dataclasses import dataclass

from lorastudy.data.formats import Format
from lorastudy.data.sources import Row


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of text; the loss covers its tokens only if it is `trained`."""

    text: str
    trained: bool


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row with its rendering. Both hashes follow what the row says, not how a model renders it."""

    row: Row
    format: Format
    segments: tuple[Segment, ...]
    content_hash: str
    prompt_hash: str
