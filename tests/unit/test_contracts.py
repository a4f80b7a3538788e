"""Each import contract holds, and a violation planted in a copy of the package breaks it."""

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Contract -> (module, a line that breaks it). A module starting with "+" is a new file.
VIOLATIONS = {
    "layers": [
        ("suite/experiment.py", "import lorastudy.protocol.records"),
        ("protocol/records.py", "import lorastudy.running.runner"),
        ("engine/lora.py", "import lorastudy.evaluation.perplexity"),
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
}


def contract_ids() -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    return [name.rpartition(":")[2] for name in parser.sections() if ":contract:" in name]


def lint_imports(folder: Path, contract: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--contract", contract],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy_of_package(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=ignored)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_every_contract_is_tried() -> None:
    assert set(VIOLATIONS) == set(contract_ids())


@pytest.mark.parametrize("contract", contract_ids())
def test_contract_holds_and_a_violation_breaks_it(contract: str, copy_of_package: Path) -> None:
    clean = lint_imports(copy_of_package, contract)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    for module, line in VIOLATIONS[contract]:
        path = copy_of_package / "src/lorastudy" / module.removeprefix("+")
        before = path.read_text(encoding="utf-8") if path.exists() else None
        path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
        broken = lint_imports(copy_of_package, contract)
        assert broken.returncode == 1, f"{module}: {line}\n{broken.stdout}"
        assert "BROKEN" in broken.stdout or "broken" in broken.stdout or "not all" in broken.stdout.lower(), (
            broken.stdout
        )
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")
