"""A relay: a suite whose packs pause once, so that arms which one worker has too many of go on in another.

When that pays is said in `planning/handover.py`. Up to the pause it is a suite as any other; after it the arms that change hands
are packs of their own, which go on from the checkpoints of the packs that they were in. Nothing is remembered between the
two legs but what the store holds: what has paused once is not trained in the first leg again.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lorastudy.executors import Executor
from lorastudy.planning.done import is_current, not_done
from lorastudy.planning.handover import Handover, handover_of
from lorastudy.protocol.records import Pack
from lorastudy.running.attempts import with_checkpoints
from lorastudy.running.legs import as_one, run_legs
from lorastudy.running.runner import Leg, OnEvent, Plan, SuiteOutcome, run_suite
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment


def run_relay(
    experiments: Sequence[Experiment],
    *,
    suite_name: str,
    tracker: ExperimentTracker,
    executor: Executor,
    plan: Plan,
    on_event: OnEvent,
) -> SuiteOutcome:
    """Run what is missing of a suite, as `run_suite`, in two legs where its packs become even by that, else in one."""
    run = partial(
        run_suite,
        experiments,
        suite_name=suite_name,
        tracker=tracker,
        executor=executor,
        on_event=on_event,
    )
    change = _change(experiments, executor=executor, plan=plan)
    if change is None:
        return run(plan=plan)
    missing = not_done(experiments, tracker=tracker, searching=plan.searching)
    paused = _paused(missing, change, tracker=tracker)
    legs = [
        (Leg(pause_at=change.pause_at, settled=paused), "until packs are dealt out evenly"),
        (Leg(begun=change.pause_at, alone=change.alone), "to the end"),
    ]
    outcomes = run_legs(legs, plan=plan, run=lambda of_leg: run(plan=of_leg))
    return as_one(experiments, outcomes, missing={each.id for each in missing})


def _change(experiments: Sequence[Experiment], *, executor: Executor, plan: Plan) -> Handover | None:
    if not executor.hands_over:
        return None
    return handover_of(experiments, arms_per_pack=plan.arms_per_pack, num_at_once=executor.num_packs_at_once)


def _paused(missing: Sequence[Experiment], change: Handover, *, tracker: ExperimentTracker) -> frozenset[str]:
    """Those that have got to their pause under the libraries of now, and can go on from there."""
    results = tracker.get_results([each.id for each in missing])
    current = [key for key, result in results.items() if is_current(result.environment)]
    return frozenset(
        run.experiment_id
        for run in tracker.get_runs(current)
        if run.status == "paused"
        and with_checkpoints([folder := Path(run.run_folder)])
        and (Pack.read(folder).pause_at or 0.0) >= change.pause_at.get(run.experiment_id, 1.0)
    )
