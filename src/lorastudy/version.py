"""Versions, and where the package lies: for modules that must not import the public names."""

from functools import cache
from pathlib import Path

__version__ = "0.2.0"

PACKAGE = Path(__file__).parent
LAB_BASE = PACKAGE / "lab" / "base"
"""The folder of the base model called `lab`."""


@cache
def installed_version(library: str) -> str:
    """The version of an installed library, read once: each reading parses the library's whole description."""
    from importlib.metadata import version

    return version(library)
