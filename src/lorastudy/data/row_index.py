"""What one pass over rows remembers: of each row that can be used where it stands, two hashes, and whether it asks anything.

Which row is on which side of a split follows from this alone, so that rows need not be held.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Self

from lorastudy.data.conversations import EMPTY_ANSWER
from lorastudy.data.formats import Format, checked, trained_rows
from lorastudy.data.sources import Row
from lorastudy.data.splits import RowKeys, content_hash, prompt_hash


@dataclass(frozen=True, kw_only=True)
class Index:
    """What one pass over rows remembers of those that can be used, in their order."""

    keys: RowKeys = field(default_factory=RowKeys)
    places: "array[int]" = field(default_factory=lambda: array("I"))
    """Where each row stands among all that were read."""
    asks_nothing: bytearray = field(default_factory=bytearray)
    """1 for a row that asks nothing: its answer is trained, and there is nothing that it answers."""

    BYTES_PER_ROW: ClassVar[int] = RowKeys.BYTES_PER_ROW + array("I").itemsize + 1

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def blank(cls, num_rows: int) -> Self:
        """An index of so many rows, of which nothing is known yet: `columns` are to be filled."""
        places = array("I", bytes(num_rows * array("I").itemsize))
        return cls(keys=RowKeys.blank(num_rows), places=places, asks_nothing=bytearray(num_rows))

    def columns(self) -> tuple[memoryview, ...]:
        """All that it remembers, as bytes that can be written and filled."""
        return (*self.keys.columns(), memoryview(self.places).cast("B"), memoryview(self.asks_nothing))


def index_rows(rows: Iterable[Row], fmt: Format, *, leaves_out_empty_answers: bool = False) -> Index:
    """The index of the rows that are trained, which are checked against the format as they come.

    Raises:
        DataError: a row lacks what the format needs, or cannot be read.
    """
    index = Index()
    numbered = _Numbered(rows)
    tolerated = (EMPTY_ANSWER,) if leaves_out_empty_answers else ()
    for read in checked(trained_rows(numbered, fmt), fmt, tolerated=tolerated):
        if read.problem is not None:
            continue
        index.keys.add(content=content_hash(read), prompt=prompt_hash(read))
        index.places.append(numbered.place)
        index.asks_nothing.append(read.asks_nothing)
    return index


class _Numbered:
    """Rows as they come, and the place of the last one."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows
        self.place = -1

    def __iter__(self) -> Iterator[Row]:
        for place, row in enumerate(self._rows):
            self.place = place
            yield row
