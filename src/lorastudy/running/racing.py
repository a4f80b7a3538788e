"""Racing: which arms are clearly behind at a rung, and how that is put on record.

Seeds of one arm may be in different packs, so no worker can say which arm is behind. At a rung every pack scores the
held-out rows, saves itself and pauses. Here it is decided, over all arms and seeds, who goes on (`stats.racing` has the
test). A pack that lost nobody comes to the same bits as without racing; one that lost some, up to the order of sums.

A decision is stored before any run is stopped, also one that stops nobody. A resumed study repeats it, even if the margin in
the suite file has changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorastudy.planning.done import libraries_of_now
from lorastudy.protocol.records import RACE_NAME, Outcome, RecordWriter
from lorastudy.stats.rate_choice import rates_of
from lorastudy.stats.reference import planned_reference
from lorastudy.stats.study import Study, split_studies
from lorastudy.stats.summary import LOSS
from lorastudy.store import ExperimentTracker, suite_notes
from lorastudy.store.views import ExperimentResult, StoredDecision
from lorastudy.suite.experiment import Experiment, tagged_hash
from lorastudy.suite.question import rung_name
from lorastudy.suite.suite import Suite

if TYPE_CHECKING:
    from lorastudy.stats.items import ItemScores
    from lorastudy.stats.racing import Behind


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
        """Its arm."""
        return self.result.arm

    @property
    def is_new(self) -> bool:
        """Whether the run waits to go on: the decision is not on record yet."""
        return self.result.status in {"paused", "stopped"} and not self.result.was_pruned


@dataclass(frozen=True, kw_only=True)
class RungDecision:
    """Who goes on from a rung, over all experiments of a round."""

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
    """Who of a round is stopped at a rung, by the held-out losses that were taken there; as decided before, if it was.

    `decided` has the stored decisions by key. Runs that ended without racing are never stopped.
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
    """Store a decision, then stop whom it stops. What is on record already stays."""
    if not decision.is_stored:
        is_first = tracker.keep_decision(suite_name, decision.to_store())
        assert is_first, "a decision is made once"
        suite_notes.keep(tracker, suite_name, runs=runs)
    for pruning in decision.prunings:
        if pruning.is_new:
            prune(pruning, tracker=tracker)


def prune(pruning: Pruning, *, tracker: ExperimentTracker) -> None:
    """Stop the run: in its folder, from which a store can be made again, and in the store."""
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
    """By experiment of an arm that is clearly behind: why it is stopped."""
    return {
        result.experiment_id: message_of(behind, rung=rung)
        for study in split_studies(results)
        for behind in _arms_behind(study, losses, rung=rung, suite=suite)
        for result in study.arm(behind.arm).results
    }


def _arms_behind(
    study: Study, losses: "Mapping[str, ItemScores]", *, rung: float, suite: Suite
) -> "Iterator[Behind]":
    from lorastudy.stats.racing import RaceRules, clearly_behind  # scipy, which a plan goes without

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
