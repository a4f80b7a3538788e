"""Runs a suite again and again in one process each, with a change to its files failing: the inside of the disk rows.

    TORTURE_DISK=control LD_PRELOAD=shim.so python disk_driver.py FOLDER WORKER < faults

Reads one JSON line for each fault (`fail_at`, `error`, `stays`) and answers each with one: what was said, with which
exit code, and what is there after the same command ran again on a sound disk. WORKER is `scripted`, and then every
change counts; or `real`, and then those of the worker alone do.

The process imports once and forks for each suite and each worker, and runs a suite by itself first so that nothing is
left to import; the folder is the same each time, since identities depend on nothing else and messages name it.
"""

import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import forks
from lorastudy.cli import suite as suite_command
from lorastudy.cli.main import main
from lorastudy.errors import StoreError
from lorastudy.executors import LocalExecutor
from lorastudy.planning import study_plan
from lorastudy.planning.predictions import Predictions
from lorastudy.protocol.files import exit_code_of
from lorastudy.store import ExperimentTracker
from torture import scripted_worker, studies

SUITE_FILE = """\
suite_name: torture
experiment_type: rank_ablation
base_model: lab
dataset_path: rows.jsonl
eval_fraction: 0.5
max_steps: 3
factors:
  lora_rank: [1, 2]
"""
ROWS = "".join(f'{{"prompt": "question {number}", "completion": "{number}"}}\n' for number in range(4))


class Control(ctypes.Structure):
    """What the shim reads and writes (`struct control` in disk_shim.c)."""

    _fields_ = (
        ("num_changes", ctypes.c_int64),
        ("fail_at", ctypes.c_int64),
        ("error", ctypes.c_int64),
        ("stays", ctypes.c_int64),
        ("num_failed", ctypes.c_int64),
        ("of_process", ctypes.c_int64),
        ("below", ctypes.c_char * 4096),
    )


@dataclass(frozen=True, kw_only=True)
class Study:
    """A suite and its worker. `files` are the suite's, `content` is what its store must say whatever befell it."""

    files: Mapping[str, str]
    program: forks.Program
    content: Callable[[Path], str]
    counts_worker_alone: bool = False


def drive() -> None:
    """Answer every line of standard input."""
    folder, kind = Path(sys.argv[1]).resolve(), sys.argv[2]
    control = mapped(Path(os.environ["TORTURE_DISK"]))
    study = real(folder, control) if kind == "real" else scripted()
    prepare(folder, study)
    with contextlib.chdir(folder), said_into(folder.with_name("said.txt")):
        assert commanded(study) == 0
    for line in sys.stdin:
        print(json.dumps(injected(json.loads(line), study, folder=folder, control=control)), flush=True)


def scripted() -> Study:
    """A suite whose worker trains nothing."""
    return Study(
        files={"suite.yaml": SUITE_FILE, "rows.jsonl": ROWS},
        program=lambda folders: exit_code_of(scripted_worker.main, folders),
        content=lambda folder: studies.text(studies.content(folder / studies.DATABASE)),
    )


def real(folder: Path, control: Control) -> Study:
    """A suite of two arms on a model of a few kilobytes, trained by the worker itself."""
    import torch

    import forked
    from lorastudy.train import worker

    torch.set_num_threads(1)
    inputs = folder.with_name("inputs")
    inputs.mkdir()
    suite = forked.tiny_suite(inputs, max_steps=3, seeds=[0])

    def program(folders: Sequence[str]) -> NoReturn:
        control.of_process = os.getpid()
        worker.BaseCache = lambda: suite.cache
        with forked.patched():
            worker.as_program(folders)

    return Study(
        files={"suite.yaml": json.dumps(suite.values)},
        program=program,
        content=lambda folder: repr(forked.everything(folder, database=studies.DATABASE)),
        counts_worker_alone=True,
    )


def injected(fault: Mapping[str, int], study: Study, *, folder: Path, control: Control) -> dict[str, Any]:
    """One suite on a faulty disk, and then the same command on a sound one."""
    prepare(folder, study)
    control.num_changes = control.num_failed = 0
    # of no process until the worker gives its own
    control.of_process = -1 if study.counts_worker_alone else 0
    control.error, control.stays, control.fail_at = fault["error"], fault["stays"], fault["fail_at"]
    control.below = str(folder / "").encode() + b"/"
    first = forked_command(folder, study)
    num_changes, num_failed = control.num_changes, control.num_failed
    control.below = b""
    stored = in_store(folder)
    again = forked_command(folder, study)
    return {
        "num_changes": num_changes,
        "num_failed": num_failed,
        "first": first,
        "stored": stored,
        "again": again,
        "content": None if again["exit_code"] else study.content(folder),
        "adapters": adapters(folder),
    }


def prepare(folder: Path, study: Study) -> None:
    """The folder with the suite's files and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in study.files.items():
        (folder / name).write_text(content, encoding="utf-8")


def in_store(folder: Path) -> list[str]:
    """The experiments that the store calls completed; nothing where there is no store, or it is still empty."""
    database = folder / studies.DATABASE
    if not database.exists():
        return []
    try:
        with ExperimentTracker(database) as tracker:
            assert tracker.verify() == []
            return [result.experiment_id for result in tracker.get_all_experiments(status="completed")]
    except StoreError as error:
        if "is empty" not in str(error):
            raise
        return []


def adapters(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of the published adapters."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((folder / "output").rglob("*"))
        if path.is_file()
    }


def forked_command(folder: Path, study: Study) -> dict[str, Any]:
    """`lorastudy suite suite.yaml` in a process of its own: what it said and its exit code."""
    said = folder.with_name("said.txt")
    child = os.fork()
    if not child:
        with said.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os.chdir(folder)
            os._exit(commanded(study))
    _, status = os.waitpid(child, 0)
    return {"exit_code": os.waitstatus_to_exitcode(status), "said": said.read_text(encoding="utf-8")}


def commanded(study: Study) -> int:
    """The exit code of the command, with the study's worker, and no other worker to predict memory."""
    study_plan.with_memory = lambda *_, **__: Predictions()
    suite_command._executor = lambda *_, **__: LocalExecutor()
    with forks.workers(study.program):
        return forks.exit_code(lambda arguments: main(arguments) or 0, ["suite", "suite.yaml"])


@contextlib.contextmanager
def said_into(file: Path) -> Iterator[None]:
    """Within, what this process says goes into a file."""
    with file.open("w", encoding="utf-8") as said:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield


def mapped(file: Path) -> Control:
    """The file as shared memory."""
    with file.open("r+b") as opened:
        return Control.from_buffer(mmap.mmap(opened.fileno(), ctypes.sizeof(Control)))


if __name__ == "__main__":
    drive()
