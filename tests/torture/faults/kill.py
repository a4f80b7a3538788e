"""SIGKILL of the runner or of the worker, at random moments and inside the writing of a checkpoint.

The runner is a fork of this process, and its worker a fork of that. A kill is set either by what the runner has
acknowledged (after the n-th record it took, and a few milliseconds more), or by what the worker has made durable (in the
n-th write, before the n-th fsync, before or after the n-th rename). Then the suite is run again to its end, over whatever
the first runner's worker may still be writing, and held against one that was left alone.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import forked
from lorastudy.protocol import files as sealed
from lorastudy.protocol import parent_watch as lifeline
from lorastudy.store import ExperimentTracker
from lorastudy.train.checkpointing import TrainingTimes
from torture.harness import FaultResult, Row, counted, listed

ROW = Row(
    fault="SIGKILL of runner or worker at random moments, inside checkpoint writing too",
    must="0 acknowledged records lost, 0 duplicated, resumed adapters and metrics bit-identical",
    short=3,
    default=200,
    kept=1000,
    in_memory=True,
)
#: A suite is killed so often before it may run to its end.
MOST_KILLS = 3
#: Three checkpoints, of which two are kept.
NUM_STEPS = 6
ACKNOWLEDGED, DURABLE, WORKER = "acknowledged", "durable", "worker.pid"


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill: of whom, and after how many records that the runner took or things that the worker made durable."""

    victim: str
    number: int
    delay: float


def run(*, amount: int, seed: int, folder: Path) -> FaultResult:
    """Kill `amount` times."""
    torch.set_num_threads(1)
    draw = random.Random(seed)
    suite = forked.tiny_suite(folder, max_steps=NUM_STEPS)
    calm = folder / "calm"
    start(suite, calm, kill=None)
    expected = forked.everything(calm)
    assert all(each["status"] == "completed" and each["adapter"] for each in expected.values())
    limits = {name: len((calm / name).read_bytes()) for name in (ACKNOWLEDGED, DURABLE)}
    violations: list[str] = []
    num_vain = 0
    rounds = _rounds(draw, amount=amount, limits=limits)
    for kills in counted(rounds, total=len(rounds)):
        disturbed = folder / "disturbed"
        num_vain += sum(start(suite, disturbed, kill=kill) for kill in kills)
        before = _completed(disturbed)
        start(suite, disturbed, kill=None)
        differences = _differences(disturbed, expected=expected, before=before)
        violations += [f"after {kills}: {what}" for what in differences]
        shutil.rmtree(disturbed)
    num_kills = sum(map(len, rounds))
    return FaultResult(
        fault=ROW.fault,
        num_faults=num_kills,
        num_violations=len(violations),
        detail=listed(violations)
        or f"{num_kills - num_vain} kills hit a living process, {num_vain} came after its end",
    )


def start(suite: forked.TinySuite, folder: Path, *, kill: Kill | None) -> bool:
    """Run the suite in a process of its own, which is killed as told; whether it ended before that."""
    if not folder.exists():
        folder.mkdir()
        _make_store(
            folder
        )  # before, since no kill comes before its first record, and it takes as long as training
    for name in (ACKNOWLEDGED, DURABLE, WORKER):
        (folder / name).unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        _run_and_exit(suite, folder, kill=kill)
    if kill is not None and kill.victim in {"runner", "worker"}:
        _kill_after(kill, folder, runner=pid)
    _, status = os.waitpid(pid, 0)
    return kill is not None and status == 0 and kill.victim == "runner"


def _make_store(folder: Path) -> None:
    empty = folder.with_name("empty.db")
    if not empty.exists():
        ExperimentTracker(empty, writable=True).close()
    shutil.copy(empty, folder / "experiments.db")


def _run_and_exit(suite: forked.TinySuite, folder: Path, *, kill: Kill | None) -> None:
    code = 1
    try:
        descriptor = os.open(folder / ACKNOWLEDGED, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        executor = forked.ForkedExecutor(
            cache=suite.cache,
            in_worker=lambda run_folder: _in_worker(folder, run_folder, kill=kill),
            on_fork=lambda pid: (folder / WORKER).write_text(str(pid)),
        )
        forked.run(suite, folder, executor=executor, on_event=lambda *_: os.write(descriptor, b"."))
        code = 0
    finally:
        os._exit(code)


def _in_worker(folder: Path, run_folder: Path, *, kill: Kill | None) -> None:
    """The worker ends with its runner, as it does in life but sooner, and counts what it makes durable."""
    lifeline.SECONDS_BETWEEN_LOOKS = 0.05
    os.environ[lifeline.PARENT_VARIABLE] = str(os.getppid())
    lifeline.end_with_parent()
    descriptor = os.open(folder / DURABLE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    at = kill.number if kill is not None and kill.victim == "worker, durable" else None
    if kill is not None and kill.victim == "worker, step" and run_folder.name == "attempt-1":
        _die_after_step(kill.number)

    def is_time() -> bool:
        os.write(descriptor, b".")
        return at is not None and os.fstat(descriptor).st_size == at

    _die_when(is_time)


def _die_when(is_time: Callable[[], bool]) -> None:
    fsync, rename, write = os.fsync, Path.rename, sealed._write

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dying_fsync(descriptor: int) -> None:
        if is_time():
            die()
        fsync(descriptor)

    def dying_rename(path: Path, target: Path) -> Path:
        if is_time():
            die()
        renamed = rename(path, target)
        if is_time():
            die()
        return renamed

    def dying_write(path: Path, content: bytes) -> None:
        if is_time():
            path.write_bytes(content[: len(content) // 2])
            die()
        write(path, content)

    os.fsync, Path.rename, sealed._write = dying_fsync, dying_rename, dying_write


def _die_after_step(number: int) -> None:
    """For tests that want a kill at one place and no other; a first attempt alone meets it."""
    step = TrainingTimes.step

    def last_step(times: TrainingTimes, num_tokens: int) -> float:
        if len(times.seconds) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(times, num_tokens)

    TrainingTimes.step = last_step


def _kill_after(kill: Kill, folder: Path, *, runner: int) -> None:
    """Wait until the runner has taken so many records, and a little; or until it has ended."""
    acknowledged = folder / ACKNOWLEDGED
    while not acknowledged.exists() or acknowledged.stat().st_size < kill.number:
        if os.waitid(os.P_PID, runner, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.001)
    time.sleep(kill.delay)
    with suppress(ProcessLookupError, FileNotFoundError, ValueError):
        os.kill(runner if kill.victim == "runner" else int((folder / WORKER).read_text()), signal.SIGKILL)


def _rounds(draw: random.Random, *, amount: int, limits: dict[str, int]) -> list[list[Kill]]:
    """The kills, by the suite that they befall."""
    rounds: list[list[Kill]] = []
    left = amount
    while left:
        num_kills = min(draw.randint(1, MOST_KILLS), left)
        rounds.append([_drawn(draw, limits=limits) for _ in range(num_kills)])
        left -= num_kills
    return rounds


def _drawn(draw: random.Random, *, limits: dict[str, int]) -> Kill:
    victim = draw.choice(["runner", "worker", "worker, durable"])
    limit = limits[DURABLE if victim == "worker, durable" else ACKNOWLEDGED]
    return Kill(victim=victim, number=draw.randint(1, limit), delay=draw.uniform(0.0, 0.02))


def _completed(folder: Path) -> set[str]:
    """What the store called completed before the suite was run again."""
    if not (folder / "experiments.db").exists():
        return set()
    with ExperimentTracker(folder / "experiments.db") as tracker:
        return {
            f"{run.experiment_id}/{run.attempt}"
            for result in tracker.get_all_experiments()
            for run in tracker.get_runs([result.experiment_id])
            if run.status == "completed"
        }


def _differences(folder: Path, *, expected: dict[str, Any], before: set[str]) -> Iterator[str]:
    found = forked.everything(folder)
    for name, wanted in expected.items():
        for key, value in wanted.items():
            if found[name][key] != value:
                yield f"{name}: {key} differ from those of a suite that was left alone"
    after = _completed(folder)
    if not before <= after:
        yield f"acknowledged as completed and lost: {sorted(before - after)}"
    if len(after) != len(expected):
        yield f"{len(after)} completed runs of {len(expected)} experiments"
    with ExperimentTracker(folder / "experiments.db") as tracker:
        if tracker.verify():
            yield "the store has damaged rows"
