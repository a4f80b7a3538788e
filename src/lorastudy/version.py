"""The version, and where the package lies: for modules that must not import the public names."""

from pathlib import Path

__version__ = "0.2.0"

PACKAGE = Path(__file__).parent
LAB_BASE = PACKAGE / "lab" / "base"
"""The folder of the base model called `lab`."""
