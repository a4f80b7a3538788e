"""A user's folder, and the command line as the user has it: another process."""

import csv
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from here import run_here
from lorastudy import lab

ROOT = Path(__file__).parents[2]
NUM_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A working folder in which commands are typed, each within `wrapper` (a program with its arguments)."""

    path: Path
    wrapper: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: {"HF_HUB_OFFLINE": "1"})

    def run(self, command: str, *, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """What a command printed; it must end with the expected exit code, and never with a traceback."""
        program, *arguments = shlex.split(command)
        programs = {"python": [sys.executable], "lorastudy": [sys.executable, "-m", "lorastudy.cli.main"]}
        done = subprocess.run(
            [*self.wrapper, *programs[program], *arguments],
            cwd=self.path,
            # One thread: a model this small is slower with more.
            env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expect, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def here(self, command: str, *, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """The same as `run` for a `lorastudy` command that leaves the process of the test as it was."""
        program, *arguments = shlex.split(command)
        assert program == "lorastudy"
        assert not self.wrapper
        done = run_here(
            arguments, cwd=self.path, environment={"OMP_NUM_THREADS": "1", **self.environment, **environment}
        )
        assert done.returncode == expect, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def write(self, name: str, text: str) -> None:
        """Save a file."""
        (self.path / name).write_text(text, encoding="utf-8")

    def files(self) -> set[str]:
        """All files under it, by their path from it."""
        return {path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Folder]:
    """A clone of the repository as far as the commands need it, a base model's folder, and rows in a CSV file."""

    def make(name: str) -> Folder:
        path = tmp_path_factory.mktemp(name)
        for part in ("scripts", "configs"):
            (path / part).symlink_to(ROOT / part)
        shutil.copytree(lab.base_folder(), path / "model")
        with (path / "people.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=["prompt", "completion", "separator"])
            writer.writeheader()
            writer.writerows(lab.rows("facts")[:NUM_ROWS])
        return Folder(path=path)

    return make
