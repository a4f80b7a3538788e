"""Where things lie unless the user says otherwise: the files of a study in its folder, and the user's cache folder.

The cache folder holds what a command keeps for the next one. Everything there can be made again. A file that cannot be read or
written costs time and never a result.
"""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from lorastudy.version import PACKAGE

#: The results store.
DATABASE = "results/experiments.db"
#: The run folders: records, adapters and logs of each attempt at a pack.
RUNS_DIR = Path("results/runs")
#: The trained adapters, each in `<name>/final_model`.
OUTPUT_DIR = Path("output")
#: The report in Markdown. Its HTML page lies beside it.
REPORT = Path("RESULTS.md")
#: The data sets that `lorastudy prepare` writes.
DATA_DIR = Path("data")


def cache_folder(kind: str) -> Path:
    """`$XDG_CACHE_HOME/lorastudy/<kind>`, by default under `~/.cache`."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "lorastudy" / kind


@cache
def source_digest(*patterns: str) -> str:
    """SHA-256 (hex) of the package's source files that fit the patterns, such as `data/*.py`."""
    source = PACKAGE
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in source.glob(pattern)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def keep(path: Path, parts: Iterable[bytes | bytearray | memoryview]) -> None:
    """Write a file whole or not at all. A folder that is full or may not be written is left as it is."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    with suppress(OSError):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.writelines(parts)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
