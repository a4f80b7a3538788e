"""What a data set *is*, as a hash, so that an experiment's identity follows content and not paths."""

import gzip
import hashlib
from pathlib import Path

from lorastudy.data.sources import LAB_PREFIX, files_of
from lorastudy.errors import DataError


def dataset_fingerprint(path: str) -> str:
    """SHA-256 (hex) of the file's bytes, of a compressed file unpacked; for `lab:<name>`, what the lab says of its recipe.

    Of several files it is the SHA-256 of their fingerprints, in the order in which they are read.

    Raises:
        DataError: a file is missing, damaged, or may not be read.
    """
    if path.startswith(LAB_PREFIX):
        from lorastudy import lab

        return lab.fingerprint(path.removeprefix(LAB_PREFIX))
    found = [_file_fingerprint(file) for file in files_of(path)]
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


def _file_fingerprint(file: Path) -> str:
    open_file = gzip.open if file.suffix.lower() == ".gz" else open
    try:
        with open_file(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except EOFError as error:
        raise DataError(f"{file}: is damaged or no gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
