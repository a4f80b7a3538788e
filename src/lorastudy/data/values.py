"""What a cell says, whatever file it came from.

A container adds things that nobody wrote: a null where another row's struct has a field, NaN for an empty cell,
a list of objects turned into an object of lists, JSON or Python's notation of a list inside a CSV cell. Here they
are taken away, so that the same rows are the same values in every container.
"""

import ast
import math
from typing import Any

from lorastudy.data.json_reading import is_too_deep, parsed_or_none

_SWITCHED_OFF = {0, "0", "0.0", "false"}
_SWITCHED_ON = {1, "1", "1.0", "true"}


def is_filled(value: Any) -> bool:
    """Whether the cell holds something: no null, no NaN, no blank text, no empty list or object."""
    if isinstance(value, str):
        return bool(value.strip())
    value = _of_python(value)
    return not _is_null(value) and value not in ([], {}, ())


def text_of(value: Any) -> str | None:
    """The text of a cell; "" for an empty one, None for what is no text.

    A number is the text that a CSV file has for it. True and false are refused: files spell them in several ways.
    """
    if isinstance(value, str):
        return value
    value = _of_python(value)
    if _is_null(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(value)


def structure_of(value: Any) -> Any:
    """The list or object of a cell, without what a container adds; None for an empty cell.

    Text is read as JSON or, as pandas writes it into CSV, as a literal of Python; text that is neither stays text.
    """
    value = without_nulls(value)
    if isinstance(value, str):
        if not value.strip():
            return None
        value = without_nulls(_parsed(value))
    return None if value in ([], {}) else value


def records_of(value: Any) -> Any:
    """`structure_of`, and an object of equally long lists as the list of objects that Arrow made it from."""
    value = structure_of(value)
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        return value
    lengths = {len(column) for column in value.values()}
    if len(lengths) != 1:
        return value
    rows = zip(*value.values(), strict=True)
    return [without_nulls(dict(zip(value, row, strict=True))) for row in rows]


def switch(value: Any) -> bool | None:
    """A cell that turns something on or off; None when it is neither."""
    value = _of_python(value)
    key = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(key, str | int | float):
        return None
    return False if key in _SWITCHED_OFF else True if key in _SWITCHED_ON else None


def without_nulls(value: Any) -> Any:
    """The value with plain lists and objects, and no null fields in them.

    Arrow gives every struct of a column the fields of all of them, so a null field and a missing one cannot be
    told apart.
    """
    if isinstance(value, str):
        return value
    value = _of_python(value)
    if isinstance(value, dict):
        items = ((key, without_nulls(item)) for key, item in value.items())
        return {key: item for key, item in items if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return None if _is_null(value) else value


def _of_python(value: Any) -> Any:
    """Scalars and arrays of numpy as Python's own, without importing numpy."""
    return value.tolist() if type(value).__module__ == "numpy" else value


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _parsed(text: str) -> Any:
    parsed = parsed_or_none(text)
    if parsed is not None or text.lstrip()[:1] not in "[{(":
        return text if parsed is None else parsed
    try:
        literal = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return text
    return text if is_too_deep(literal) else literal
