"""Legs of one suite: packs that pause and go on are run leg by leg, and end as one."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from lorastudy.running.runner import Leg, Plan, SuiteOutcome
from lorastudy.suite.experiment import Experiment


def run_legs(
    legs: Iterable[tuple[Leg, str]], *, plan: Plan, run: Callable[[Plan], SuiteOutcome]
) -> list[SuiteOutcome]:
    """Run legs, each with what it is called, until they end, the user leaves, or something fails that ends a suite.

    A leg is asked for when the one before it is over, so it may follow from its results. What failed in one has no part in
    those after it.
    """
    outcomes: list[SuiteOutcome] = []
    for leg, name in legs:
        ended = {end.experiment_id for each in outcomes for end in (*each.failed, *each.diverged_in_search)}
        outcomes.append(
            run(
                replace(
                    plan,
                    leg=replace(leg, settled=leg.settled.union(ended)),
                    stage=", ".join(filter(None, [plan.stage, name])),
                )
            )
        )
        if plan.is_leaving() or (outcomes[-1].failed and not plan.continue_on_error):
            break
    return outcomes


def as_one(
    experiments: Sequence[Experiment],
    outcomes: Sequence[SuiteOutcome],
    *,
    missing: Collection[str],
    outraced: Collection[str] = (),
) -> SuiteOutcome:
    """What became of all experiments; `missing` are those that were not done before the first leg.

    What racing stopped before that was missing, and has no end of its own in any leg.
    """
    completed = tuple(key for each in outcomes for key in each.completed)
    failed = tuple(end for each in outcomes for end in each.failed)
    diverged_in_search = tuple(end for each in outcomes for end in each.diverged_in_search)
    ended = {*completed, *outraced, *(end.experiment_id for end in (*failed, *diverged_in_search))}
    return SuiteOutcome(
        done_before=tuple(each.id for each in experiments if each.id not in missing),
        completed=completed,
        failed=failed,
        diverged_in_search=diverged_in_search,
        not_run=tuple(each.id for each in experiments if each.id in missing and each.id not in ended),
        unpublished=outcomes[-1].unpublished,
        replaced=tuple(place for each in outcomes for place in each.replaced),
        outraced=tuple(each.id for each in experiments if each.id in outraced),
    )
