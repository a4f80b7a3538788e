"""A smoke run on the oldest versions of torch, transformers and PEFT that are tested: is the product right there too?

    python -m benchmarks.smoke_oldest            makes .venv-oldest of requirements-oldest.txt, and runs (`make smoke-oldest`)
    python -m benchmarks.smoke_oldest --pinned   runs the same in .venv, on the versions of requirements.txt

Takes representatives of the tests, and the demo; all on the CPU, one after another, with one thread. Prints a line for
each part, and writes versions, counts and seconds to `benchmarks/results/smoke_oldest.json`. Exit code 1 if a part
failed. Where the wheels cannot be had, it prints why in one line, writes nothing, and ends with 0.

Runs under any Python from 3.11 on: nothing here imports the product or a library.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "smoke_oldest.json"
PINNED, OLDEST = "requirements.txt", "requirements-oldest.txt"
#: What PyTorch's wheels are made for first; also what most machines with a GPU have.
PYTHON = "3.12"
COMMANDS = {OLDEST: "make smoke-oldest", PINNED: "python -m benchmarks.smoke_oldest --pinned"}
#: Each part's name in the documents -> what it gives pytest.
TESTS: Mapping[str, Sequence[str]] = {
    "parity with PEFT": ("tests/parity/test_peft.py", "-k", "llama or gpt2"),
    "contract of the packed engine": ("tests/contract/test_engine.py", "-k", "packed"),
    "unit tests of the engine": ("tests/unit/engine",),
    "kernel count": ("tests/unit/benchmarks/test_kernel_count.py",),
    "a suite through the command line": ("tests/e2e/test_workflow.py",),
}
DEMO = "demo"
_HEAD = (
    "import json; from datetime import UTC, datetime; from benchmarks import machine; "
    "print(json.dumps(machine.head(now=datetime.now(UTC))))"
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What came of one part. The demo is one command and no test, so it counts none."""

    name: str
    exit_code: int
    seconds: float
    num_passed: int | None = None
    num_failed: int | None = None
    num_skipped: int | None = None


class WheelsMissingError(Exception):
    """The versions cannot be installed on this machine; holds pip's reason in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts in one environment; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smoke_oldest")
    parser.add_argument("--pinned", action="store_true", help="in .venv, on the versions of requirements.txt")
    chosen = parser.parse_args(arguments)
    requirements = PINNED if chosen.pinned else OLDEST
    try:
        python = ROOT / ".venv/bin/python" if chosen.pinned else installed(ROOT / ".venv-oldest")
    except WheelsMissingError as missing:
        print(f"skipped: {missing}")
        return 0
    head: dict[str, Any] = json.loads(_output([str(python), "-c", _HEAD]))
    print(", ".join(f"{name} {number}" for name, number in head["versions"].items()), flush=True)
    parts = []
    for part in parts_run(python):
        print(line(part), flush=True)
        parts.append(part)
    keep(
        RESULTS,
        requirements,
        {**head, "command": COMMANDS[requirements], "parts": [asdict(p) for p in parts]},
    )
    print(f"wrote {RESULTS.relative_to(ROOT)}")
    return 1 if any(part.exit_code for part in parts) else 0


def line(part: Part) -> str:
    """One part in one line."""
    verdict = "failed" if part.exit_code else "passed"
    counts = ""
    if part.num_passed is not None:
        counts = f": {part.num_passed} passed, {part.num_failed} failed, {part.num_skipped} skipped"
    return f"{verdict} {part.name}{counts} ({part.seconds:.1f} s)"


def keep(file: Path, requirements: str, run: Mapping[str, Any]) -> None:
    """Write this run into the file; that of the other requirements stays."""
    there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    file.write_text(
        json.dumps({**there, requirements: run}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


# --- the environment --------------------------------------------------------------------------------------


def installed(folder: Path) -> Path:
    """The Python of a virtual environment with the oldest versions; made anew when a list of requirements changed.

    Raises:
        WheelsMissingError: pip cannot get or store the wheels.
        RuntimeError: the versions contradict each other or the ranges of pyproject.toml.
    """
    python, mark = folder / "bin" / "python", folder / "installed.txt"
    wanted = "".join(f"{requirement}\n" for requirement in oldest_set(ROOT))
    if mark.exists() and mark.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing into {folder.name}, some 6 GB on disk", flush=True)
    subprocess.run([python_for_wheels(), "-m", "venv", "--clear", str(folder)], check=True)
    listed = folder / "requirements.txt"
    listed.write_text(wanted, encoding="utf-8")
    # The second run resolves the same set together with the product, so with the ranges of pyproject.toml.
    for options in (["-r", str(listed)], ["-r", str(listed), "--editable", str(ROOT)]):
        _pip_install(python, options)
    mark.write_text(wanted, encoding="utf-8")
    return python


def oldest_set(root: Path) -> list[str]:
    """The pinned requirements, with those of requirements-oldest.txt in their places."""
    oldest = {_name(text): text for text in _requirements(root / OLDEST)}
    pinned = [text for text in _requirements(root / PINNED) if _name(text) not in oldest]
    return [*pinned, *oldest.values()]


def python_for_wheels() -> str:
    """A Python 3.12 that starts, on the path or of pyenv; else the one that runs this."""
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    on_path = shutil.which(f"python{PYTHON}")
    for candidate in (
        *([on_path] if on_path else []),
        *sorted(map(str, versions.glob(f"{PYTHON}.*/bin/python"))),
    ):
        # A shim of pyenv stands on the path for versions that are not chosen, and fails.
        if subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    return sys.executable


def reason(said: str) -> str:
    """Why pip gave up, of all its errors, in one line: the first one says what, further ones where to read on."""
    errors = re.findall(r"^ERROR: (.+)$", said, re.MULTILINE)
    last = said.strip().splitlines()[-1:]
    return (errors or last or ["pip gave no reason"])[0].strip()


def _pip_install(python: Path, options: Sequence[str]) -> None:
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--disable-pip-version-check", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    # A limit in the user's own settings of pip ("constraint") makes a version impossible too; that is no contradiction.
    if "ResolutionImpossible" in done.stderr and "(constraint)" not in done.stdout:
        raise RuntimeError(f"{OLDEST} contradicts another requirement:\n{done.stdout}\n{done.stderr}")
    raise WheelsMissingError(reason(done.stderr))


def _requirements(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [text for text in lines if text and not text.startswith("#")]


def _name(requirement: str) -> str:
    return re.split(r"[\[=]", requirement, maxsplit=1)[0].lower()


# --- the parts --------------------------------------------------------------------------------------------


def parts_run(python: Path) -> Iterator[Part]:
    """Each part as it ends; what a failed one printed goes to the terminal."""
    for name, options in TESTS.items():
        yield _tests(python, name, options)
    with tempfile.TemporaryDirectory() as folder:
        code, seconds = _run([str(python), "-m", "lorastudy.cli.main", "demo"], folder=Path(folder))
    yield Part(name=DEMO, exit_code=code, seconds=seconds)


def _tests(python: Path, name: str, options: Sequence[str]) -> Part:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [str(python), "-m", "pytest", "-q", "-m", "not slow", f"--junit-xml={report}", *options]
        code, seconds = _run(command, folder=ROOT)
        counts = counted(report.read_text(encoding="utf-8")) if report.exists() else {}
    return Part(name=name, exit_code=code, seconds=seconds, **counts)


def counted(report: str) -> dict[str, int]:
    """How many tests passed, failed and were skipped, of pytest's report; a broken fixture is a failure."""
    head = re.search(r"<testsuite [^>]*>", report)
    assert head is not None
    number = {key: int(value) for key, value in re.findall(r'(\w+)="(\d+)"', head[0])}
    num_failed = number["failures"] + number["errors"]
    return {
        "num_passed": number["tests"] - num_failed - number["skipped"],
        "num_failed": num_failed,
        "num_skipped": number["skipped"],
    }


def _run(command: Sequence[str], *, folder: Path) -> tuple[int, float]:
    """Exit code and seconds; the output is shown only if it failed."""
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        print(f"{done.stdout}\n{done.stderr}", flush=True)
    return done.returncode, round(seconds, 1)


def _output(command: Sequence[str]) -> str:
    return subprocess.run(
        command, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def _environment() -> dict[str, str]:
    """This repository's packages, one thread and no GPU."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


if __name__ == "__main__":
    sys.exit(main())
