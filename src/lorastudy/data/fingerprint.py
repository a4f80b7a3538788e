"""What a data set *is*, as a hash, so that an experiment's identity follows content and not paths."""

import hashlib

from lorastudy.data.sources import LAB_PREFIX, existing_file
from lorastudy.errors import DataError


def dataset_fingerprint(path: str) -> str:
    """SHA-256 (hex) of the file's bytes; for `lab:<name>`, what the lab says of its recipe.

    Raises:
        DataError: the file is missing or may not be read.
    """
    if path.startswith(LAB_PREFIX):
        from lorastudy import lab

        return lab.fingerprint(path.removeprefix(LAB_PREFIX))
    try:
        with existing_file(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
