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
from lorastudy.recommend.decision import decide, harmed_arms
from lorastudy.report.document import Block, Bullets, Paragraph, Strong, Text, plain
from lorastudy.report.findings.by_type import questions_of
from lorastudy.report.findings.recommendation import Advice, recommendation
from lorastudy.report.findings.wording import (
    cost_bounds,
    margin_words,
    measured_difference,
    verdict_summary,
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
from lorastudy.stats.summary import primary_metric_of
from lorastudy.store.views import StatedQuestion
from lorastudy.suite.question import Question, rung_name

#: The first page names this many findings and counts the others.
_MOST_FINDINGS = 4

_SPLITS = {"eval": "the held-out rows", "test": "the test rows"}


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """A study's first page in a few lines, for a reader who does not open the file: the page's own sentences."""

    title: str
    verdict: str
    recommendation: str | None
    """None of imported results, which recommend nothing."""
    limits: tuple[Text, ...]

    def lines(self) -> Sequence[str]:
        """The verdict, the recommendation and the main limit, one line each, not yet wrapped."""
        text = [f"Verdict. {self.verdict}"]
        if self.recommendation is not None:
            text.append(f"Recommendation. {self.recommendation}")
        if self.limits:
            more = len(self.limits) - 1
            rest = f" ({more} more in the report.)" if more else ""
            text.append(f"What limits this. {plain(self.limits[0])}{rest}")
        return text


@dataclass(frozen=True, kw_only=True)
class FrontPage:
    """The first page as values: the report shows all of them, a terminal some."""

    question: str
    what_was_run: str
    verdict: str
    """The verdicts of the comparisons, then the headline of the experiment type."""
    verdict_in_short: str
    """The verdicts alone, if anything was compared."""
    recommendation: Advice
    limits: tuple[Text, ...]
    """The gravest first."""

    def summary(self, title: str) -> StudySummary:
        """The page in a few of its own lines."""
        return StudySummary(
            title=title,
            verdict=self.verdict_in_short,
            recommendation=self.recommendation.answer,
            limits=self.limits,
        )


def front_page(analysis: Analysis, *, statements: Sequence[StatedQuestion] = ()) -> FrontPage:
    """The first page. `statements` are the suite's stated questions, the oldest first."""
    verdict, recommended = _verdict(analysis), recommendation(analysis)
    return FrontPage(
        question=_question(analysis, statements),
        what_was_run=what_was_run(analysis.study),
        verdict=verdict,
        verdict_in_short=(verdict_summary(analysis) if _has_pairs(analysis) else "") or verdict,
        recommendation=recommended,
        limits=tuple(_limits(analysis)),
    )


def front_blocks(page: FrontPage) -> list[Block]:
    """Five short paragraphs, the last of them a list."""
    return [
        Paragraph((Strong("Question."), f" {page.question}")),
        Paragraph((Strong("What was run."), f" {page.what_was_run}")),
        Paragraph((Strong("Verdict."), f" {page.verdict}")),
        Paragraph((Strong("Recommendation."), f" {page.recommendation.why}")),
        Paragraph((Strong("What limits this."),)),
        Bullets(page.limits),
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
    now = _decides(last.question, margin=margin_words(analysis), lost=analysis.criterion.margin_lost)
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
    stated = _decides(first.question, margin=str(first.question.margin or "none"))
    changed = when_stated(changes[-1].stated_at, changes[-1].num_completed)
    return f"{design} Stated {beforehand}: {stated}. What holds now, as changed on {changed}: {now}."


def _decides(question: Question, *, margin: str, lost: str | None = None) -> str:
    metric = _metric_name(question)
    reference = question.reference or "the reference that the design names"
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
    yield from _contradictions(analysis)
    yield from _diverged(analysis)
    yield from failed_row_notes(analysis)
    yield from _findings(analysis)
    if seeds := what_seeds_can_show(analysis):
        yield (seeds,)
    yield from _choice_in_sample(analysis)
    yield from _stand_in(analysis)
    yield from _not_completed(analysis.study)
    yield from _pruned(analysis.study)
    yield (_scope(analysis.study),)


def _set_late(analysis: Analysis) -> Iterator[Text]:
    """What verdicts depend on and was set when results existed. It comes first, since no number shows it."""
    for late in analysis.criterion.late_by_key.values():
        yield (late_note(late),)


def _harmed(analysis: Analysis) -> Iterator[Text]:
    """Which arms training made worse than the base model."""
    if found := harmed_arms(analysis):
        yield (f"Harm: training made {names(found)} worse than the base model, by mean held-out loss.",)


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
                f"{metric.title} says otherwise: {farthest.arm} {ours}, {named} {theirs} ({farthest.arm} minus {named}: "
                f"{measured_difference(farthest)}). {primary.title} decides, as stated."
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
    for finding in grave[:_MOST_FINDINGS]:
        yield _limit_of(analysis, finding)
    if len(grave) > _MOST_FINDINGS:
        yield (f"{len(grave) - _MOST_FINDINGS} more findings of the linter, below.",)


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
    unused = {key for key in ("rungs", "metrics") if not getattr(question, key)}
    parts = (say(question) for key, say in _PARTS.items() if key not in unused)
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


def _primary_in_words(question: Question) -> str:
    """As `_metric_name`, with the file and its hash for a metric of the user's own."""
    own = next((each for each in question.metrics if each.key == question.primary_metric and each.file), None)
    return _metric_name(question) if own is None else metric_in_words(own)


_PARTS: dict[str, Callable[[Question], str]] = {
    "primary_metric": lambda question: f"{_primary_in_words(question)} decides",
    "metrics": lambda question: (
        f"also measured: {listing(map(metric_in_words, question.metrics)) or 'nothing'}"
    ),
    "margin": lambda question: f"margin {question.margin or 'none'}",
    "reference": lambda question: f"reference {question.reference or 'as the design names it'}",
    "seeds": lambda question: f"seeds {_seeds(question.seeds)}",
    "choosing_split": _tuning,
    "tuning_seeds": _tuning,
    "rungs": _racing,
    "reporting_split": lambda question: f"{_SPLITS[question.reporting_split]} report",
}
