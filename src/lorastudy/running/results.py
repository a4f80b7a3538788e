"""The state of a study, read from its store. It determines the next phase.

Earlier attempts leave records to store, checkpoints to resume from, and checkpoints to delete.
"""

import shutil
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lorastudy.planning.design import current_results, is_current, not_done
from lorastudy.planning.missing_scores import missing_scores
from lorastudy.planning.packing import PlannedPack
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.protocol.records import RECORDS_NAME, Outcome, Pack, RecordReader
from lorastudy.protocol.run_folder import CHECKPOINTS_NAME, checkpoint_folders
from lorastudy.running.scoring import scoring_packs
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult, RunView, StoredDecision
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import rung_split
from lorastudy.suite.rate_search import Design

if TYPE_CHECKING:
    from lorastudy.stats.twoway import ItemScores


@dataclass(frozen=True, kw_only=True)
class Results:
    """The state of a study: its results in the store under the current libraries, and the outcomes of this call."""

    design: Design
    """The experiments of the suite, including those that earlier results have added."""
    done: frozenset[str] = frozenset()
    """Experiments that are completed, or diverged in a search."""
    ended: Mapping[str, Outcome] = field(default_factory=dict)
    """Outcomes of this call. A failed experiment is not retried within the same call."""
    paused_at: Mapping[str, float] = field(default_factory=dict)
    """The share of the training at which a paused experiment resumes from its checkpoint."""
    checkpoints: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """Run folders from which an open experiment may resume, newest first."""
    cut_off: frozenset[str] = frozenset()
    """Open experiments whose newest attempt was interrupted."""
    stored: tuple[ExperimentResult, ...] = ()
    """The results of a suite that races or has a time budget."""
    decided: Mapping[str, StoredDecision] = field(default_factory=dict)
    """The study's stored racing decisions, by key."""
    to_score: tuple[PlannedPack, ...] = ()
    """Packs of stored adapters that lack a metric of the suite, without those that this call has tried."""
    adapters_gone: tuple[str, ...] = ()
    """Experiments that lack a metric and whose adapter no longer exists."""
    scored: Mapping[str, Outcome] = field(default_factory=dict)
    """How the scoring of adapters ended in this call, by experiment."""
    rung_losses: "Mapping[float, Mapping[str, ItemScores]]" = field(default_factory=dict)
    """The held-out loss of every item, by rung and experiment."""
    elapsed_seconds: float = 0.0
    """Work so far, of a suite with a time budget: this call and earlier ones, without the hours in between."""

    @property
    def pruned(self) -> frozenset[str]:
        """The experiments that racing has stopped."""
        return frozenset(result.experiment_id for result in self.stored if result.was_pruned)

    def is_open(self, experiment: Experiment) -> bool:
        """Whether the experiment still has something to run."""
        outcome = self.ended.get(experiment.id)
        has_ended = outcome is not None and outcome.status != "paused"
        return not has_ended and experiment.id not in self.done and experiment.id not in self.pruned


def read_results(
    plan: StudyPlan,
    *,
    tracker: ExperimentTracker,
    ended: Mapping[str, Outcome] | None = None,
    scored: Mapping[str, Outcome] | None = None,
    output: Path | None = None,
    elapsed_seconds: float = 0.0,
) -> Results:
    """The state of the study. First stores the records that workers of a killed runner left behind.

    `ended` and `scored` are the outcomes of this call. `output` is where adapters are published. `elapsed_seconds` is the
    work so far.
    """
    design = _design_by_now(plan, tracker=tracker)
    missing = not_done(design.experiments, tracker=tracker, searching=design.tuning)
    done = {experiment.id for experiment in design.experiments} - {e.id for e in missing}
    runs: dict[str, list[RunView]] = {experiment.id: [] for experiment in missing}
    for run in tracker.get_runs(list(runs)):
        runs[run.experiment_id].append(run)
    checkpoints = {
        key: with_checkpoints(Path(run.run_folder) for run in of_one) for key, of_one in runs.items()
    }
    stored = (
        current_results(design.experiments, suite_name=plan.suite.name, tracker=tracker)
        if plan.suite.rungs or plan.suite.time_budget_hours is not None
        else []
    )
    to_score, gone = scoring_packs(
        missing_scores(design.experiments, plan.suite.metrics, tracker=tracker),
        suite_name=plan.suite.name,
        output=output,
        tried=scored or {},
    )
    return Results(
        design=design,
        to_score=tuple(to_score),
        adapters_gone=tuple(gone),
        scored=dict(scored or {}),
        done=frozenset(done),
        ended=dict(ended or {}),
        paused_at=_paused_at(runs, checkpoints=checkpoints, ended=ended or {}, tracker=tracker),
        checkpoints=checkpoints,
        cut_off=frozenset(key for key, of_one in runs.items() if of_one and of_one[0].status == "stopped"),
        stored=tuple(stored),
        decided={decision.key: decision for decision in tracker.get_decisions(plan.suite.name)},
        rung_losses=_rung_losses(plan, stored, tracker=tracker),
        elapsed_seconds=elapsed_seconds,
    )


def seconds_before(plan: StudyPlan, *, tracker: ExperimentTracker) -> float:
    """Seconds of work that earlier calls did for a suite with a time budget; 0 for another suite.

    An attempt that was cut off ended with its last record, which is when its file was last written.
    """
    if plan.suite.time_budget_hours is None:
        return 0.0
    design = _design_by_now(plan, tracker=tracker)
    intervals = []
    for run in tracker.get_runs([experiment.id for experiment in design.experiments]):
        over = run.finished_at
        records = Path(run.run_folder) / RECORDS_NAME
        if over is not None and run.status == "stopped" and records.is_file():
            over = min(over, datetime.fromtimestamp(records.stat().st_mtime, tz=UTC).isoformat())
        if over is not None:
            intervals.append((run.started_at, over))
    return seconds_of_work(intervals)


def seconds_of_work(intervals: Iterable[tuple[str, str]]) -> float:
    """Seconds that at least one of the intervals covers. Their ends are times in ISO format.

    Runs of one pack share their seconds, and so do packs side by side.
    """
    covered, end = 0.0, None
    for begun, over in sorted((datetime.fromisoformat(a), datetime.fromisoformat(b)) for a, b in intervals):
        first = begun if end is None else max(begun, end)
        covered += max(0.0, (over - first).total_seconds())
        end = over if end is None else max(end, over)
    return covered


def _design_by_now(plan: StudyPlan, *, tracker: ExperimentTracker) -> Design:
    """The current design. First stores the records that workers left, since results may add experiments."""
    design = plan.designer.by_now(tracker)
    looked_at: set[str] = set()
    while new := [experiment for experiment in design.experiments if experiment.id not in looked_at]:
        looked_at |= {experiment.id for experiment in new}
        if take_what_was_left(new, tracker=tracker):
            design = plan.designer.by_now(tracker)
    return design


def _paused_at(
    runs: Mapping[str, Sequence[RunView]],
    *,
    checkpoints: Mapping[str, Sequence[Path]],
    ended: Mapping[str, Outcome],
    tracker: ExperimentTracker,
) -> dict[str, float]:
    """The greatest share of the training at which each experiment has paused.

    A pause of an earlier call counts if it was under the current libraries and left a checkpoint.
    """
    current = {
        key for key, result in tracker.get_results(list(runs)).items() if is_current(result.environment)
    }
    paused_at: dict[str, float] = {}
    for key, of_one in runs.items():
        for number, run in enumerate(of_one):
            folder = Path(run.run_folder)
            of_this_call = key in ended and number == 0  # the newest
            can_resume = key in current and folder in checkpoints[key]
            if run.status == "paused" and (of_this_call or can_resume):
                share = Pack.read(folder).pause_at or 0.0
                paused_at[key] = max(share, paused_at.get(key, 0.0))
    return paused_at


def _rung_losses(
    plan: StudyPlan, stored: Sequence[ExperimentResult], *, tracker: ExperimentTracker
) -> "Mapping[float, Mapping[str, ItemScores]]":
    if not stored:
        return {}
    from lorastudy.analysis.overview import scores_by_item  # needs numpy, which a plan does not load

    return {
        rung: scores_by_item(tracker, stored, split=rung_split(rung), metric="loss")
        for rung in plan.suite.rungs
    }


def take_what_was_left(experiments: Sequence[Experiment], *, tracker: ExperimentTracker) -> bool:
    """Store the records that workers wrote before their runner was killed, and end those runs as interrupted.

    Returns whether there were such runs.
    """
    open_runs: dict[tuple[str, int, str], list[str]] = defaultdict(list)
    for run in tracker.get_runs([experiment.id for experiment in experiments]):
        if run.status == "running":
            open_runs[run.pack_id, run.attempt, run.run_folder].append(run.experiment_id)
    for (pack_id, attempt, folder), ids in open_runs.items():
        # Records after a damaged line are lost. Their experiments run again.
        with suppress(ValueError):
            for record in RecordReader(Path(folder) / RECORDS_NAME).read_new():
                tracker.take(record, pack_id=pack_id, attempt=attempt)
        for experiment_id in ids:
            cut_off = Outcome(experiment_id=experiment_id, status="stopped", message="the suite was cut off")
            tracker.take(cut_off, pack_id=pack_id, attempt=attempt)
    return bool(open_runs)


def with_checkpoints(folders: Iterable[Path]) -> tuple[Path, ...]:
    """The run folders that hold a checkpoint."""
    return tuple(folder for folder in folders if checkpoint_folders(folder / CHECKPOINTS_NAME))


def release_checkpoints(
    experiments: Sequence[Experiment], *, tracker: ExperimentTracker, pruned: Collection[str]
) -> None:
    """Remove the checkpoints of attempts whose experiments are all completed or pruned. Nothing resumes from them."""
    runs = tracker.get_runs([experiment.id for experiment in experiments])
    folders = with_checkpoints(dict.fromkeys(Path(run.run_folder) for run in runs))
    members = {folder: {experiment.id for experiment in Pack.read(folder).experiments} for folder in folders}
    completed = tracker.completed(sorted(set().union(*members.values())))
    over = {key for key, environment in completed.items() if is_current(environment)}.union(pruned)
    for folder, ids in members.items():
        if ids <= over:
            shutil.rmtree(folder / CHECKPOINTS_NAME, ignore_errors=True)
