"""A report's content from the store, analysed but not yet drawn: each study by itself, the one that ran last first."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lorastudy.analysis.imported import ImportedAnalysis, analyse_imported
from lorastudy.analysis.overview import Analysis, analyse, criterion_of, stored_items
from lorastudy.errors import StudyError
from lorastudy.report.document import fit_to_be_shown
from lorastudy.report.numbers import names
from lorastudy.report.sections.front import FrontPage, StudySummary, front_page
from lorastudy.report.sections.imported import imported_summary
from lorastudy.stats.study import Study, set_late, split_studies
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult, StatedQuestion, SuiteSummary
from lorastudy.suite.safe_text import Privacy
from lorastudy.suite.suite import Suite


@dataclass(frozen=True, kw_only=True)
class Studied:
    """One study's analysis with its suite."""

    analysis: Analysis
    suite: SuiteSummary
    design: Suite | None = None
    """The suite as its file had it; None in a store of an older version."""

    @property
    def questions(self) -> tuple[StatedQuestion, ...]:
        """The suite's stated questions, the oldest first."""
        return self.suite.questions

    @property
    def title(self) -> str:
        """The suite's name with the experiment type."""
        study = self.analysis.study
        return f"{study.suite_name} ({study.experiment_type.replace('_', ' ')})"

    @cached_property
    def front(self) -> FrontPage:
        """What stands first in the report, and in the terminal."""
        return front_page(self.analysis, statements=self.questions)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of a report: your own studies, the one that ran last first, or a suite of imported results."""

    studies: tuple[Studied, ...] = ()
    imported: ImportedAnalysis | None = None
    imported_apart: tuple[str, ...] = ()
    """Suites of imported results that a report of everything leaves out."""

    @property
    def summaries(self) -> tuple[StudySummary, ...]:
        """Each study in a few lines, fit to be shown to others like the report itself."""
        own = [studied.front.summary(studied.title) for studied in self.studies]
        found = own if self.imported is None else [*own, imported_summary(self.imported)]
        privacy = Privacy.of_this_machine()
        return tuple(fit_to_be_shown(summary, privacy) for summary in found)


def read_report(
    tracker: ExperimentTracker,
    *,
    experiment_type: str | None = None,
    suite_name: str | None = None,
    reference: str | None = None,
    store_flags: Sequence[str] = (),
) -> Report:
    """What the store holds of one type or suite, or of all suites.

    `store_flags` name the store in commands, if it is not the default one.

    A suite of imported results is reported by its name only, and never joined with your own runs. `reference` names one of its
    arms; a suite of your own states its reference in its file.

    Raises:
        StudyError: there is nothing to report; the message says what to run.
    """
    imported = tracker.get_imported(suite_name)
    if suite_name is not None and imported:
        return Report(imported=analyse_imported(imported, reference=reference))
    if reference is not None:
        raise StudyError(
            "--reference is for imported results, with the --suite-name of them; a suite of your own states its `reference` "
            "in its file"
        )
    apart = tuple(dict.fromkeys(result.suite_name for result in imported))
    studies = _studies(
        tracker, experiment_type=experiment_type, suite_name=suite_name, apart=apart, store_flags=store_flags
    )
    suites = {suite.suite_name: suite for suite in tracker.get_suites()}
    designs = tracker.get_designs()
    return Report(
        studies=tuple(
            _studied(tracker, study, suite=suites[study.suite_name], design=designs.get(study.suite_name))
            for study in studies
        ),
        imported_apart=apart if experiment_type is None else (),
    )


def _studied(
    tracker: ExperimentTracker, study: Study, *, suite: SuiteSummary, design: Mapping[str, Any] | None
) -> Studied:
    stated = suite.questions[-1].question if suite.questions else None
    own = study if stated is None else replace(study, tuning_seeds=frozenset(stated.tuning_seeds))
    decided = tracker.get_decisions(study.suite_name)
    own = replace(own, has_finals=any("finalists" in one.content for one in decided)).labelled()
    criterion = replace(criterion_of(own, stated), late=set_late(suite.questions))
    items = stored_items(tracker, own, metrics=criterion.metrics_by_item)
    return Studied(
        analysis=analyse(own, criterion=criterion, items=items),
        suite=suite,
        design=None if design is None else Suite.from_json(design),
    )


def _studies(
    tracker: ExperimentTracker,
    *,
    experiment_type: str | None,
    suite_name: str | None,
    apart: Sequence[str],
    store_flags: Sequence[str],
) -> list[Study]:
    """The requested studies. One without a completed experiment stays, for its failures, if another one has results."""
    privacy = Privacy.of_this_machine()
    results = [
        without_traces(result, privacy) for result in tracker.get_all_experiments(suite_name=suite_name)
    ]
    if experiment_type is not None:
        results = [result for result in results if result.experiment_type == experiment_type]
    filters = "".join(
        f" {what} {value!r}"
        for what, value in (("of type", experiment_type), ("in suite", suite_name))
        if value is not None
    )
    if not results and apart and not filters:
        raise StudyError(
            f"The store holds no experiment, only imported results: {names(apart)}. Name the suite to report: "
            "`lorastudy report --suite-name NAME`."
        )
    if not results:
        raise StudyError(
            f"The store holds no experiment{filters}. Run `lorastudy suite <file.yaml>` first, or `lorastudy demo` "
            "for a study that needs no data of your own."
        )
    studies = split_studies(results)
    if not any(study.completed for study in studies):
        raise StudyError(
            f"None of the {len(results)} experiments{filters} in the store has completed. "
            f"{_how_to_go_on(results, store_flags=store_flags)}"
        )
    return sorted(studies, key=_last_start, reverse=True)


def _how_to_go_on(results: Sequence[ExperimentResult], *, store_flags: Sequence[str]) -> str:
    """What went wrong, if anything, and the command that continues."""
    suites = dict.fromkeys(result.suite_name for result in results)
    named = suites if len(suites) == 1 else ()  # without a name, every suite with work left is resumed
    resume = shlex.join(["lorastudy", "resume", *named, *store_flags])
    failed = (r.failure_message for r in results if r.status == "failed" and r.failure_message)
    messages = "; ".join(dict.fromkeys(failed))
    if not messages:
        return f"To go on: `{resume}`, then `lorastudy report`."
    return (
        f"What went wrong: {messages}. When that is fixed: `{resume}`, or `lorastudy suite FILE` if you changed the suite "
        "file; then `lorastudy report`."
    )


def _last_start(study: Study) -> str:
    """When its latest run began. Stored times sort as text."""
    return max((result.started_at or "" for result in study.results), default="")


def without_traces(result: ExperimentResult, privacy: Privacy) -> ExperimentResult:
    """The result with the message and traceback of its failure made fit to be shown to others."""
    return replace(
        result,
        failure_message=_hidden_failure(result.failure_message, privacy),
        traceback=_hidden_failure(result.traceback, privacy),
    )


def _hidden_failure(text: str | None, privacy: Privacy) -> str | None:
    return None if text is None else privacy.hidden_failure(text)
