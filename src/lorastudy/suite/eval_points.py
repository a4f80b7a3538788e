"""Evaluation points: the steps after which the validation rows are scored while an arm trains (`eval_steps`).

The points of an arm follow from its own settings and its own number of steps. The other arms of its pack do not matter.
"""

import math

from lorastudy.suite.question import rung_of
from lorastudy.suite.settings import Settings

_SPLIT = "eval_after_"


def eval_points(settings: Settings, *, num_steps: int) -> tuple[int, ...]:
    """The points of an arm that trains `num_steps` steps, rising; empty without `eval_steps`.

    They are the multiples of the interval. As in transformers, a number below 1 is a share of the steps, rounded up. Every
    arm is scored at its end anyway, so the end is a point only where the best adapter is selected: it may be the best.
    """
    if settings.eval_steps is None:
        return ()
    interval = steps_between(settings.eval_steps, num_steps=num_steps)
    end = (num_steps,) if settings.select_checkpoint == "best" else ()
    return (*range(interval, num_steps, interval), *end)


def steps_between(eval_steps: float, *, num_steps: int) -> int:
    """The steps from one evaluation point to the next."""
    return math.ceil(round(eval_steps * num_steps, 9)) if eval_steps < 1 else int(eval_steps)


def point_split(step: int) -> str:
    """The split of a `Score` on the validation rows after this step: `eval_after_40`."""
    return f"{_SPLIT}{step}"


def point_of(split: str) -> int | None:
    """The inverse of `point_split`; None for a score that does not belong to a point."""
    return int(split.removeprefix(_SPLIT)) if split.startswith(_SPLIT) else None


def is_on_the_way(split: str) -> bool:
    """Whether a score of this split was taken during training, at an evaluation point or at a rung."""
    return point_of(split) is not None or rung_of(split) is not None
