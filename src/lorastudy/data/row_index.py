"""What one pass over rows remembers: of each row that can be used where it stands, two hashes, and whether it asks anything.

Which row is on which side of a split follows from this alone, so that rows need not be held.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar, Self

from lorastudy.data.columns import Columns
from lorastudy.data.conversations import EMPTY_ANSWER
from lorastudy.data.formats import Format, checked, trained_rows
from lorastudy.data.sources import Row
from lorastudy.data.splits import RowKeys, row_hashes
from lorastudy.errors import DataError

#: They show what all columns show, but for an odd row far down.
_NUM_FIRST_ROWS = 200


@dataclass(frozen=True, kw_only=True)
class Index:
    """What one pass over rows remembers of those that can be used, in their order."""

    keys: RowKeys = field(default_factory=RowKeys)
    places: "array[int]" = field(default_factory=lambda: array("I"))
    """Where each row stands among all that were read."""
    asks_nothing: bytearray = field(default_factory=bytearray)
    """1 for a row that asks nothing: its answer is trained, and there is nothing that it answers."""

    left_out: "array[int]" = field(default_factory=lambda: array("I"))
    """Where rows stand that are not in the index for their empty answer. Where such rows are no problem, as in `prepare`."""

    BYTES_PER_ROW: ClassVar[int] = RowKeys.BYTES_PER_ROW + array("I").itemsize + 1

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def blank(cls, num_rows: int) -> Self:
        """An index of so many rows, of which nothing is known yet: `columns` are to be filled."""
        places = array("I", bytes(num_rows * array("I").itemsize))
        return cls(keys=RowKeys.blank(num_rows), places=places, asks_nothing=bytearray(num_rows))

    def columns(self) -> tuple[memoryview, ...]:
        """All that it remembers of its rows, as bytes that can be written and filled."""
        return (*self.keys.columns(), memoryview(self.places).cast("B"), memoryview(self.asks_nothing))


@dataclass(frozen=True, kw_only=True)
class IndexedRows:
    """The format of some rows, and their index."""

    format: Format
    index: Index


def indexed_rows(
    rows: Iterable[Row], *, format_of: Callable[[Columns], Format], leaves_out_empty_answers: bool = False
) -> IndexedRows:
    """What the columns tell of the format, and the index of the rows by that, as `index_rows` makes it.

    The format follows from the columns of all rows. Those of the first rows nearly always tell the same, so the index is
    made by these in the pass that gathers the columns, and made again where the last rows tell something else. `rows` are
    gone through more than once.

    Raises:
        DataError: a row cannot be read; else, the columns tell no format; else, a row lacks what the format needs.
    """
    expected = _format_or_none(islice(rows, _NUM_FIRST_ROWS), format_of)
    gathering = _Gathering(rows)
    index, problem = Index(), None
    if expected is None:
        gathering.go_on()
    else:
        try:
            index = index_rows(gathering, expected, leaves_out_empty_answers=leaves_out_empty_answers)
        except DataError as error:
            if not gathering.is_through:
                raise
            problem = error
    fmt = format_of(gathering.columns)
    if expected is None or not fmt.reads_as(expected):
        index = index_rows(rows, fmt, leaves_out_empty_answers=leaves_out_empty_answers)
    elif problem is not None:
        raise problem
    return IndexedRows(format=fmt, index=index)


def _format_or_none(rows: Iterable[Row], format_of: Callable[[Columns], Format]) -> Format | None:
    try:
        return format_of(Columns(rows))
    except DataError:
        return None


class _Gathering:
    """Rows as they come, whose columns are gathered."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows
        self.columns = Columns()
        self.is_through = False

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.columns.add(row.values)
            yield row
        self.is_through = True

    def go_on(self) -> None:
        """Gather the columns of all rows."""
        for _ in self:
            pass


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
            index.left_out.append(numbered.place)
            continue
        content, prompt = row_hashes(read)
        index.keys.add(content=content, prompt=prompt)
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
