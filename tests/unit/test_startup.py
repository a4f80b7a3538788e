"""What the commands of the control side import: nothing that takes seconds to load before it is needed.

How long they take is not asserted, for that depends on the machine. On two idle cores: `--help` 0.2 s, a dry run
of 200 experiments 0.7 s.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

import lorastudy
from lorastudy.protocol.records import Environment, Outcome, Pack, Score
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings

pytestmark = pytest.mark.long

DEVICE_SIDE = {"torch", "transformers", "peft", "datasets", "bitsandbytes", "accelerate", "ray"}
HEAVY = DEVICE_SIDE | {
    "alembic", "altair", "matplotlib", "numpy", "pandas", "pyarrow", "scipy", "sqlalchemy", "vl_convert",
}  # fmt: skip

#: Runs a command in this process and says what was imported when it was through.
_PROGRAM = """
import json, sys
from pathlib import Path
from lorastudy.cli.main import main

try:
    main(sys.argv[2:])
    code = 0
except SystemExit as exit:
    code = exit.code or 0
packages = sorted({name.partition(".")[0] for name in sys.modules})
Path(sys.argv[1]).write_text(json.dumps({"packages": packages, "code": code}))
"""

Imported = Callable[[Sequence[str]], set[str]]


@pytest.fixture
def imported(tmp_path: Path) -> Imported:
    """The packages that a command has imported when it ends, having done what it was asked."""

    def imported(arguments: Sequence[str]) -> set[str]:
        found = tmp_path / "imported.json"
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(found), *arguments],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result = json.loads(found.read_text())
        assert result["code"] == 0, done.stderr
        return set(result["packages"])

    return imported


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one suite of two completed experiments."""
    path = tmp_path / "results" / "experiments.db"
    experiments = [
        Experiment(
            name=f"r{rank}", arm=f"r{rank}", experiment_type="rank_ablation", seed=0,
            settings=Settings(lora_rank=rank), sources=Sources(base_model="base", dataset="rows"),
        )
        for rank in (4, 8)
    ]  # fmt: skip
    environment = Environment(
        python="3.11", torch=version("torch"), transformers=version("transformers"), peft=version("peft"),
        bitsandbytes=version("bitsandbytes"), lorastudy="0.1.0", device="cpu", device_name="cpu", num_threads=2,
    )  # fmt: skip
    with ExperimentTracker(path, writable=True) as tracker:
        tracker.register("the_suite", experiments)
        for each in experiments:
            origin = {"pack_id": f"pack-{each.id}", "attempt": 1}
            tracker.start_run(each.id, engine="packed", run_folder=tmp_path / each.name, **origin)
            score = Score(
                experiment_id=each.id, split="eval", metric="loss", version=1, unit="nats/token", value=1.5,
                items=(1.0, 2.0), weights=(1, 1),
            )  # fmt: skip
            for record in (environment, score, Outcome(experiment_id=each.id, status="completed", step=1)):
                assert tracker.take(record, **origin)
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["data", "preview", "--help"],
        *([verb, "--help"] for verb in ("prepare", "check", "suite", "import", "evaluate")),
    ],
)
def test_help_imports_nothing_heavy(imported: Imported, arguments: list[str]) -> None:
    assert not imported(arguments) & HEAVY


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    program = "import lorastudy, sys; assert lorastudy.__version__ and dir(lorastudy); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert not {name.partition(".")[0] for name in done.stdout.split()} & HEAVY


def test_the_version_is_printed_and_no_command_is_help(tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        command = [sys.executable, "-m", "lorastudy.cli.main", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout

    assert said("--version") == f"lorastudy {lorastudy.__version__}\n"
    assert "Which LoRA configuration to use" in said()
    assert "Which LoRA configuration to use" in said("--help")


def test_a_dry_run_of_200_experiments_imports_no_ml_library(imported: Imported, tmp_path: Path) -> None:
    ranks, rates = [1, 2, 4, 8, 16], [round(1e-4 * number, 5) for number in range(1, 11)]
    (tmp_path / "suite.yaml").write_text(
        f"suite_name: large\nbase_model: lab\ndataset_path: lab:facts\nseeds: [0, 1, 2, 3]\n"
        f"factors:\n  lora_rank: {ranks}\n  learning_rate: {rates}\n"
    )
    packages = imported(["suite", "suite.yaml", "--dry-run"])
    assert not packages & (HEAVY - {"sqlalchemy", "alembic"})
    assert not (tmp_path / "results").exists()


def test_status_imports_no_ml_library(imported: Imported, store: Path) -> None:
    assert not imported(["status", "--database", str(store)]) & DEVICE_SIDE


def test_a_report_imports_no_ml_library(imported: Imported, store: Path, tmp_path: Path) -> None:
    packages = imported(["report", "--database", str(store), "--output", str(tmp_path / "RESULTS.md")])
    assert not packages & DEVICE_SIDE
    assert (tmp_path / "RESULTS.md").is_file()


def test_what_an_executor_needs_imports_no_ml_library() -> None:
    program = "import sys, lorastudy.executors, lorastudy.cli.running; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & DEVICE_SIDE


def test_a_worker_that_trains_imports_neither_peft_nor_bitsandbytes(tmp_path: Path) -> None:
    """They take more than a second; only quantised bases, the reference engine and `evaluate` need them."""
    settings = Settings(
        base_model="lab", dataset_path="lab:facts", max_steps=1, quantization="fp32",
        max_generation_samples=0,
    )  # fmt: skip
    experiment = Experiment(
        name="one", arm="one", experiment_type="rank_ablation", seed=0, settings=settings,
        sources=Sources(base_model="lab", dataset="rows"),
    )  # fmt: skip
    Pack(id="pack-1", attempt=1, engine="auto", experiments=(experiment,)).write(tmp_path)
    program = "import sys; from lorastudy.train.worker import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert '"status":"completed"' in (tmp_path / "records.jsonl").read_text().replace(" ", "")
    assert not {name.partition(".")[0] for name in done.stdout.split()} & {"peft", "bitsandbytes"}
