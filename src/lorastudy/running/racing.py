"""Racing: decides which arms are clearly behind at a rung, stores the decision, and stops their runs.

Seeds of one arm may be in different packs, so no worker can tell which arm is behind. At a rung every pack scores the
held-out rows, writes a checkpoint and pauses. This module then compares all arms over all seeds (`stats.racing` has the
test). A pack that loses no arm gives the same bits as without racing; a pack that loses some gives the same results up
to the order of sums.

Every decision is stored before a run is stopped, even a decision that stops none. A resumed study reuses it, even if
settings such as the margin have changed since.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorastudy.planning.design import libraries_of_now
from lorastudy.protocol.records import RACE_NAME, Outcome, RecordWriter
from lorastudy.stats.rate_choice import rates_of
from lorastudy.stats.reference import planned_reference
from lorastudy.stats.study import Study, split_studies
from lorastudy.stats.summary import LOSS
from lorastudy.store import ExperimentTracker, rebuilding
from lorastudy.store.views import ExperimentResult, StoredDecision
from lorastudy.suite.experiment import Experiment, tagged_hash
from lorastudy.suite.question import rung_name
from lorastudy.suite.suite import Suite

if TYPE_CHECKING:
    from lorastudy.stats.racing import Behind
    from lorastudy.stats.twoway import ItemScores


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """The decision to stop one run of an arm that is clearly behind."""

    result: ExperimentResult
    message: str
    """Why, in words for the report."""

    @property
    def experiment_id(self) -> str:
        """The experiment that is stopped."""
        return self.result.experiment_id

    @property
    def arm(self) -> str:
        """The arm of this run."""
        return self.result.arm

    @property
    def is_new(self) -> bool:
        """Whether the run is still paused, so that the pruning is not recorded yet."""
        return self.result.status in {"paused", "stopped"} and not self.result.was_pruned


@dataclass(frozen=True, kw_only=True)
class RungDecision:
    """Which experiments of a round continue after a rung."""

    rung: float
    key: str
    """A hash of the rung, the experiments and the libraries that made their scores."""
    prunings: tuple[Pruning, ...]
    is_stored: bool

    def to_store(self) -> StoredDecision:
        """The decision as the store keeps it."""
        pruned = {pruning.experiment_id: pruning.message for pruning in self.prunings}
        return StoredDecision(
            key=self.key,
            content={"rung": self.rung, "pruned": pruned, "libraries": libraries_of_now()},
        )


def decide_at(
    rung: float,
    losses: "Mapping[str, ItemScores]",
    *,
    suite: Suite,
    of_round: Sequence[Experiment],
    results: Sequence[ExperimentResult],
    decided: Mapping[str, StoredDecision],
) -> RungDecision:
    """The decision at a rung, from the held-out losses there. A stored decision is reused.

    `decided` maps keys to stored decisions. Runs that ended by themselves are never stopped.
    """
    ids = {experiment.id for experiment in of_round}
    key = tagged_hash("decision", ["racing", rung, sorted(ids), libraries_of_now()])
    raced = [result for result in results if result.experiment_id in ids]
    stored = decided.get(key)
    messages = (
        _messages(raced, losses, rung=rung, suite=suite) if stored is None else stored.content["pruned"]
    )
    prunings = tuple(
        Pruning(result=result, message=messages[result.experiment_id])
        for result in raced
        if result.experiment_id in messages
        and result.experiment_id in losses
        and result.status in {"paused", "stopped"}
    )
    return RungDecision(rung=rung, key=key, prunings=prunings, is_stored=stored is not None)


def put_on_record(decision: RungDecision, *, suite_name: str, tracker: ExperimentTracker, runs: Path) -> None:
    """Store a decision, then stop the runs that it prunes. Earlier records stay."""
    if not decision.is_stored:
        is_first = tracker.keep_decision(suite_name, decision.to_store())
        assert is_first, "a decision is made once"
        rebuilding.keep_note(tracker, suite_name, runs=runs)
    for pruning in decision.prunings:
        if pruning.is_new:
            prune(pruning, tracker=tracker)


def prune(pruning: Pruning, *, tracker: ExperimentTracker) -> None:
    """Record the stop in the run folder, from which a store can be rebuilt, and in the store."""
    result = pruning.result
    assert result.run_folder is not None
    assert result.pack_id is not None
    assert result.attempt is not None
    outcome = Outcome(
        experiment_id=result.experiment_id,
        status="stopped",
        failure_kind="pruned",
        message=pruning.message,
        step=result.num_steps,
    )
    if Path(result.run_folder).is_dir():  # else it was removed, and the store alone has it
        with closing(RecordWriter(Path(result.run_folder) / RACE_NAME)) as writer:
            writer.write(outcome)
    tracker.take(outcome, pack_id=result.pack_id, attempt=result.attempt)


def message_of(behind: "Behind", *, rung: float) -> str:
    """Why an arm was stopped, in words for the report."""
    return (
        f"stopped by racing after {rung_name(rung)} of the steps: its held-out loss is {behind.difference:.3g} "
        f"{LOSS.unit} above that of {behind.ahead}, and more than {behind.bound:.3g} above it on each of "
        f"{behind.num_seeds} seeds (p = {behind.p:.1g}, corrected for all arms and rungs)"
    )


def _messages(
    results: Sequence[ExperimentResult], losses: "Mapping[str, ItemScores]", *, rung: float, suite: Suite
) -> dict[str, str]:
    """The reason for the stop, by experiment id, for all experiments of arms that are clearly behind."""
    return {
        result.experiment_id: message_of(replace(behind, ahead=study.labels[behind.ahead]), rung=rung)
        for study in split_studies(results)
        for behind in _arms_behind(study, losses, rung=rung, suite=suite)
        for result in study.arm(behind.arm).results
    }


def _arms_behind(
    study: Study, losses: "Mapping[str, ItemScores]", *, rung: float, suite: Suite
) -> "Iterator[Behind]":
    from lorastudy.stats.racing import RaceRules, clearly_behind  # needs scipy, which a plan does not load

    by_arm = {
        arm.name: {r.seed: losses[r.experiment_id] for r in arm.results if r.experiment_id in losses}
        for arm in study.arms
    }
    base = [r.scores["eval_before", "loss"].value for r in study.results if r.experiment_id in losses]
    if not base:
        return
    named = planned_reference(study, named=suite.reference)
    yield from clearly_behind(
        {arm: by_seed for arm, by_seed in by_arm.items() if by_seed},
        rung=rung,
        base_loss=base[0],  # one base model, one set of rows: equal for all
        rules=RaceRules(num_arms=len(study.arms), num_rungs=len(suite.rungs), margin=suite.margin),
        reference=[] if named is None else [arm.name for arm in rates_of(study, named)],
        configurations=[[arm.name for arm in rates_of(study, one)] for one in study.arms],
    )
