"""The question that a suite stated, as the analysis takes it: a margin that is a share becomes a number."""

import statistics
from dataclasses import replace

from lorastudy.analysis.overview import COMPARED_METRICS, Question
from lorastudy.analysis.reference import reference_arm
from lorastudy.analysis.study import Study
from lorastudy.analysis.summary import LOSS, LOSS_BEFORE, scores_by_seed
from lorastudy.spec.question import Margin
from lorastudy.spec.question import Question as StatedQuestion


def asked_of(study: Study, stated: StatedQuestion | None) -> Question:
    """What the suite stated; what the design would ask where nothing was.

    A share of the gain is of the reference's mean gain in held-out loss; it goes along as a share, since the tests take
    the noise of that gain into account, and as the number that it comes to. Without a loss of the base model, without a
    gain, or on another metric, a share is nothing, and there is no margin.
    """
    if stated is None:
        return Question()
    question = Question(primary_metric=stated.primary_metric, reference=stated.reference)
    if stated.margin is None:
        return question
    if not stated.margin.is_share:
        return replace(question, margin=stated.margin.amount)
    allowed = _allowed(study, stated.margin, question=question)
    share = None if allowed is None else stated.margin.amount
    return replace(question, margin=allowed, margin_share=share)


def _allowed(study: Study, share: Margin, *, question: Question) -> float | None:
    """What the share comes to at the measured gain."""
    metric = next(one for one in COMPARED_METRICS if one.name == question.primary_metric)
    reference = reference_arm(study, named=question.reference, metric=metric)
    if metric != LOSS or reference is None:
        return None
    before, after = (scores_by_seed(reference, study, metric=one).values() for one in (LOSS_BEFORE, LOSS))
    if not before or not after:
        return None
    gained, base = statistics.fmean(after), statistics.fmean(before)
    return share.allowed(reference=gained, base=base) if gained < base else None
