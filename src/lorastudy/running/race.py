"""A race: experiments that train in legs, up to one rung after another, with fewer arms each time.

    all -> rung -> those that are not clearly behind -> rung -> ... -> the rest, to the end

Seeds of one arm may be in different packs, so no worker can say which arm is behind. At a rung every pack scores the
held-out rows, saves itself and pauses; who goes on is decided here over all arms and seeds (`analysis.racing`), and
the packs go on from their checkpoints with the rest. A pack that lost nobody comes to the very bits that it would have
had without a race; one that lost some, up to the order in which sums are taken.

Nothing is remembered between the legs but what the store holds. A race that is taken up again asks every rung anew and
comes to the same answers, since scores that were taken are carried along. A decision that was put on record stays.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorastudy.executors import Executor
from lorastudy.planning.done import current_results, is_current, not_done, outraced
from lorastudy.protocol.record_lines import RecordWriter
from lorastudy.protocol.records import RACE_NAME, Outcome
from lorastudy.report.numbers import listing
from lorastudy.running.attempts import with_checkpoints
from lorastudy.running.legs import as_one, run_legs
from lorastudy.running.runner import (
    Leg,
    OnEvent,
    Plan,
    SuiteOutcome,
    let_go_of_checkpoints,
    run_suite,
)
from lorastudy.stats.rate_choice import rates_of
from lorastudy.stats.reference import asked_reference
from lorastudy.stats.study import Study, split_studies
from lorastudy.stats.summary import LOSS
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import Margin
from lorastudy.suite.racing import rung_name, rung_split

if TYPE_CHECKING:
    from lorastudy.stats.items import ItemScores
    from lorastudy.stats.racing import Behind


@dataclass(frozen=True, kw_only=True)
class Race:
    """What is fixed before a race begins: where to look, and what the suite asks."""

    suite_name: str
    rungs: tuple[float, ...]
    margin: Margin | None = None
    reference: str | None = None


def run_race(
    experiments: Sequence[Experiment],
    *,
    race: Race,
    tracker: ExperimentTracker,
    executor: Executor,
    plan: Plan,
    on_event: OnEvent,
) -> SuiteOutcome:
    """Run what is missing of a suite, as `run_suite`, in legs; what is clearly behind at a rung is not run on."""
    missing = {each.id for each in not_done(experiments, tracker=tracker)}
    run = partial(
        run_suite,
        experiments,
        suite_name=race.suite_name,
        tracker=tracker,
        executor=executor,
        on_event=on_event,
    )
    outcomes = run_legs(
        _legs(experiments, race=race, tracker=tracker), plan=plan, run=lambda of_leg: run(plan=of_leg)
    )
    given_up = outraced(experiments, suite_name=race.suite_name, tracker=tracker)
    runs = tracker.get_runs([each.id for each in experiments])
    folders = with_checkpoints({Path(run.run_folder) for run in runs})
    let_go_of_checkpoints(folders, tracker=tracker, given_up=given_up)
    return as_one(experiments, outcomes, missing=missing, outraced=given_up)


def _legs(
    experiments: Sequence[Experiment], *, race: Race, tracker: ExperimentTracker
) -> Iterator[tuple[Leg, str]]:
    """A leg to each rung and one to the end; between two of them it is decided who goes on."""
    behind: frozenset[str] = frozenset()
    for rung in (*race.rungs, None):
        told, behind = behind, outraced(experiments, suite_name=race.suite_name, tracker=tracker)
        scored = () if rung is None else _scored(experiments, tracker=tracker, rung=rung)
        pause_at = {} if rung is None else {each.id: rung for each in experiments}
        name = _stage_of(rung, behind=[each for each in experiments if each.id in behind - told])
        yield Leg(rungs=race.rungs, pause_at=pause_at, settled=behind.union(scored)), name
        if rung is not None:
            _stop_those_behind(experiments, rung=rung, race=race, tracker=tracker)


def _stage_of(rung: float | None, *, behind: Sequence[Experiment]) -> str:
    to = "the end" if rung is None else f"{rung_name(rung)} of the steps"
    arms = listing(dict.fromkeys(each.arm for each in behind)) if behind else ""
    return f"racing to {to}" + (f", without {arms}, stopped as clearly behind" if arms else "")


def _scored(
    experiments: Sequence[Experiment], *, tracker: ExperimentTracker, rung: float
) -> "Mapping[str, ItemScores]":
    """The held-out losses item by item that were taken at a rung, by experiment."""
    from lorastudy.stats.items import scores_by_item  # numpy, which a plan goes without

    results = tracker.get_results([experiment.id for experiment in experiments]).values()
    current = [result for result in results if is_current(result.environment)]
    return scores_by_item(tracker, current, split=rung_split(rung), metric="loss")


def _stop_those_behind(
    experiments: Sequence[Experiment],
    *,
    rung: float,
    race: Race,
    tracker: ExperimentTracker,
) -> None:
    """Decide at a rung, and put on record what was decided, in the run folders first."""
    scored = _scored(experiments, tracker=tracker, rung=rung)
    for study in split_studies(current_results(experiments, suite_name=race.suite_name, tracker=tracker)):
        for one in _behind(study, scored, rung=rung, race=race):
            for result in study.arm(one.arm).results:
                if result.experiment_id in scored and _is_open(result):
                    _put_on_record(result, one, rung=rung, tracker=tracker)


def _is_open(result: ExperimentResult) -> bool:
    """Whether it waits to go on: paused, or interrupted after it had been scored."""
    return result.status in {"paused", "stopped"} and not result.was_pruned


def _behind(
    study: Study, scored: "Mapping[str, ItemScores]", *, rung: float, race: Race
) -> "Iterator[Behind]":
    from lorastudy.stats.racing import RaceRules, clearly_behind  # scipy, likewise

    by_arm = {
        arm.name: {r.seed: scored[r.experiment_id] for r in arm.results if r.experiment_id in scored}
        for arm in study.arms
    }
    losses = {arm: by_seed for arm, by_seed in by_arm.items() if by_seed}
    before = [r.scores["eval_before", "loss"].value for r in study.results if r.experiment_id in scored]
    named = asked_reference(study, named=race.reference)
    reference = [] if named is None else [arm.name for arm in rates_of(study, named)]
    if not before:
        return
    base_loss = before[0]  # one base model, one set of rows: equal for all
    rules = RaceRules(num_arms=len(study.arms), num_rungs=len(race.rungs), margin=race.margin)
    yield from clearly_behind(
        losses,
        rung=rung,
        base_loss=base_loss,
        rules=rules,
        reference=reference,
        configurations=[[arm.name for arm in rates_of(study, one)] for one in study.arms],
    )


def _put_on_record(
    result: ExperimentResult, behind: "Behind", *, rung: float, tracker: ExperimentTracker
) -> None:
    """The run is stopped: in its folder, from which a store can be made again, and in the store."""
    assert result.run_folder is not None
    assert result.pack_id is not None
    assert result.attempt is not None
    outcome = Outcome(
        experiment_id=result.experiment_id,
        status="stopped",
        failure_kind="outraced",
        message=said_of(behind, rung=rung),
        step=result.num_steps,
    )
    if Path(result.run_folder).is_dir():  # else it was removed, and the store alone has it
        with closing(RecordWriter(Path(result.run_folder) / RACE_NAME)) as writer:
            writer.write(outcome)
    tracker.take(outcome, pack_id=result.pack_id, attempt=result.attempt)


def said_of(behind: "Behind", *, rung: float) -> str:
    """Why an arm was stopped, in words for the report."""
    return (
        f"stopped by racing after {rung_name(rung)} of the steps: its held-out loss is {behind.difference:.3g} "
        f"{LOSS.unit} above that of {behind.ahead}, and more than {behind.bound:.3g} above it on each of "
        f"{behind.num_seeds} seeds (p = {behind.p:.1g}, corrected for all arms and rungs)"
    )
