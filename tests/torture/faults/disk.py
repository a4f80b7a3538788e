"""The disk is full, or fails once, at every single change that a suite makes to its files.

The command must say so in one message, keep what it has stored, and go on when it is given again: to the very store
and the very adapters of a run without a fault. A fault that hits something that does not matter may pass unsaid.
"""

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torture import studies
from torture.harness import FaultResult, Row, counted, listed

ROW = Row(
    fault="ENOSPC and EIO at the k-th write, fsync, rename, creation of a file or folder",
    must="nothing lost, one message, the same command goes on",
    short=4,
    default=100_000,  # every k, with both
    kept=100_000,
    in_memory=True,
)

HERE = Path(__file__).resolve().parents[1]
DRIVER = HERE / "disk_driver.py"
NAMES = {errno.ENOSPC: "disk full from", errno.EIO: "EIO at"}


def run(*, amount: int, seed: int, folder: Path, until: str | None = None) -> FaultResult:
    """Every change of the runner and of a worker that trains nothing."""
    return inject(ROW, worker="scripted", amount=amount, seed=seed, folder=folder, until=until)


def inject(
    row: Row, *, worker: str, amount: int, seed: int, folder: Path, until: str | None = None
) -> FaultResult:
    """Run a suite once without a fault to count its changes, and then with one at each of them.

    With `until` no further fault is injected after a violation that says this.
    """
    with driver(folder, worker=worker) as ask:
        undisturbed = ask({"fail_at": 0, "error": 0, "stays": 0})
        assert undisturbed["first"]["exit_code"] == 0, undisturbed["first"]["said"]
        faults = drawn(amount, num_changes=undisturbed["num_changes"], seed=seed)
        outcomes: Counter[str] = Counter()
        violations = []
        for fault in counted(faults, total=len(faults)):
            answer = ask(fault)
            wrong = violated(answer, undisturbed)
            outcomes["went through" if answer["first"]["exit_code"] == 0 else "stopped with a message"] += 1
            if wrong:
                violations.append(f"{NAMES[fault['error']]} change {fault['fail_at']}: {wrong}")
            if until is not None and until in wrong:
                break
    counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
    return FaultResult(
        fault=row.fault,
        num_faults=len(faults),
        num_violations=len(violations),
        detail="; ".join(
            filter(None, [f"a run makes {undisturbed['num_changes']} changes", counts, listed(violations)])
        ),
    )


def drawn(amount: int, *, num_changes: int, seed: int) -> list[dict[str, int]]:
    """Every change with both faults, or so many of these spread by chance."""
    every = [
        {"fail_at": fail_at, "error": error, "stays": stays}
        for fail_at in range(1, num_changes + 1)
        for error, stays in ((errno.ENOSPC, 1), (errno.EIO, 0))
    ]
    return every if amount >= len(every) else random.Random(seed).sample(every, amount)


#: By the system, and by SQLite.
_NAMES_OF_THE_FAULT = (os.strerror(errno.ENOSPC), os.strerror(errno.EIO), "disk is full", "disk I/O error")


def violated(answer: Mapping[str, Any], undisturbed: Mapping[str, Any]) -> str:
    """What did not hold; empty when all did."""
    first, again = answer["first"], answer["again"]
    wrong = []
    if "Traceback" in first["said"] or first["exit_code"] not in {0, 1, 2}:
        wrong.append(f"a traceback: {first['said'][-200:]!r}")
    if first["exit_code"] and first["said"].count("error: ") + first["said"].count("failed: ") != 1:
        wrong.append(f"not one message: {first['said'][-400:]!r}")
    if first["exit_code"] and not any(words in first["said"] for words in _NAMES_OF_THE_FAULT):
        wrong.append(f"a message without the fault: {first['said'][-400:]!r}")
    if again["exit_code"]:
        wrong.append(f"the command again: {again['said'][-300:]!r}")
    elif done_before(again["said"]) < len(answer["stored"]):
        wrong.append(f"{len(answer['stored'])} were stored as completed, and then: {again['said'][-200:]!r}")
    elif answer["content"] != undisturbed["content"]:
        wrong.append("another store than without the fault")
    elif answer["adapters"] != undisturbed["adapters"]:
        wrong.append("other adapters than without the fault")
    return "; ".join(wrong)


def done_before(said: str) -> int:
    """How many experiments the command found done. What a worker left on record and nobody had stored counts, too."""
    found = re.search(r"(\d+) done before", said)
    return int(found[1]) if found else 0


@contextmanager
def driver(folder: Path, *, worker: str) -> Iterator[Any]:
    """A function that has a fault injected and returns the driver's answer."""
    shim, control = folder / "shim.so", folder / "control"
    compile_shim(shim)
    control.write_bytes(bytes(6 * 8 + 4096))
    environment = studies.environment(
        TORTURE_DISK=str(control),
        LD_PRELOAD=str(shim),
        PYTHONPATH=f"{studies.SOURCE}:{HERE.parent}",
        PYTHONDONTWRITEBYTECODE="1",
    )
    process = subprocess.Popen(
        [sys.executable, str(DRIVER), str(folder / "study"), worker],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip

    def ask(fault: Mapping[str, int]) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(fault) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    with process:
        yield ask
        assert process.stdin is not None
        process.stdin.close()


def compile_shim(target: Path) -> None:
    """Make the library that stands before the C library."""
    compiler = compilers()[0]
    arguments: Sequence[str] = (
        "-shared",
        "-fPIC",
        "-O2",
        "-o",
        str(target),
        str(HERE / "disk_shim.c"),
        "-ldl",
    )
    subprocess.run([compiler, *arguments], check=True)


def unavailable() -> str | None:
    """Why this row cannot be run here; None where it can."""
    return (
        None
        if compilers()
        else "it needs a C compiler (cc, gcc or clang) for the library before the C library"
    )


def compilers() -> list[str]:
    """The C compilers of this machine."""
    return [found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))]
