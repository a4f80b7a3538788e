"""A machine on which the product is not installed: what it lacks comes as wheels, or is done without."""

import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

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


def import_engine() -> None:
    """Import the engines from this repository, also where bitsandbytes is missing.

    The engines ask of a layer whether it is one of bitsandbytes'. Where that is not installed nothing can be, so a
    stand-in whose layers nothing is an instance of answers truly. It stands only while the engine is imported: other
    libraries look bitsandbytes up by themselves and must not find it.

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
    if find_spec("bitsandbytes") is not None:
        return
    for name in ("peft", "transformers"):  # they look for bitsandbytes when they are imported
        import_module(name)
    sys.modules["bitsandbytes"] = stand_in()
    try:
        import_module("lorastudy.engine.quantised")  # it keeps the stand-in by its own name
    finally:
        del sys.modules["bitsandbytes"]


def stand_in() -> ModuleType:
    """Two layer types that nothing is an instance of."""
    module = ModuleType("bitsandbytes")
    kinds = {name: type(name, (), {}) for name in ("Linear4bit", "Linear8bitLt")}
    vars(module)["nn"] = SimpleNamespace(**kinds)
    return module
