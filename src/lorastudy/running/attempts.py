"""Earlier attempts at a suite: what they leave to be stored, and what of them goes on.

A pack goes on in the company that it was begun in, since bits depend on that. So packs are formed of the whole suite,
whatever is done of it, and experiments whose newest checkpoints lie in one folder stay together.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorastudy.planning.packing import PlannedPack, remaining_packs
from lorastudy.protocol.checkpoints import CHECKPOINTS_NAME, checkpoint_folders
from lorastudy.protocol.record_lines import RecordReader
from lorastudy.protocol.records import RECORDS_NAME, Outcome
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import RunView
from lorastudy.suite.experiment import Experiment

CUT_OFF = "an earlier attempt was cut off"


@dataclass(frozen=True, kw_only=True)
class WaitingPack:
    """A pack that is to be served, with the run folders whose checkpoints it may go on from, newest first."""

    pack: PlannedPack
    earlier: tuple[Path, ...] = ()
    reason: str | None = None
    """Why it is not its first attempt, in words for the report."""
    num_vain: int = 0
    """How often in a row its worker was killed without having saved anything."""


def packs_to_run(
    experiments: Sequence[Experiment],
    missing: Sequence[Experiment],
    *,
    tracker: ExperimentTracker,
    arms_per_pack: Mapping[str, int] | None = None,
    num_at_once: int = 1,
    alone: Collection[str] = (),
) -> list[WaitingPack]:
    """The packs of a suite as far as they are missing, each with what it can go on from.

    Those who are to be `alone` leave their packs; the others keep their company.
    """
    runs: dict[str, list[RunView]] = defaultdict(list)
    for run in tracker.get_runs([experiment.id for experiment in missing]):
        runs[run.experiment_id].append(run)
    waiting = []
    for planned in remaining_packs(
        experiments, missing, arms_per_pack=arms_per_pack, num_at_once=num_at_once
    ):
        groups: dict[tuple[Path, ...], list[Experiment]] = {}
        for experiment in planned.experiments:
            earlier = with_checkpoints(Path(run.run_folder) for run in runs[experiment.id])
            groups.setdefault(earlier, []).append(experiment)
        waiting += [
            _waiting(part, earlier=earlier, runs=runs)
            for earlier, group in groups.items()
            for part in _apart(group, alone=alone)
        ]
    return waiting


def with_checkpoints(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Those of the run folders that hold any."""
    return tuple(folder for folder in folders if checkpoint_folders(folder / CHECKPOINTS_NAME))


def take_what_was_left(experiments: Sequence[Experiment], *, tracker: ExperimentTracker) -> None:
    """Store what workers wrote before their runner was killed, and end runs that nobody follows any more."""
    open_runs: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for run in tracker.get_runs([experiment.id for experiment in experiments]):
        if run.status == "running":
            open_runs[run.pack_id, run.attempt, run.run_folder].append(run.experiment_id)
    for (pack_id, attempt, folder), ids in open_runs.items():
        # What stands behind a damaged line was not acknowledged, and is made again.
        with suppress(ValueError):
            for record in RecordReader(Path(folder) / RECORDS_NAME).read_new():
                tracker.take(record, pack_id=pack_id, attempt=attempt)
        for experiment_id in ids:
            cut_off = Outcome(experiment_id=experiment_id, status="stopped", message="the suite was cut off")
            tracker.take(cut_off, pack_id=pack_id, attempt=attempt)


def _apart(group: Sequence[Experiment], *, alone: Collection[str]) -> list[list[Experiment]]:
    together = [each for each in group if each.id not in alone]
    return [part for part in (together, *([each] for each in group if each.id in alone)) if part]


def _waiting(
    group: Sequence[Experiment], *, earlier: tuple[Path, ...], runs: Mapping[str, Sequence[RunView]]
) -> WaitingPack:
    was_cut_off = any(run.status == "stopped" for each in group for run in runs[each.id][:1])
    return WaitingPack(
        pack=PlannedPack(experiments=tuple(group)),
        earlier=earlier,
        reason=CUT_OFF if was_cut_off else None,
    )
