"""Checkpoints that are torn or have rotted: each file cut at 16 points, missing, and with single bits flipped.

The folder of an interrupted pack is copied, damaged, and asked what a new attempt would go on from. That must be the
newest checkpoint with the very state that was written, or the one before it with the damage named, or nothing at all
with the damage named; never a state that nobody wrote. What befalls `records.jsonl` before the checkpoint's place counts
as well, for its steps are carried over.
"""

import itertools
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import forked
from lorastudy.engine.arms import make_arm
from lorastudy.protocol.records import (
    RECORDS_NAME,
    Environment,
    Incident,
    Outcome,
    Pack,
    Record,
    RecordReader,
)
from lorastudy.protocol.run_folder import CHECKPOINTS_NAME, checkpoint_folders
from lorastudy.train.checkpointing import Resumption, find_resumption
from lorastudy.train.outcomes import PackRun
from torture.harness import FaultResult, Row, counted, listed

ROW = Row(
    fault="checkpoint files cut at 16 points or missing, and single bits flipped in them and in the records beside them",
    must="detected or harmless, never a wrong number, recovery named",
    short=150,
    default=400,
    kept=1200,
    in_memory=True,
)
NUM_CUTS = 16


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is done to a file: cut to so many bytes (-1: it goes), or a bit of it flipped."""

    file: Path
    cut_to: int | None = None
    bit: int | None = None


def run(*, amount: int, seed: int, folder: Path) -> FaultResult:
    """Every cut, and then bits until there are `amount` faults."""
    torch.set_num_threads(1)
    suite = forked.tiny_suite(folder)
    broken_off = interrupted(suite, folder / "study")
    newest, before = (seen(suite, broken_off, skip=skip)[0] for skip in (0, 1))
    assert newest is not None
    assert before is not None
    draw = random.Random(seed)
    cuts = list(_cuts(broken_off))
    draw.shuffle(cuts)
    damages = [*cuts[:amount], *itertools.islice(_flips(broken_off, draw=draw), max(0, amount - len(cuts)))]
    violations, counts = [], {"fell back": 0, "started anew": 0, "harmless": 0}
    for damage in counted(damages, total=len(damages)):
        copy = folder / "damaged"
        shutil.copytree(broken_off, copy)
        inflict(damage, copy)
        try:
            found, incidents = seen(suite, copy)
        except Exception as error:  # noqa: BLE001 - whatever it is, the worker would have died of it
            violations.append(f"{damage}: fell over it: {error!r}")
            shutil.rmtree(copy)
            continue
        named = [each for each in incidents if each.kind == "checkpoint_damaged"]
        if found is not None and equal(found, newest):
            counts["harmless"] += 1
        elif found is not None and equal(found, before) and named:
            counts["fell back"] += 1
        elif found is None and named:
            counts["started anew"] += 1
        else:
            violations.append(f"{damage}: went on from something else, or without a word: {incidents}")
        shutil.rmtree(copy)
    told = ", ".join(f"{number} {what}" for what, number in counts.items())
    return FaultResult(
        fault=ROW.fault,
        num_faults=len(damages),
        num_violations=len(violations),
        detail=listed(violations) or told,
    )


def interrupted(suite: forked.TinySuite, folder: Path) -> Path:
    """The run folder of the suite's pack, whose worker was asked to leave in the middle; it has two checkpoints."""
    folder.mkdir()
    executor = forked.ForkedExecutor(cache=suite.cache)
    told: list[object] = []

    def leave_after_five(_: object, event: object) -> None:
        told.append(event)
        if getattr(event, "step", None) == 5 and not any(isinstance(each, Outcome) for each in told):
            executor.leave()

    forked.run(suite, folder, executor=executor, is_leaving=lambda: len(told) > 20, on_event=leave_after_five)
    (run_folder,) = (folder / "runs").glob("*/attempt-*")
    assert len(checkpoint_folders(run_folder / CHECKPOINTS_NAME)) == 2
    return run_folder


def seen(
    suite: forked.TinySuite, run_folder: Path, *, skip: int = 0
) -> tuple[Resumption | None, list[Incident]]:
    """What a new attempt would go on from, without the `skip` newest checkpoints, and what it says about it."""
    said: list[Any] = []
    hidden = checkpoint_folders(run_folder / CHECKPOINTS_NAME)[:skip]
    for checkpoint in hidden:
        checkpoint.rename(checkpoint.with_name(f"hidden-{checkpoint.name}"))
    pack = Pack(
        id="next",
        attempt=2,
        engine="packed",
        experiments=suite.experiments,
        resume_from=("../" + run_folder.name,),
    )
    run = PackRun(pack=pack, folder=run_folder.parent / "next", emit=said.append)
    arms = [make_arm(each, module_names=(), num_steps=forked.NUM_STEPS) for each in suite.experiments]
    environment = _environment_of(suite, run_folder)
    found = find_resumption(
        run, arms=arms, environment=environment, engine="packed", num_steps=forked.NUM_STEPS
    )
    for checkpoint in hidden:
        checkpoint.with_name(f"hidden-{checkpoint.name}").rename(checkpoint)
    return found, said


_ENVIRONMENTS: dict[int, Environment] = {}


def _environment_of(suite: forked.TinySuite, run_folder: Path) -> Environment:
    """Of the sound folder, which is asked first."""
    if id(suite) not in _ENVIRONMENTS:
        records = RecordReader(run_folder / RECORDS_NAME).read_new()
        _ENVIRONMENTS[id(suite)] = next(each for each in records if isinstance(each, Environment))
    return _ENVIRONMENTS[id(suite)]


def equal(one: Resumption, other: Resumption) -> bool:
    """Whether two resumptions are the same to the last bit, but for where they were found."""
    return _story(one.records) == _story(other.records) and all(
        a.numbers == b.numbers
        and (a.experiment_id, a.num_steps_done, a.is_diverged) == (b.experiment_id, b.num_steps_done, b.is_diverged)
        and a.tensors.keys() == b.tensors.keys()
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
        for a, b in zip(one.state.arms, other.state.arms, strict=True)
    )  # fmt: skip


def _story(records: tuple[Record, ...]) -> list[Record]:
    return [record for record in records if not isinstance(record, Incident)]


def _cuts(run_folder: Path) -> Iterator[Damage]:
    """Every file of every checkpoint: gone, and cut at 16 points from nothing to one byte less."""
    for file in sorted((run_folder / CHECKPOINTS_NAME).rglob("*.*")):
        yield Damage(file=file.relative_to(run_folder), cut_to=-1)
        last = file.stat().st_size - 1
        for number in range(NUM_CUTS):
            yield Damage(file=file.relative_to(run_folder), cut_to=last * number // (NUM_CUTS - 1))


def _flips(run_folder: Path, *, draw: random.Random) -> Iterator[Damage]:
    """Bits anywhere in the checkpoints and the records; small files are met as often as large ones."""
    files = [*sorted((run_folder / CHECKPOINTS_NAME).rglob("*.*")), run_folder / RECORDS_NAME]
    while True:
        file = draw.choice(files)
        yield Damage(file=file.relative_to(run_folder), bit=draw.randrange(8 * file.stat().st_size))


def inflict(damage: Damage, run_folder: Path) -> None:
    """Do it."""
    file = run_folder / damage.file
    content = bytearray(file.read_bytes())
    if damage.cut_to == -1:
        file.unlink()
        return
    if damage.bit is not None:
        content[damage.bit // 8] ^= 1 << damage.bit % 8
    file.write_bytes(content[: damage.cut_to])
