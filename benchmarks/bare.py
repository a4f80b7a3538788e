"""A machine on which the product is not installed: what it lacks comes as wheels, or is done without."""

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.machine import ROOT

#: What the engines import beyond torch, transformers and peft.
NEEDED = ("pydantic", "peft", "transformers", "safetensors")


def install_wheels(folder: Path) -> None:
    """Unpack the wheels of a folder for this process alone, asking no index."""
    target = tempfile.mkdtemp(prefix="benchmark-wheels-")
    wheels = [str(path) for path in sorted(folder.glob("*.whl"))]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--target",
            target,
            *wheels,
        ],
        check=True,
    )
    sys.path.insert(0, target)


def make_engine_importable() -> None:
    """Have the engines imported from this repository; bitsandbytes is needed for rows in 4-bit and 8-bit alone.

    Raises:
        SystemExit: a library is missing; says which, and how to bring it.
    """
    sys.path.insert(0, str(ROOT / "src"))
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"missing here: {', '.join(missing)}. Where there is a network: pip download --only-binary=:all: "
            f"-d wheels {' '.join(missing)}; then give --wheels wheels"
        )
