"""Each import contract holds, and a violation planted in a copy of the package breaks it."""

import configparser
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]

#: Contract -> (module, a line that breaks it). A module starting with "+" is a new file.
VIOLATIONS = {
    "layers": [
        ("suite/experiment.py", "import lorastudy.protocol.records"),
        ("protocol/records.py", "import lorastudy.running.runner"),
        ("engine/lora.py", "import lorastudy.evaluation.evaluator"),
        ("+helpers.py", "x = 1"),
    ],
    "two-sides": [
        ("cli/suite.py", "import torch"),
        ("report/write.py", "import lorastudy.engine.lora"),
        ("planning/packing.py", "import lorastudy.data.hub"),
        ("lab/catalogue.py", "import transformers"),
    ],
    "device-side": [("train/worker.py", "import lorastudy.store"), ("engine/lora.py", "import matplotlib")],
    "peft": [("engine/packed.py", "import peft")],
    "bitsandbytes": [("engine/loading.py", "import bitsandbytes")],
    "datasets": [("data/load.py", "import datasets")],
    "ray": [("running/study.py", "import ray")],
    "sql": [("stats/summary.py", "import sqlalchemy")],
    "pure-statistics": [("stats/twoway.py", "import lorastudy.store.tracker")],
}


def contract_ids() -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    return [name.rpartition(":")[2] for name in parser.sections() if ":contract:" in name]


def lint_imports(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", *options],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def copy_of_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy for all contracts; every test takes its violation out again."""
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignored)
    shutil.copy(ROOT / ".importlinter", folder)
    return folder


@contextmanager
def planted(path: Path, line: str) -> Iterator[None]:
    """Within, the module has this line at its end; a module that is not there consists of it."""
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")


def test_every_contract_is_tried() -> None:
    assert set(VIOLATIONS) == set(contract_ids())


def test_every_contract_holds(copy_of_package: Path) -> None:
    clean = lint_imports(copy_of_package)
    assert clean.returncode == 0, clean.stdout + clean.stderr


@pytest.mark.parametrize("contract", contract_ids())
def test_a_violation_breaks_its_contract(contract: str, copy_of_package: Path) -> None:
    for module, line in VIOLATIONS[contract]:
        with planted(copy_of_package / "src/lorastudy" / module.removeprefix("+"), line):
            broken = lint_imports(copy_of_package, "--contract", contract)
        assert broken.returncode == 1, f"{module}: {line}\n{broken.stdout}"
        assert "BROKEN" in broken.stdout or "broken" in broken.stdout or "not all" in broken.stdout.lower(), (
            broken.stdout
        )
