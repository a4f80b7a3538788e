"""Which parts of a suite's question were set when results already existed.

A metric, margin or reference that is set after results can be chosen to suit them, so the report names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.store.views import StatedQuestion
from lorastudy.suite.question import Question

#: The parts of a question that decide what a verdict says.
DECIDING = ("primary_metric", "margin", "reference")


@dataclass(frozen=True, kw_only=True)
class SetLate:
    """One of `DECIDING` as it was first stated and as it holds now, and when it was set to that.

    `first` is None if the first statement itself came after results.
    """

    key: str
    first: Question | None
    now: Question
    stated_at: str
    num_completed: int


def set_late(statements: Sequence[StatedQuestion]) -> tuple[SetLate, ...]:
    """The parts that hold now and were not stated before there were results. `statements` come oldest first.

    A part that was changed and changed back counts as first stated.
    """
    found = (_late(statements, key) for key in DECIDING) if statements else ()
    return tuple(late for late in found if late is not None)


def _late(statements: Sequence[StatedQuestion], key: str) -> SetLate | None:
    first, now = statements[0], statements[-1].question
    value = getattr(now, key)
    was_there_at_first = getattr(first.question, key) == value
    if was_there_at_first and (not first.num_completed or value == getattr(Question(), key)):
        return None
    set_by = first
    if not was_there_at_first:
        # The statement since which it has its present value.
        others = [
            number for number, statement in enumerate(statements) if getattr(statement.question, key) != value
        ]
        set_by = statements[others[-1] + 1]
        if not set_by.num_completed:
            return None
    return SetLate(
        key=key,
        first=None if was_there_at_first else first.question,
        now=now,
        stated_at=set_by.stated_at,
        num_completed=set_by.num_completed,
    )
