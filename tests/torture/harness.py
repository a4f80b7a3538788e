"""How a row of the torture table is run: many faults of one kind, each followed by the question what was lost.

A row is a module of `faults` with

    ROW = Row(fault="...", must="...", short=..., default=..., kept=...)
    def run(*, amount: int, seed: int, folder: Path) -> FaultResult: ...

`amount` bounds the faults of one call, `seed` draws them, and `folder` is empty and its own. A row that
needs what not every machine has says so in a function `unavailable() -> str | None`. `run` injects every
fault into a fresh copy of something sound, and counts a violation whenever what must hold does not. It never stops
at the first one, and raises only when the row itself is broken. Equal arguments give equal faults.

Whether a row can see a fault is shown by its own test, `test_planted_<row>.py`, which plants a bug.
"""

import importlib
import pkgutil
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

_Item = TypeVar("_Item")

SECONDS_BETWEEN_LINES = 5.0
#: Linux's file system in memory, and how much of it must be free.
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 2**30


@dataclass(frozen=True, kw_only=True)
class FaultResult:
    """What came of one row: how many faults were injected, and how often what must hold did not.

    `detail` says what the faults came to, such as how many were detected and how many were harmless; where there
    are violations, it names the first ones, so that each can be repeated.
    """

    fault: str
    num_faults: int
    num_violations: int
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: which fault, what must hold, and how many of them are injected when.

    `short` takes seconds and is part of `make test`; `default` takes a minute or so; `kept` is what
    docs/reliability.md shows. A row that is `in_memory` asks nothing of the disk itself, as one about power cuts would:
    what a killed process gave to the system is there whether or not a disk has it.
    """

    fault: str
    must: str
    short: int
    default: int
    kept: int
    in_memory: bool = False


class FaultModule(Protocol):
    """A module of `faults`."""

    ROW: Row

    def run(self, *, amount: int, seed: int, folder: Path) -> FaultResult:
        """Inject at most `amount` faults and report what came of them."""
        ...


def names() -> list[str]:
    """Every row that there is."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "faults")]))


def module(name: str) -> FaultModule:
    """The module of a row."""
    return importlib.import_module(f"torture.faults.{name}")  # type: ignore[return-value]  # a module has no type


def unavailable(name: str) -> str | None:
    """Why a row cannot be run on this machine, as its own `unavailable()` says; None where it can."""
    reason: str | None = getattr(module(name), "unavailable", lambda: None)()
    return reason


def temporary_folder(name: str) -> tempfile.TemporaryDirectory[str]:
    """An empty folder for a row; without a disk under it where the row asks for none and the system has such a place."""
    has_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    place = MEMORY if module(name).ROW.in_memory and has_memory else None
    return tempfile.TemporaryDirectory(prefix=f"torture-{name}-", dir=place)


def counted(
    items: Iterable[_Item], *, total: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[_Item]:
    """The items as they are; now and then a line on stderr says how far that is and how long it still takes."""
    start = last = clock()
    for number, item in enumerate(items):
        now = clock()
        if number and now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (now - start) / number * (total - number)
            print(f"  {number} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)
        yield item


def tried(call: Callable[[], _Item]) -> _Item | Exception:
    """What a call returns, or the error that it raises: which errors are right is for the row to say."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - an error that nobody thought of is what a row looks for
        return error


def listed(violations: list[str], *, most: int = 3) -> str:
    """The first violations, for `detail`; empty where there are none."""
    if not violations:
        return ""
    more = f" (and {len(violations) - most} more)" if len(violations) > most else ""
    return "VIOLATED: " + "; ".join(violations[:most]) + more
