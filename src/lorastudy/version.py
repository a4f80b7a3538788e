"""Versions, of this package and of installed libraries, and where the package lies."""

from functools import cache
from pathlib import Path

from lorastudy.errors import StudyError

__version__ = "0.2.0"

PACKAGE = Path(__file__).parent
LAB_BASE = PACKAGE / "lab" / "base"
"""The folder of the base model called `lab`."""


@cache
def installed_version(library: str) -> str:
    """The version of an installed library, read once: each reading parses the library's whole description.

    Raises:
        StudyError: it is not installed; the message says how to install it.
    """
    from importlib import metadata

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError as error:
        raise StudyError(
            f"{library} is not installed in this Python environment, and lorastudy trains with it; "
            "install what it needs: pip install -r requirements.txt"
        ) from error
