"""The format of rows that a test makes up."""

from lorastudy.data.formats import Columns, format_of
from lorastudy.data.row_index import check, trained_rows


def detect(rows, **flags):
    """The format that the names of the columns tell."""
    return format_of(Columns(rows), **flags)


def recognise(rows, **flags):
    """As `detect`, and every trained row is checked against it."""
    found = detect(rows, **flags)
    check(trained_rows(rows, found), found)
    return found
