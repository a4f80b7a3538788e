"""The question that a suite stated, as the analysis takes it: a margin that is a share becomes a number."""

import statistics
from dataclasses import replace

from lorastudy.analysis.overview import COMPARED_METRICS, Question
from lorastudy.stats.reference import reference_arm
from lorastudy.stats.study import Study
from lorastudy.stats.summary import LOSS, scores_by_seed
from lorastudy.stats.trivial import gain_start
from lorastudy.suite.question import Margin
from lorastudy.suite.question import Question as StatedQuestion


def asked_of(study: Study, stated: StatedQuestion | None) -> Question:
    """What the suite stated; what the design would ask where nothing was.

    A share of the gain is of the reference's mean gain in held-out loss, over the base model or over guessing, whichever is
    better (`trivial.gain_start`). It goes along as a share, since the tests take the noise of that gain into account, and
    as the number that it comes to. Without a loss of the base model, without a gain, or on another metric, a share is
    nothing: there is no margin, and `margin_lost` says why.
    """
    if stated is None:
        return Question()
    question = Question(primary_metric=stated.primary_metric, reference=stated.reference)
    if stated.margin is None:
        return question
    if not stated.margin.is_share:
        return replace(question, margin=stated.margin.amount)
    return _with_share(question, stated.margin, study=study)


def _with_share(question: Question, share: Margin, *, study: Study) -> Question:
    """The question with what the share comes to at the measured gain, and what that gain is over."""
    metric = next(one for one in COMPARED_METRICS if one.name == question.primary_metric)
    reference = reference_arm(study, named=question.reference, metric=metric)
    if metric != LOSS:
        return replace(question, margin_lost="only held-out loss has a gain to take a share of")
    start = None if reference is None else gain_start(study, reference)
    if start is None or reference is None:
        return replace(question, margin_lost="the reference's gain in held-out loss was not measured")
    after = scores_by_seed(reference, study, metric=LOSS)
    gained = statistics.fmean(after[seed] for seed in start.by_seed)
    base = statistics.fmean(start.by_seed.values())
    if gained >= base:
        lost = f"{reference.name} has {gained:.3g} nats per token and gained nothing over {start.name} ({base:.3g})"
        return replace(question, gain_over=start.name, margin_lost=lost)
    return replace(
        question,
        margin=share.allowed(reference=gained, base=base),
        margin_share=share.amount,
        gain_over=start.name,
    )
