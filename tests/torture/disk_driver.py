"""Runs a suite again and again in one process each, with a change to its files failing: the inside of the row `disk`.

    TORTURE_DISK=control LD_PRELOAD=shim.so python disk_driver.py FOLDER < faults

Reads one JSON line for each fault (`fail_at`, `error`, `stays`) and answers each with one: what was said, with which
exit code, and what is there after the same command ran again on a sound disk. The process imports once and forks for
each suite; the folder is the same each time, since identities depend on nothing else and messages name it.
"""

import ctypes
import json
import mmap
import os
import shutil
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorastudy.cli import running
from lorastudy.cli import suite as suite_command
from lorastudy.cli.estimating import SuitePlan
from lorastudy.cli.main import main
from lorastudy.errors import StoreError
from lorastudy.executors import LocalExecutor
from lorastudy.tracker import ExperimentTracker
from torture import studies

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
        ("below", ctypes.c_char * 4096),
    )


def drive() -> None:
    """Answer every line of standard input."""
    folder = Path(sys.argv[1]).resolve()
    control = mapped(Path(os.environ["TORTURE_DISK"]))
    for line in sys.stdin:
        print(json.dumps(injected(json.loads(line), folder=folder, control=control)), flush=True)


def injected(fault: Mapping[str, int], *, folder: Path, control: Control) -> dict[str, Any]:
    """One suite on a faulty disk, and then the same command on a sound one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "suite.yaml").write_text(SUITE_FILE, encoding="utf-8")
    (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    control.num_changes = control.num_failed = 0
    control.error, control.stays, control.fail_at = fault["error"], fault["stays"], fault["fail_at"]
    control.below = str(folder / "").encode() + b"/"
    first = forked(folder)
    num_changes, num_failed = control.num_changes, control.num_failed
    control.below = b""
    stored = in_store(folder)
    again = forked(folder)
    return {
        "num_changes": num_changes,
        "num_failed": num_failed,
        "first": first,
        "stored": stored,
        "again": again,
        "content": studies.text(studies.content(folder / studies.DATABASE))
        if not again["exit_code"]
        else None,
        "adapters": adapters(folder),
    }


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
    """The published adapters."""
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted((folder / "output").rglob("*"))
        if path.is_file()
    }


def forked(folder: Path) -> dict[str, Any]:
    """`lorastudy suite suite.yaml` in a process of its own: what it said and its exit code."""
    said = folder.with_name("said.txt")
    child = os.fork()
    if not child:
        with said.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os.chdir(folder)
            os._exit(commanded())
    _, status = os.waitpid(child, 0)
    return {"exit_code": os.waitstatus_to_exitcode(status), "said": said.read_text(encoding="utf-8")}


def commanded() -> int:
    """The exit code of the command, with workers that train nothing, and no other worker to predict their memory."""
    running.plan_of = lambda _: SuitePlan()
    suite_command._executor = lambda *_, **__: LocalExecutor(worker=(str(studies.SCRIPTED_WORKER),))
    try:
        main(["suite", "suite.yaml"])
    except SystemExit as exit_:
        sys.stdout.flush()
        sys.stderr.flush()
        return int(exit_.code or 0)
    except BaseException:  # noqa: BLE001 - a traceback is what the row looks for
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return 99


def mapped(file: Path) -> Control:
    """The file as shared memory."""
    with file.open("r+b") as opened:
        return Control.from_buffer(mmap.mmap(opened.fileno(), ctypes.sizeof(Control)))


if __name__ == "__main__":
    drive()
