"""The content of a data set's columns, gathered row by row, so that every unused column is reported."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorastudy.data.conversations import fields_of
from lorastudy.data.sources import Row
from lorastudy.data.values import is_filled, records_of, switch
from lorastudy.errors import DataError
from lorastudy.suite.wording import shown

#: Columns whose entries are turns of a conversation. The fields of those turns are counted too.
_OF_TURNS = ("messages", "conversations")
#: How many different values of a column are counted, and the longest value that may be a label.
_MAX_VALUES, _MAX_VALUE = 200, 64
_MAX_COLUMNS, _MAX_NAME = 20, 40


@dataclass(kw_only=True)
class Column:
    """How many cells of a column are filled, and how often each value occurs, until there are too many for a label."""

    has_turns: bool = False
    """Whether the entries are conversations."""
    num_filled: int = 0
    values: Counter[str] | None = field(default_factory=Counter)

    def add(self, value: Any) -> None:
        """Count a filled cell."""
        self.num_filled += 1
        if self.values is None:
            return
        text = str(value) if isinstance(value, str | int | float) else ""
        if not text or len(text) > _MAX_VALUE:
            self.values = None
            return
        self.values[text] += 1
        if len(self.values) > _MAX_VALUES:
            self.values = None

    @property
    def repeats(self) -> bool:
        """Whether the values are few and repeat, as labels do."""
        return self.values is not None and 1 < len(self.values) <= self.num_filled / 2

    @property
    def num_off(self) -> int:
        """The number of cells that turn something off."""
        return sum(times for value, times in (self.values or {}).items() if switch(value) is False)

    @property
    def is_switch(self) -> bool:
        """Whether every filled cell turns something on or off."""
        return bool(self.values) and all(switch(value) is not None for value in self.values or ())


class Columns:
    """The columns of all added rows, in the order in which they first appeared."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.by_name: dict[str, Column] = {}
        self.turn_fields: Counter[str] = Counter()
        for row in rows:
            self.add(row.values)

    def add(self, values: Mapping[str, Any]) -> None:
        """Count the cells of one row."""
        for name, value in values.items():
            column = self.by_name.get(name)
            if column is None:
                column = self.by_name[name] = Column(has_turns=plain_name(name) in _OF_TURNS)
            if is_filled(value):
                column.add(value)
                if column.has_turns:
                    self._add_turns(name, value)

    def _add_turns(self, name: str, value: Any) -> None:
        turns = value if isinstance(value, list) else records_of(value)
        if isinstance(turns, list):
            fields = {key for turn in turns if isinstance(turn, dict) for key in fields_of(turn)}
            self.turn_fields.update(f"{name}[].{field}" for field in fields)

    @property
    def names(self) -> str:
        """The columns' names for a message."""
        return listed([shortened(name) for name in self.by_name])

    def by_plain_name(self) -> dict[str, str]:
        """The columns by their plain name.

        Raises:
            DataError: two names differ only in case or white space, so one would hide the other.
        """
        names: dict[str, str] = {}
        for column in self.by_name:
            other = names.setdefault(plain_name(column), column)
            if other != column:
                raise DataError(
                    f"columns {shown(other)} and {shown(column)} differ in case or white space alone; rename or remove one"
                )
        return names


def plain_name(column: str) -> str:
    """The name without differences that spreadsheets and people make: case, and white space around and inside."""
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def listed(names: Sequence[str]) -> str:
    """The first names, for a message."""
    more = f" and {len(names) - _MAX_COLUMNS} more" if len(names) > _MAX_COLUMNS else ""
    return ", ".join(names[:_MAX_COLUMNS]) + more or "(none)"


def shortened(name: str) -> str:
    """A column's name, shortened to fit into a message."""
    return name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..."


def counted(num_rows: int) -> str:
    """`1 row`, `12 rows`."""
    return f"{num_rows} row" if num_rows == 1 else f"{num_rows} rows"
