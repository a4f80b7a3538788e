"""Scores during training: the stretches between two of them, and the scores of all arms at the end of a stretch.

There are two reasons to score on the way. Racing looks at all arms after the same share of the training, a *rung*. An arm
with `eval_steps` has evaluation points of its own. At either, one pass scores the validation rows for all arms at once.
Scoring does not change the bits of the training after it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lorastudy.data.tokenise import TokenRow
from lorastudy.engine.arms import Engine, TrainingArm
from lorastudy.engine.loading import BaseModel
from lorastudy.evaluation.evaluator import CompletionLoss
from lorastudy.protocol.records import Pack, Record, Score
from lorastudy.suite.eval_points import eval_points, is_on_the_way, point_split
from lorastudy.suite.question import rung_split, rung_step


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Training up to a step. `splits` maps each experiment that is scored at its end to the names of these scores."""

    stop: int
    splits: dict[str, tuple[str, ...]]


def stretches(
    pack: Pack, arms: Sequence[TrainingArm], *, start: int, num_steps: int, earlier: Sequence[Record]
) -> Iterator[Stretch]:
    """The stretches from a step to the pause or the end. `earlier` are the records of earlier attempts.

    A score before `start` that is missing stays missing: the adapters of that step no longer exist.
    """
    end = num_steps if pack.pause_at is None else rung_step(pack.pause_at, num_steps=num_steps)
    scored = {
        (each.experiment_id, each.split)
        for each in earlier
        if isinstance(each, Score) and is_on_the_way(each.split)
    }
    for step, splits in sorted(_scored_at(pack, arms, num_steps=num_steps).items()):
        missing = {
            key: tuple(split for split in names if (key, split) not in scored)
            for key, names in splits.items()
        }
        missing = {key: names for key, names in missing.items() if names}
        if missing and start <= step <= end:
            yield Stretch(stop=step, splits=missing)
    yield Stretch(stop=end, splits={})


def _scored_at(pack: Pack, arms: Sequence[TrainingArm], *, num_steps: int) -> dict[int, dict[str, list[str]]]:
    """The names of the scores after each step, by experiment."""
    settings = {experiment.id: experiment.settings for experiment in pack.experiments}
    found: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for arm in arms:
        for rung in pack.rungs:
            found[rung_step(rung, num_steps=num_steps)][arm.experiment_id].append(rung_split(rung))
        for step in eval_points(settings[arm.experiment_id], num_steps=arm.num_steps):
            found[step][arm.experiment_id].append(point_split(step))
    return found


def scores_on_the_way(
    engine: Engine, stretch: Stretch, *, base: BaseModel, rows: Sequence[TokenRow], train_seconds: float
) -> list[Score]:
    """The losses at the end of a stretch, from one pass over the validation rows, never the test rows.

    `train_seconds` is the pack's training time so far. Record the scores together.
    """
    share = train_seconds / len(engine.arms)
    return [
        replace(score, split=split, step=stretch.stop, train_seconds=share)
        for score in CompletionLoss().evaluate(engine, rows, base=base, split="eval")
        if score.metric == "loss"
        for split in stretch.splits.get(score.experiment_id, ())
    ]
