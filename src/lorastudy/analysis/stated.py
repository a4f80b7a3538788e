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

    A share of the gain is taken of the mean gain of the reference, in held-out loss. The noise of that gain is not in
    the intervals. Without a loss of the base model, or on another metric, a share is no number, and there is no margin.
    """
    if stated is None:
        return Question()
    question = Question(primary_metric=stated.primary_metric, reference=stated.reference)
    if stated.margin is None:
        return question
    return replace(question, margin=_amount(study, stated.margin, question=question))


def _amount(study: Study, margin: Margin, *, question: Question) -> float | None:
    if not margin.is_share:
        return margin.amount
    metric = next(one for one in COMPARED_METRICS if one.name == question.primary_metric)
    reference = reference_arm(study, named=question.reference)
    if metric != LOSS or reference is None:
        return None
    before, after = (scores_by_seed(reference, study, metric=one).values() for one in (LOSS_BEFORE, LOSS))
    if not before or not after:
        return None
    return margin.allowed(reference=statistics.fmean(after), base=statistics.fmean(before))
