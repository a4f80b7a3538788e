"""Legs of one suite taken together: packs that pause and go on are run leg by leg, and end as one."""

from collections.abc import Collection, Sequence

from lorastudy.runner import SuiteOutcome
from lorastudy.spec.experiment import Experiment


def as_one(
    experiments: Sequence[Experiment],
    legs: Sequence[SuiteOutcome],
    *,
    missing: Collection[str],
    outraced: Collection[str] = (),
) -> SuiteOutcome:
    """What became of all experiments; `missing` are those that were not done before the first leg.

    What racing stopped before that was missing, and has no end of its own in any leg.
    """
    completed = tuple(key for leg in legs for key in leg.completed)
    failed = tuple(end for leg in legs for end in leg.failed)
    diverged_in_search = tuple(end for leg in legs for end in leg.diverged_in_search)
    ended = {*completed, *outraced, *(end.experiment_id for end in (*failed, *diverged_in_search))}
    return SuiteOutcome(
        done_before=tuple(each.id for each in experiments if each.id not in missing),
        completed=completed,
        failed=failed,
        diverged_in_search=diverged_in_search,
        not_run=tuple(each.id for each in experiments if each.id in missing and each.id not in ended),
        unpublished=legs[-1].unpublished,
        replaced=tuple(each for leg in legs for each in leg.replaced),
        outraced=tuple(each.id for each in experiments if each.id in outraced),
    )
