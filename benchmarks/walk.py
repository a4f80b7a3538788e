r"""How many modules a suite passes on its way: from YAML to the first worker, and from the store to the page.

    python -m benchmarks.walk            prints both counts, and the modules

Counted are modules of the package in which a function runs; those that are merely imported are not. The answers of the planning
worker are cached beforehand, as on the second day of a study.
"""

import contextlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import lorastudy

_PACKAGE = str(Path(lorastudy.__file__).parent)
_SUITE = """
base_model: lab
dataset_path: lab:facts
max_steps: 2
seeds: [0, 1]
learning_rate: 0.01
factors:
  lora_rank: [1, 2]
"""


class _WorkerStartsError(Exception):
    """The first worker would start now."""


def main() -> int:
    """Walk both ways and print what was passed."""
    to_worker, to_page = passed()
    for name, modules in (
        ("from YAML to the first worker", to_worker),
        ("from the store to the page", to_page),
    ):
        print(f"{name}: {len(modules)} modules")
        for module in sorted(modules):
            print(f"  {module}")
    return 0


def passed() -> tuple[set[str], set[str]]:
    """The modules on the way from YAML to the first worker, and on that from the store to the page."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("walk.yaml").write_text(_SUITE, encoding="utf-8")
        command = [sys.executable, "-m", "lorastudy.cli.main", "suite", "walk.yaml"]
        subprocess.run(command, check=True, capture_output=True)
        fresh = [
            "suite",
            "walk.yaml",
            "--database",
            "fresh.db",
            "--runs-dir",
            "fresh",
            "--output-dir",
            "fresh",
        ]
        return _passed(fresh, until_worker=True), _passed(["report"], until_worker=False)


def _passed(arguments: Sequence[str], *, until_worker: bool) -> set[str]:
    """The modules in which a function ran while the command did."""
    from lorastudy.cli.main import main as command

    passed: set[str] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(_PACKAGE) and frame.f_code.co_name != "<module>":
            passed.add(Path(file).relative_to(_PACKAGE).as_posix())

    with _no_workers() if until_worker else contextlib.nullcontext():
        sys.argv = ["lorastudy", *arguments]
        threading.setprofile(look)
        sys.setprofile(look)
        try:
            with contextlib.suppress(SystemExit, _WorkerStartsError), contextlib.redirect_stdout(sys.stderr):
                command()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    return passed


def _no_workers() -> contextlib.AbstractContextManager[Any]:
    """A process that is started ends the walk."""
    return mock.patch.object(subprocess.Popen, "__init__", side_effect=_WorkerStartsError)


if __name__ == "__main__":
    sys.exit(main())
