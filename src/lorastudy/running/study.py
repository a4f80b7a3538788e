"""A study, carried out: the plan's packs run, results come in, and the search asks for more until nothing is left."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from lorastudy.errors import StudyError
from lorastudy.executors import Executor
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.running.rounds import run_rounds
from lorastudy.running.runner import OnEvent, Plan, Stage, SuiteOutcome
from lorastudy.store import ExperimentTracker
from lorastudy.suite.rate_search import Design


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """What was asked for in the end, and what became of it."""

    design: Design
    outcome: SuiteOutcome


def run_study(
    plan: StudyPlan,
    *,
    tracker: ExperimentTracker,
    executor: Executor,
    how: Plan,
    on_event: OnEvent = lambda *_: None,
    on_stage: Callable[[Stage], None] = lambda _: None,
) -> StudyRun:
    """Run what is missing of a planned suite. Nothing is printed; `on_event` gets every record and every worker's end.

    `how` says where files go and when to end early.

    Raises:
        StudyError: the plan was made for another number of packs at once than the executor runs.
    """
    if executor.num_packs_at_once != plan.num_packs_at_once:
        raise StudyError(
            f"the plan is for {plan.num_packs_at_once} packs at once and the executor runs {executor.num_packs_at_once}, so its "
            "packs may not fit; plan again with `executor=` the one that runs it"
        )
    last, outcome = run_rounds(
        plan.suite,
        plan.design_by,
        tracker=tracker,
        executor=executor,
        plan=replace(
            how,
            arms_per_pack=plan.predicted.arms_per_pack,
            predict=plan.predicted.predictions,
            on_stage=on_stage,
        ),
        on_event=on_event,
    )
    return StudyRun(design=last, outcome=outcome)
