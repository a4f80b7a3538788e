"""By which question a study of the store is judged for a recommendation: the suite file's that was asked about, else its own."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lorastudy.analysis.overview import Criterion, criterion_of
from lorastudy.cli.asked import Asked
from lorastudy.report.sections.question import late_note, part
from lorastudy.stats.preregistration import DECIDING, set_late
from lorastudy.stats.study import Study
from lorastudy.store.views import StatedQuestion
from lorastudy.suite.question import Question, is_reference


def judged_by(
    study: Study, statements: Sequence[StatedQuestion], *, asked: Asked
) -> tuple[Criterion, tuple[str, ...]]:
    """The criterion, and what is to be known of it: that it is not the one stored, or was set with results at hand.

    `statements` are those of the study's suite. A margin that was given as an option comes before any other.
    """
    stated = statements[-1].question if statements else None
    used = _used(study, stated, asked=asked)
    criterion = criterion_of(study, used)
    if asked.margin is not None:
        criterion = replace(criterion, margin=asked.margin, margin_share=None, margin_lost=None)
    return criterion, tuple(_notes(study, statements, used=used, asked=asked))


def _used(study: Study, stated: Question | None, *, asked: Asked) -> Question | None:
    """The stored question with what the file says. Of another suite's what the file is silent about stays."""
    own = asked.question
    if own is None:
        return stated
    base = stated or Question()
    margin, reference = own.margin, own.reference
    if study.suite_name != asked.suite_name:
        margin = margin or base.margin
        reference = reference if _has(study, reference) else base.reference
    return replace(base, primary_metric=own.primary_metric, margin=margin, reference=reference)


def _has(study: Study, reference: str | None) -> bool:
    return reference is not None and any(
        is_reference(reference, arm=arm.name, learning_rate=arm.typed_settings.learning_rate)
        for arm in study.arms
    )


def _notes(
    study: Study, statements: Sequence[StatedQuestion], *, used: Question | None, asked: Asked
) -> Iterator[str]:
    if not statements or used is None:
        return
    stated = statements[-1].question
    late = {one.key: one for one in set_late(statements)}
    for key in DECIDING:
        if key == "margin" and asked.margin is not None:
            continue
        if getattr(used, key) != getattr(stated, key):
            yield (
                f"{part(key, used)}, as the suite file says; the store's question of {study.suite_name} says "
                f"{part(key, stated)}, and what is changed once results are there can be chosen to suit them"
            )
        elif key in late and (key != "margin" or used.margin is not None):
            yield late_note(late[key])
