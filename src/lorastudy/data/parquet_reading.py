"""Rows of a Parquet file. What is wrong with one is told by its row; no part of it is dropped in silence."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorastudy.errors import DataError
from lorastudy.suite.wording import shown

ROWS_AT_ONCE = 1000


def parquet_values(file: Path) -> Iterator[Mapping[str, Any]]:
    """Each row as a dict.

    Raises:
        DataError: not Parquet, damaged, a column name stands twice, or a row cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            _check_columns(parquet.schema_arrow.names, file)
            row = 0
            for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from _rows(batch, file=file, first_row=row)
                row += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a readable Parquet file: {_first_line(error)}") from error


def _check_columns(names: list[str], file: Path) -> None:
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{file}: the column {shown(twice)} stands twice; keep one")


def _rows(batch: Any, *, file: Path, first_row: int) -> Iterator[Mapping[str, Any]]:
    """The rows of a batch; one by one where they cannot be had together, to know which it is."""
    try:
        yield from batch.to_pylist()
    except (
        ValueError,
        TypeError,
        OverflowError,
        KeyError,
    ):  # text that is no UTF-8, dates without a year ...
        for index in range(batch.num_rows):
            try:
                yield from batch.slice(index, 1).to_pylist()
            except (ValueError, TypeError, OverflowError, KeyError) as error:
                where = f"{file}[{first_row + index}]"
                raise DataError(f"{where}: cannot be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
