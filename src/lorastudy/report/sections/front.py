"""The first page: the question, the verdict, the recommendation, what limits it.

Nothing is computed here: verdicts, differences and findings are those of the tables below. The question is the one that the suite
stated before it ran, with its changes since.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lorastudy.analysis.overview import Analysis
from lorastudy.lint.case import LintFinding, arms_in_words
from lorastudy.lint.evidence import TOO_FEW_SEEDS
from lorastudy.recommend.decision import arms_with_more_loss, decide, harmed_arms
from lorastudy.report.document import Block, Bullets, Heading, Paragraph, Strong, Text, Tiles
from lorastudy.report.findings.by_type import questions_of
from lorastudy.report.findings.headline import Headline, headline
from lorastudy.report.findings.recommendation import Advice, recommendation
from lorastudy.report.findings.wording import (
    cost_bounds,
    margin_words,
    measured_difference,
    verdicts_by_word,
    what_seeds_can_show,
    when_stated,
)
from lorastudy.report.numbers import count, listing, names, number
from lorastudy.report.sections.metrics import failed_row_notes, metric_in_words
from lorastudy.report.sections.overview import setting_values, what_was_run
from lorastudy.report.sections.tuning import wrong_stops_measured
from lorastudy.stats.reference import missing_reference
from lorastudy.stats.study import DECIDING, SetLate, Study, environment_groups
from lorastudy.stats.summary import LOSS, primary_metric_of
from lorastudy.store.views import StatedQuestion
from lorastudy.suite.question import Question, rung_name

#: The first page shows this many limits and counts the others.
_MOST_LIMITS = 3
#: The heading under which all of them stand.
LIMITS = "What limits this"

_SPLITS = {"eval": "the held-out rows", "test": "the test rows"}


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """A study's first page in a few lines, for a reader who does not open the file: the page's own sentences."""

    title: str
    answer: str
    parts: tuple[tuple[str, str], ...]
    """How sure it is and what it costs, or what would decide, each with its title."""
    limits: tuple[Text, ...]
    arm: str | None = None
    """The arm that the answer names."""

    def lines(self) -> Sequence[str]:
        """The answer and its parts, one line each, not yet wrapped."""
        return [self.answer, *(f"{title} {text}" for title, text in self.parts)]


@dataclass(frozen=True, kw_only=True)
class FrontPage:
    """The first page as values: the report shows all of them, a terminal some."""

    question: str
    what_was_run: str
    verdict: str
    """The verdicts of the comparisons, then the headline of the experiment type."""
    headline: Headline
    """What to use, how sure that is, what it costs, and what would decide."""
    recommendation: Advice
    limits: tuple[Text, ...]
    """The gravest first."""

    def summary(self, title: str) -> StudySummary:
        """The page in a few of its own lines: where something would decide, that comes instead of the costs."""
        parts = self.headline.parts
        if self.headline.what_decides:
            parts = tuple((title, text) for title, text in parts if text != self.headline.cost)
        return StudySummary(
            title=title, answer=self.headline.answer, parts=parts, limits=self.limits, arm=self.headline.arm
        )


def front_page(analysis: Analysis, *, statements: Sequence[StatedQuestion] = ()) -> FrontPage:
    """The first page. `statements` are the suite's stated questions, the oldest first."""
    return FrontPage(
        question=_question(analysis, statements),
        what_was_run=what_was_run(analysis.study),
        verdict=_verdict(analysis),
        headline=headline(analysis),
        recommendation=recommendation(analysis),
        limits=tuple(_limits(analysis)),
    )


def front_blocks(page: FrontPage, *, figures: Tiles, charts: Sequence[Block]) -> list[Block]:
    """The answer, on the page with its key figures; how sure it is and what it costs; the charts; the gravest limits."""
    shown = page.limits[:_MOST_LIMITS]
    more = len(page.limits) - len(shown)
    rest: list[Text] = [(f"{more} more below, under “{LIMITS}”.",)] if more else []
    return [
        Paragraph((Strong(page.headline.answer),)),
        figures,
        *(Paragraph((Strong(title), f" {text}")) for title, text in page.headline.parts),
        *charts,
        Paragraph((Strong("What limits this."),)),
        Bullets((*shown, *rest)),
    ]


def decision_blocks(page: FrontPage, *, level: int) -> list[Block]:
    """The verdicts and the recommendation in full."""
    return [
        Heading(level=level, text="Recommendation"),
        Paragraph((Strong("Verdict."), f" {page.verdict}")),
        Paragraph((Strong("Recommendation."), f" {page.recommendation.why}")),
    ]


def limit_blocks(page: FrontPage, *, level: int) -> list[Block]:
    """Everything that limits the conclusions, the gravest first."""
    return [Heading(level=level, text=LIMITS), Bullets(page.limits)]


def run_blocks(
    page: FrontPage, statements: Sequence[StatedQuestion], *, study: Study, level: int, description: str = ""
) -> list[Block]:
    """What was asked and what was run, after the suite's own description."""
    return [
        Heading(level=level, text="Question and runs"),
        *([Paragraph((description,))] if description else []),
        Paragraph((Strong("Question."), f" {page.question}")),
        Paragraph((Strong("What was run."), f" {page.what_was_run}")),
        *question_blocks(statements, study),
    ]


def _question(analysis: Analysis, statements: Sequence[StatedQuestion]) -> str:
    """The question of the design, what was stated first, and what holds now if that differs."""
    design = questions_of(analysis.study.experiment_type).question
    if not statements:
        return (
            f"{design} No question was stated beforehand: {analysis.primary.title.lower()} decides, the design names "
            "the reference, and without a margin no arm can be as good within it."
        )
    first, last = statements[0], statements[-1]
    now = _decides(
        last.question, analysis.study, margin=margin_words(analysis), lost=analysis.criterion.margin_lost
    )
    beforehand = (
        "beforehand" if not first.num_completed else when_stated(first.stated_at, first.num_completed)
    )
    changes = [
        after
        for before, after in itertools.pairwise(statements)
        if set(DECIDING) & set(after.question.differences(before.question))
    ]
    if not changes:
        return f"{design} Stated {beforehand}: {now}."
    stated = _decides(first.question, analysis.study, margin=str(first.question.margin or "none"))
    changed = when_stated(changes[-1].stated_at, changes[-1].num_completed)
    return f"{design} Stated {beforehand}: {stated}. What holds now, as changed on {changed}: {now}."


def _decides(question: Question, study: Study, *, margin: str, lost: str | None = None) -> str:
    metric = _metric_name(question)
    reference = "the reference that the design names"
    if question.reference is not None:
        reference = study.called(question.reference)
    if lost is not None:
        return f"{metric} decides, against {reference}, with a margin of {question.margin} that cannot be used: {lost}"
    return f"{metric} decides, against {reference}, with {'no margin' if margin == 'none' else f'a margin of {margin}'}"


def _metric_name(question: Question) -> str:
    """`held-out loss`, or the name of a metric that the suite adds, as its file writes it."""
    own = next((each for each in question.metrics if each.key == question.primary_metric and each.file), None)
    return primary_metric_of(question).title.lower() if own is None else own.name


def _verdict(analysis: Analysis) -> str:
    headline = questions_of(analysis.study.experiment_type).headline(analysis)
    words = verdicts_by_word(analysis) if _has_pairs(analysis) else ""
    return headline if words in headline else f"{words} {headline}"


def _has_pairs(analysis: Analysis) -> bool:
    return analysis.reference is not None and bool(analysis.primary_comparisons)


def _limits(analysis: Analysis) -> Iterator[Text]:
    """Everything that limits the conclusions, one line each; details are in the sections below."""
    yield from _set_late(analysis)
    yield from _harmed(analysis)
    yield from _not_guessed(analysis)
    yield from _contradictions(analysis)
    yield from _diverged(analysis)
    yield from _not_completed(analysis.study)
    yield from failed_row_notes(analysis)
    yield from _findings(analysis)
    if seeds := what_seeds_can_show(analysis):
        yield (seeds,)
    yield from _choice_in_sample(analysis)
    yield from _stand_in(analysis)
    yield from _pruned(analysis.study)
    yield (_scope(analysis.study),)


def _set_late(analysis: Analysis) -> Iterator[Text]:
    """What verdicts depend on and was set when results existed. It comes first, since no number shows it."""
    for late in analysis.criterion.late_by_key.values():
        yield (late_note(late, analysis.study),)


def _harmed(analysis: Analysis) -> Iterator[Text]:
    """Which arms training made worse than the base model, or whose held-out loss rose, which is no harm by itself."""
    harmed = harmed_arms(analysis)
    if harmed:
        yield (f"Harm: training made {names(harmed)} worse than the base model, by mean held-out loss.",)
    rest = [arm for arm in arms_with_more_loss(analysis) if arm not in harmed]
    if rest:
        decides = "that may be noise" if analysis.primary == LOSS else _what_decides(analysis)
        yield (f"Held-out loss rose above the base model's in {names(rest)}, by its mean; {decides}.",)


def _what_decides(analysis: Analysis) -> str:
    """The primary metric, and whether it was stated before there were results."""
    is_late = "primary_metric" in analysis.criterion.late_by_key
    return f"{analysis.primary.title} decides, {'which was set when results existed' if is_late else 'as stated'}"


def _not_guessed(analysis: Analysis) -> Iterator[Text]:
    """That guessing without a model is unknown by a metric that the suite adds."""
    if analysis.primary in analysis.criterion.added_metrics and not analysis.trivial:
        title = analysis.primary.title
        yield (f"Guessing without a model was not scored by {title}, so no arm is shown to beat it.",)


def _contradictions(analysis: Analysis) -> Iterator[Text]:
    """Metrics by which another arm is ahead of the named one with its whole interval; of each metric the farthest arm."""
    named = decide(analysis).arm
    if named is None:
        return
    taken, primary = analysis.study.arm(named), analysis.primary
    compared = {
        analysis.reference.name if analysis.reference else "",
        *(c.arm for c in analysis.primary_comparisons),
    }
    others = [arm for arm in analysis.study.arms if arm.name in compared - {named}]
    for metric in analysis.criterion.compared_metrics:
        if metric == primary:
            continue
        pairs = [
            one for one in analysis.pairs(others, reference=taken, metric=metric) if cost_bounds(one)[1] < 0
        ]
        if pairs:
            farthest = min(pairs, key=lambda one: one.cost or 0.0)
            scores = [analysis.summary(arm).score(metric) for arm in (farthest.arm, named)]
            ours, theirs = (f"{score.mean:.3g}" if score else "unknown" for score in scores)
            text = (
                f"{metric.title} puts {farthest.arm} ahead: {ours}, {named} {theirs} ({farthest.arm} minus {named}: "
                f"{measured_difference(farthest)}). {_what_decides(analysis)}."
            )
            yield (text,)


def _diverged(analysis: Analysis) -> Iterator[Text]:
    """Which arms diverged on a reporting seed, with the rate. Divergence is a result, and in no mean."""
    arms = [summary.arm.name for summary in analysis.summaries]
    found = [one.words for one in map(analysis.divergence, arms) if one is not None]
    if found:
        yield (f"{listing(found)}. Verdicts count a diverged seed as beaten; means leave it out.",)


def _findings(analysis: Analysis) -> Iterator[Text]:
    """The linter's serious findings, except too few seeds, which have their own line."""
    grave = [one for one in analysis.lint if one.severity != "note" and one.code != TOO_FEW_SEEDS]
    for finding in grave:
        yield _limit_of(analysis, finding)


def _limit_of(analysis: Analysis, finding: LintFinding) -> Text:
    concerned = arms_in_words(finding.arms, num_arms=len(analysis.study.arms))
    return (f"{finding.title} ({finding.code}, {concerned}): {finding.found}.",)


def _choice_in_sample(analysis: Analysis) -> Iterator[Text]:
    """That the reporting rows also chose the learning rates, and by how much that may flatter."""
    chosen = [choice for choice in analysis.choices if choice.in_sample]
    if not chosen:
        return
    measured = [choice.optimism for choice in chosen if choice.optimism is not None]
    worth = (
        f", by at most {number(max(measured), 4)} {analysis.primary.unit} as measured".rstrip()
        if measured and max(measured) > 0
        else ""
    )
    text = (
        "Learning rates were chosen on the same held-out rows that report, so the chosen scores look better "
        f"than they are{worth}."
    )
    yield (text,)


def _stand_in(analysis: Analysis) -> Iterator[Text]:
    """That the reference is not the one of the design."""
    missing = missing_reference(analysis.study)
    if missing is not None and analysis.reference is not None and analysis.criterion.reference is None:
        text = f"{analysis.reference.name} is the reference in place of {missing.name}, the reference by design, which has no completed run."
        yield (text,)


def _not_completed(study: Study) -> Iterator[Text]:
    """How many runs did not complete, by reason."""
    missing = [r for r in study.results if r.status != "completed" and not r.was_pruned]
    if missing:
        kinds = Counter((result.failure_kind or result.status).replace("_", " ") for result in missing)
        text = listing(f"{times} {kind}" for kind, times in kinds.items())
        yield (f"{len(missing)} of {count(len(study.results))} experiments did not complete: {text}.",)


def _pruned(study: Study) -> Iterator[Text]:
    """Which arms racing stopped, and how often such stops were wrong."""
    stopped = [arm.name for arm in study.arms if arm.was_pruned]
    if stopped:
        text = f"{names(stopped)} {'was' if len(stopped) == 1 else 'were'} stopped by racing, without a final score."
        yield (f"{text} {wrong_stops_measured()}".rstrip(),)


def _scope(study: Study) -> str:
    """What the conclusions are about: data, base model, machine."""
    data, models = setting_values(study.arms, "dataset_path"), setting_values(study.arms, "base_model")
    text = f"One data set ({data[0]})" if len(data) == 1 else f"{len(data)} data sets"
    text += f" and one base model ({models[0]})" if len(models) == 1 else f" and {len(models)} base models"
    groups = environment_groups(study.completed)
    cpu = bool(groups) and all(group.environment.device == "cpu" for group in groups)
    costs = " Memory and time were measured on a CPU and say little about a GPU." if cpu else ""
    return f"{text}: on others the answer may differ.{costs}"


def question_blocks(statements: Sequence[StatedQuestion], study: Study) -> list[Block]:
    """The first question; then every change, with the number of results that existed; then the question that holds now.

    Empty without a question.
    """
    if not statements:
        return []
    first, last = statements[0], statements[-1]
    blocks: list[Block] = [
        Paragraph((Strong("Stated"), f" {_when(first)} {_parts_in_words(first.question, study)}"))
    ]
    for before, after in itertools.pairwise(statements):
        text = [
            _change(key, before=before.question, after=after.question, study=study)
            for key in after.question.differences(before.question)
            if key != "subject"
        ]
        text += _other_subject(before.question, after.question)
        changed = "; ".join(dict.fromkeys(text))
        blocks.append(Paragraph((Strong("Changed"), f" {_when(after)}: {changed}.")))
    if len(statements) > 1:
        holds = f", as changed on {_when(last)} {_parts_in_words(last.question, study)}"
        blocks.append(Paragraph((Strong("What holds now"), holds)))
    return blocks


def part(key: str, question: Question, *, study: Study) -> str:
    """One part of the question: `margin 2 % of the reference's gain`. The study says what the reference is called."""
    if key == "reference" and question.reference is not None:
        return f"reference {study.called(question.reference)}"
    return _PARTS[key](question)


def late_note(late: SetLate, study: Study) -> str:
    """A note that a part which decides verdicts was set when results existed, with its earlier value."""
    when = when_stated(late.stated_at, late.num_completed)
    what = f"The {late.key.replace('_', ' ')}"
    how = (
        f"was set on {when}"
        if late.first is None
        else f"was changed on {when}: {_change(late.key, before=late.first, after=late.now, study=study)}"
    )
    return f"{what} {how}. It could have been chosen to suit them, so it does not count as stated beforehand."


def _change(key: str, *, before: Question, after: Question, study: Study) -> str:
    return f"{part(key, before, study=study)} became {part(key, after, study=study)}"


def _parts_in_words(question: Question, study: Study) -> str:
    """Its id and all its parts."""
    unused = {key for key in ("rungs", "metrics", "time_budget_hours") if not getattr(question, key)}
    parts = (part(key, question, study=study) for key in _PARTS if key not in unused)
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
    return listing(map(str, seeds)) if seeds else "none"


def _tuning(question: Question) -> str:
    if question.choosing_split is None:
        return "each arm has one learning rate, given beforehand"
    own = f" by separate runs with seeds {_seeds(question.tuning_seeds)}" if question.tuning_seeds else ""
    return f"learning rates are chosen on {_SPLITS[question.choosing_split]}{own}"


def _racing(question: Question) -> str:
    if not question.rungs:
        return "every arm trains to its end"
    return f"arms that are clearly behind after {listing(map(rung_name, question.rungs))} of the steps are stopped"


def _budget(question: Question) -> str:
    if question.time_budget_hours is None:
        return "every arm reports with all seeds, however long that takes"
    return (
        f"time budget {question.time_budget_hours:g} h: the arms with the best scores on {_SPLITS['eval']} report, with as many "
        "of the seeds as the time left allows, fixed before any of them runs"
    )


_SUBJECTS = {
    "base_model": "the question is about another base model than before",
    "dataset": "it trains on other rows than before",
    "eval_dataset": "it scores other held-out rows than before",
    "test_dataset": "it scores other test rows than before",
}


def _primary_in_words(question: Question) -> str:
    """As `_metric_name`, with the file and its hash for a metric of the user's own."""
    own = next((each for each in question.metrics if each.key == question.primary_metric and each.file), None)
    return _metric_name(question) if own is None else metric_in_words(own)


_PARTS: dict[str, Callable[[Question], str]] = {
    "primary_metric": lambda question: f"{_primary_in_words(question)} decides",
    "metrics": lambda question: (
        f"also measured: {listing(map(metric_in_words, question.metrics)) if question.metrics else 'nothing'}"
    ),
    "margin": lambda question: f"margin {question.margin or 'none'}",
    "reference": lambda question: f"reference {question.reference or 'as the design names it'}",
    "seeds": lambda question: f"seeds {_seeds(question.seeds)}",
    "choosing_split": _tuning,
    "tuning_seeds": _tuning,
    "rungs": _racing,
    "time_budget_hours": _budget,
    "reporting_split": lambda question: f"{_SPLITS[question.reporting_split]} report",
}
