"""What a command keeps for the next one in the user's cache folder, and which code it follows from.

Everything here can be made again. A file that cannot be read or written costs time and never a result.
"""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from lorastudy.version import PACKAGE


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
