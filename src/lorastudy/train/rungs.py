"""The rungs of a race, as a pack meets them: where it stops to score the held-out rows, and where it pauses.

A rung is a share of the training, so it is the same for packs that are told apart by nothing but their seeds. Scoring
leaves no trace in the training: what comes after it has the bits that it would have had.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorastudy.engine.arms import Engine
from lorastudy.engine.loading import BaseModel
from lorastudy.evaluation.perplexity import CompletionLoss
from lorastudy.protocol.records import Outcome, Record, Score
from lorastudy.suite.question import rung_of, rung_split, rung_step
from lorastudy.train.data import PackData
from lorastudy.train.outcomes import PackRun


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Training up to a step, with the rung that it ends at; None where it ends with the training."""

    stop: int
    rung: float | None


def stretches(run: PackRun, *, start: int, num_steps: int, said: Sequence[Record]) -> Iterator[Stretch]:
    """The stretches from a step on, up to where the pack is to pause; `said` is what was carried over.

    A rung that lies behind and was not scored stays so: the adapters of then are gone.
    """
    scored = {
        record.split for record in said if isinstance(record, Score) and rung_of(record.split) is not None
    }
    pause_at = run.pack.pause_at
    for rung in run.pack.rungs:
        stop = rung_step(rung, num_steps=num_steps)
        if stop >= start and rung_split(rung) not in scored:
            yield Stretch(stop=stop, rung=rung)
        if rung == pause_at:
            return
    yield Stretch(stop=num_steps if pause_at is None else rung_step(pause_at, num_steps=num_steps), rung=None)


def scores_at(engine: Engine, *, rung: float, base: BaseModel, data: PackData) -> list[Score]:
    """The loss of every arm on the held-out rows, never on the test rows. They are to be recorded together."""
    scores = CompletionLoss().evaluate(engine, data.held_out.rows, base=base, split=rung_split(rung))
    return [score for score in scores if score.metric == "loss"]


def pause(run: PackRun, engine: Engine) -> None:
    """Say of all experiments that have not ended that they wait for what is decided."""
    run.end_together(
        Outcome(experiment_id=arm.experiment_id, status="paused", step=engine.num_steps_done)
        for arm in engine.arms
    )
