"""A relay: a suite whose packs pause once, so that arms which one worker has too many of go on in another.

When that pays is said in `planner/handover.py`. Up to the pause it is a suite as any other; after it the arms that change hands
are packs of their own, which go on from the checkpoints of the packs that they were in. Nothing is remembered between the
two legs but what the store holds: what has paused once is not trained in the first leg again.
"""

from collections.abc import Sequence
from dataclasses import replace

from lorastudy.executors import Executor
from lorastudy.legs import as_one
from lorastudy.planner.handover import handover
from lorastudy.planner.packing import form_packs
from lorastudy.runner import Leg, OnEvent, Plan, SuiteOutcome, not_done, run_suite
from lorastudy.spec.experiment import Experiment
from lorastudy.tracker import ExperimentTracker


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
    change = None
    if executor.hands_over:
        num_at_once = executor.num_packs_at_once
        packs = form_packs(experiments, arms_per_pack=plan.arms_per_pack, num_at_once=num_at_once)
        change = handover(packs, num_at_once=num_at_once)
    missing = {each.id for each in not_done(experiments, tracker=tracker, searching=plan.searching)}
    paused = {run.experiment_id for run in tracker.get_runs(sorted(missing)) if run.status == "paused"}
    planned = [(Leg(), "")]
    if change is not None:
        planned = [
            (Leg(pause_at=change.pause_at, settled=frozenset(paused)), "until packs are dealt out evenly"),
            (Leg(begun=change.pause_at, alone=change.alone), "to the end"),
        ]
    legs: list[SuiteOutcome] = []
    for leg, name in planned:
        failed = frozenset(
            end.experiment_id for done in legs for end in (*done.failed, *done.diverged_in_search)
        )
        legs.append(
            run_suite(
                experiments,
                suite_name=suite_name,
                tracker=tracker,
                executor=executor,
                plan=replace(
                    plan,
                    leg=replace(leg, settled=leg.settled | failed),
                    stage=", ".join(filter(None, [plan.stage, name])),
                ),
                on_event=on_event,
            )
        )
        if plan.is_leaving() or (legs[-1].failed and not plan.continue_on_error):
            break
    return as_one(experiments, legs, missing=missing)
