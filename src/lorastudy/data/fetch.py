"""Rows of whatever a user calls a data set: `alpaca`, a hub id, a file, or a set of the lab."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lorastudy.data.sources import LAB_PREFIX, Row, RowSource, is_pattern
from lorastudy.errors import DataError
from lorastudy.suite.hub import OFFLINE_VARIABLE, is_hub_reachable

ALPACA = "alpaca"
_ALPACA_ID = "tatsu-lab/alpaca"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")
_FILE_ENDING = re.compile(r"\.(jsonl?|csv|tsv|parquet|txt)(\.gz)?$", re.IGNORECASE)


@contextmanager
def fetched(*datasets: str) -> Iterator[Iterable[Row]]:
    """The rows, which can be gone through again and again until the end of the block; from the hub only if a name is no file's.

    Raises:
        DataError: no such file, the hub cannot be reached, or it has no such data set.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for number, dataset in enumerate(datasets):
            hub_id = hub_dataset(dataset)
            if hub_id is not None:
                path = Path(folder) / f"{number}.jsonl"
                _download(hub_id, path)
            names.append(dataset if hub_id is None else str(path))
        yield RowSource(
            *names, titles={name: hub_dataset(dataset) for name, dataset in zip(names, datasets, strict=True)}
        )


def hub_dataset(dataset: str) -> str | None:
    """The id under which the hub has the data set; None for a file, there or not, and for a set of the lab."""
    if dataset == ALPACA:
        return _ALPACA_ID
    return None if is_file_name(dataset) or not _HUB_ID.fullmatch(dataset) else dataset


def is_file_name(dataset: str) -> bool:
    """Whether it names a file (there or not) or a set of the lab, rather than a data set of the hub."""
    is_named_so = dataset.startswith(LAB_PREFIX) or is_pattern(dataset) or _FILE_ENDING.search(dataset)
    return bool(is_named_so) or Path(dataset).exists()


def dataset_name(dataset: str) -> str:
    """What the prepared files are called: a file's name without ending, a pattern's without its signs, a hub id's last part."""
    if is_file_name(dataset) and not dataset.startswith(LAB_PREFIX):
        name = _FILE_ENDING.sub("", Path(dataset).name)
        if not is_pattern(dataset):
            return name
        return re.sub(r"\W*[*?\[].*", "", name) or re.sub(r"\W+", "_", Path(dataset).parent.name) or "rows"
    return re.sub(r"[^\w.-]", "_", dataset.rpartition("/")[2])


def _download(hub_id: str, path: Path) -> None:
    """In another process, because `datasets` pulls in half a machine learning stack and this side stays light.

    Where the hub does not answer it works offline: what was fetched before is there, anything else fails at once.
    """
    offline = {} if is_hub_reachable() else {OFFLINE_VARIABLE: "1"}
    done = subprocess.run(  # noqa: S603 - our own module, an argument list, no shell
        [sys.executable, "-m", "lorastudy.data.hub", hub_id, str(path)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **offline},
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"{hub_id}: the download ended with {done.returncode}"]
        raise DataError(lines[-1])
