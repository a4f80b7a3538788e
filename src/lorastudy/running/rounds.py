"""A suite that grows while it runs: round after round, until the results ask for nothing more.

A suite whose learning rates are given has one round. With `learning_rate: auto` each round's results decide which
rates are tried next, and in the end which one is run with all seeds (`experiments.rate_search`). Nothing is kept
between rounds but what the store holds, so an interrupted suite goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from lorastudy.executors import Executor
from lorastudy.planning.done import merits_in
from lorastudy.planning.study_plan import DesignBy
from lorastudy.running.race import Race, run_race
from lorastudy.running.relay import run_relay
from lorastudy.running.runner import OnEvent, Plan, SuiteOutcome
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.question import subject
from lorastudy.suite.rate_search import Design
from lorastudy.suite.suite import Suite


def run_rounds(
    suite: Suite,
    design_by: DesignBy,
    *,
    tracker: ExperimentTracker,
    executor: Executor,
    plan: Plan,
    on_event: OnEvent,
) -> tuple[Design, SuiteOutcome]:
    """Run a suite to its end; the last design, and what became of all its experiments.

    What failed in a round is not tried again in a later one. Without `plan.continue_on_error` a failure ends it.
    A suite that goes on begins with its first round again, whatever is done of it: so each pack has the company that
    it would have had.
    """
    merits_of = merits_in(tracker, suite.question.primary_metric)
    outcomes: list[SuiteOutcome] = []
    tried: set[str] = set()
    while True:
        design = design_by(merits_of)
        untried = ([e for e in of_round if e.id not in tried] for of_round in design.rounds)
        fresh = next((of_round for of_round in untried if of_round), [])
        if outcomes and (not fresh or _is_over(outcomes[-1], plan)):
            not_run = tuple(e.id for e in design.experiments if e.id not in tried)
            total = _all_of(outcomes)
            return design, replace(total, not_run=total.not_run + not_run)
        _register(suite, design, tracker=tracker, is_first=not outcomes)
        tried |= {experiment.id for experiment in fresh}
        run = (
            partial(run_race, race=_race(suite)) if suite.rungs else partial(run_relay, suite_name=suite.name)
        )
        outcomes.append(
            run(
                fresh,
                tracker=tracker,
                executor=executor,
                plan=replace(
                    plan, searching=design.tuning, stage=_stage_of(fresh, design, number=len(outcomes) + 1)
                ),
                on_event=on_event,
            )
        )


def _stage_of(experiments: Sequence[Experiment], design: Design, *, number: int) -> str:
    """What a round is for; nothing where there is but one."""
    if not design.tuning:
        return ""
    num_tuning = sum(each.id in design.tuning for each in experiments)
    num_reporting = len(experiments) - num_tuning
    if not num_reporting:
        does = "looking for learning rates"
    elif not num_tuning:
        does = "at the learning rates found"
    else:
        does = f"looking on for learning rates ({num_tuning}) and at those found ({num_reporting})"
    return f"round {number}, {does}"


def _race(suite: Suite) -> Race:
    return Race(suite_name=suite.name, rungs=suite.rungs, margin=suite.margin, reference=suite.reference)


def _register(suite: Suite, design: Design, *, tracker: ExperimentTracker, is_first: bool) -> None:
    """Write the suite as it is by now: what it asks once, before anything runs."""
    members = (*design.experiments, *design.passed)
    tracker.register(suite.name, members, description=suite.description)
    # A suite that is taken up by its experiments alone has no arms, and asks what it asked.
    if is_first and suite.arms:
        about = subject(experiment.sources for experiment in design.experiments)
        tracker.state_question(suite.name, replace(suite.question, subject=about))
        tracker.keep_design(suite.name, suite.to_json())
    if suite.path is not None:
        # A suite is what its file says now: an attempt with a mistake since mended is not in its report.
        tracker.keep_only(suite.name, members)


def _is_over(outcome: SuiteOutcome, plan: Plan) -> bool:
    """Whether no further round begins: the user has asked to leave, or something failed."""
    return plan.is_leaving() or (bool(outcome.failed or outcome.not_run) and not plan.continue_on_error)


def _all_of(outcomes: Sequence[SuiteOutcome]) -> SuiteOutcome:
    """The rounds as one: no experiment is in two of them."""
    total = outcomes[0]
    for outcome in outcomes[1:]:
        total = replace(
            total, **{name: getattr(total, name) + getattr(outcome, name) for name in vars(outcome)}
        )
    return total
