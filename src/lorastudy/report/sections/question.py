"""The question that the suite stated before it ran, and its changes since."""

import itertools
from collections.abc import Callable, Sequence

from lorastudy.report.document import Block, Paragraph, Strong
from lorastudy.report.findings.wording import when_stated
from lorastudy.report.numbers import listing
from lorastudy.stats.study import SetLate
from lorastudy.store.views import StatedQuestion
from lorastudy.suite.question import Question, rung_name

METRIC_NAMES = {"loss": "held-out loss", "token_accuracy": "token accuracy", "exact_match": "exact match"}
_SPLITS = {"eval": "the held-out rows", "test": "the test rows"}


def question_blocks(statements: Sequence[StatedQuestion]) -> list[Block]:
    """The first question; then every change, with the number of results that existed; then the question that holds now.

    Empty without a question.
    """
    if not statements:
        return []
    first, last = statements[0], statements[-1]
    blocks: list[Block] = [
        Paragraph((Strong("Stated"), f" {_when(first)} {_parts_in_words(first.question)}"))
    ]
    for before, after in itertools.pairwise(statements):
        text = [
            _change(key, before=before.question, after=after.question)
            for key in after.question.differences(before.question)
            if key != "subject"
        ]
        text += _other_subject(before.question, after.question)
        changed = "; ".join(dict.fromkeys(text))
        blocks.append(Paragraph((Strong("Changed"), f" {_when(after)}: {changed}.")))
    if len(statements) > 1:
        holds = f", as changed on {_when(last)} {_parts_in_words(last.question)}"
        blocks.append(Paragraph((Strong("What holds now"), holds)))
    return blocks


def part(key: str, question: Question) -> str:
    """One part of the question: `margin 2 % of the reference's gain`."""
    return _PARTS[key](question)


def late_note(late: SetLate) -> str:
    """A note that a part which decides verdicts was set when results existed, with its earlier value."""
    when = when_stated(late.stated_at, late.num_completed)
    what = f"The {late.key.replace('_', ' ')}"
    how = (
        f"was set on {when}"
        if late.first is None
        else f"was changed on {when}: {_change(late.key, before=late.first, after=late.now)}"
    )
    return f"{what} {how}. It could have been chosen to suit them, so it does not count as stated beforehand."


def _change(key: str, *, before: Question, after: Question) -> str:
    return f"{part(key, before)} became {part(key, after)}"


def _parts_in_words(question: Question) -> str:
    """Its id and all its parts."""
    parts = (say(question) for key, say in _PARTS.items() if key != "rungs" or question.rungs)
    return f"({question.id}): {'; '.join(dict.fromkeys(parts))}."


def _other_subject(before: Question, after: Question) -> list[str]:
    """Changes of base model or data."""
    if "subject" not in after.differences(before):
        return []
    return [text for what, text in _SUBJECTS.items() if before.subject_of(what) != after.subject_of(what)]


def _when(stated: StatedQuestion) -> str:
    """When it was stated, and how many results existed then."""
    return when_stated(stated.stated_at, stated.num_completed)


def _seeds(seeds: Sequence[int]) -> str:
    return listing(map(str, seeds)) or "none"


def _tuning(question: Question) -> str:
    if question.choosing_split is None:
        return "each arm has one learning rate, given beforehand"
    own = f" by separate runs with seeds {_seeds(question.tuning_seeds)}" if question.tuning_seeds else ""
    return f"learning rates are chosen on {_SPLITS[question.choosing_split]}{own}"


def _racing(question: Question) -> str:
    if not question.rungs:
        return "every arm trains to its end"
    return f"arms that are clearly behind after {listing(map(rung_name, question.rungs))} of the steps are stopped"


_SUBJECTS = {
    "base_model": "the question is about another base model than before",
    "dataset": "it trains on other rows than before",
    "eval_dataset": "it scores other held-out rows than before",
    "test_dataset": "it scores other test rows than before",
}
_PARTS: dict[str, Callable[[Question], str]] = {
    "primary_metric": lambda question: f"{METRIC_NAMES[question.primary_metric]} decides",
    "margin": lambda question: f"margin {question.margin or 'none'}",
    "reference": lambda question: f"reference {question.reference or 'as the design names it'}",
    "seeds": lambda question: f"seeds {_seeds(question.seeds)}",
    "choosing_split": _tuning,
    "tuning_seeds": _tuning,
    "rungs": _racing,
    "reporting_split": lambda question: f"{_SPLITS[question.reporting_split]} report",
}
