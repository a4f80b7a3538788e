"""`write_report`: from the store to RESULTS.md, its plots and an HTML file beside it.

The same results give the same bytes: nothing here reads a clock.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lorastudy.analysis.curves import CurvePoint, bin_width, mean_curve
from lorastudy.analysis.imported import analyse_imported
from lorastudy.analysis.items import stored_items
from lorastudy.analysis.overview import Analysis, analyse
from lorastudy.analysis.stated import asked_of
from lorastudy.analysis.study import Study, split_studies
from lorastudy.errors import StudyError
from lorastudy.report.compose import Part, compose
from lorastudy.report.document import Block
from lorastudy.report.figures.data import curve_arms, study_figures
from lorastudy.report.figures.figure import Figure
from lorastudy.report.figures.static import save_figure
from lorastudy.report.html import render_html
from lorastudy.report.markdown import render_markdown
from lorastudy.report.presentable import presentable, without_traces
from lorastudy.report.sections.imported import imported_blocks
from lorastudy.spec.privacy import Privacy
from lorastudy.tracker import ExperimentTracker
from lorastudy.tracker.views import ImportedResult, SuiteSummary


def write_report(
    tracker: ExperimentTracker,
    *,
    experiment_type: str | None = None,
    suite_name: str | None = None,
    output: Path = Path("RESULTS.md"),
    plots: Path | None = None,
) -> list[Path]:
    """Write the report and return the files written: Markdown, HTML, then the plots.

    Plots go to `<output's stem in lower case>/plots` beside the output, unless told otherwise: `RESULTS.md`
    has them in `results/plots`, and two reports in one folder do not overwrite each other's.

    The report of a suite of imported results is another one, and never joined with those of runs of one's own.

    Raises:
        StudyError: there is nothing to report; the message says what to run.
    """
    folder = plots if plots is not None else output.parent / output.stem.lower() / "plots"
    imported = [] if suite_name is None else tracker.get_imported(suite_name)
    if imported:
        return _write_imported(imported, output=output, folder=folder)
    studies = _studies(tracker, experiment_type=experiment_type, suite_name=suite_name)
    suites = {suite.suite_name: suite for suite in tracker.get_suites()}
    parts = []
    for study in studies:
        suite = suites[study.suite_name]
        stated = suite.questions[-1].question if suite.questions else None
        told = study if stated is None else replace(study, tuning_seeds=frozenset(stated.tuning_seeds))
        question = asked_of(told, stated)
        items = stored_items(tracker, told, metrics=question.metrics_by_item)
        analysis = analyse(told, question=question, items=items)
        parts.append(_part(tracker, analysis, suite=suite))
    parts = _with_distinct_file_names(parts)
    folder.mkdir(parents=True, exist_ok=True)
    images = [path for part in parts for figure in part.figures for path in save_figure(figure, folder)]
    return [*_write_pages(compose(parts, output=output), output=output, plots=folder), *images]


def _write_imported(results: Sequence[ImportedResult], *, output: Path, folder: Path) -> list[Path]:
    blocks = imported_blocks(analyse_imported(results))
    figures = [block for block in blocks if isinstance(block, Figure)]
    if figures:
        folder.mkdir(parents=True, exist_ok=True)
    images = [path for figure in figures for path in save_figure(figure, folder)]
    return [*_write_pages(blocks, output=output, plots=folder), *images]


def _write_pages(blocks: Sequence[Block], *, output: Path, plots: Path) -> list[Path]:
    """The same blocks as Markdown and as a page beside it, fit to be passed on."""
    blocks = presentable(blocks, Privacy.of_this_machine())
    markdown, page = render_markdown(blocks, output=output, plots=plots), render_html(blocks)
    html_path = output.with_suffix(".html")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(markdown, encoding="utf-8")
    html_path.write_text(page, encoding="utf-8")
    return [output, html_path]


def _studies(
    tracker: ExperimentTracker, *, experiment_type: str | None, suite_name: str | None
) -> tuple[Study, ...]:
    """The studies asked for. One without a completed experiment stays in, for its failures, if another has one."""
    privacy = Privacy.of_this_machine()
    results = [
        without_traces(result, privacy) for result in tracker.get_all_experiments(suite_name=suite_name)
    ]
    if experiment_type is not None:
        results = [result for result in results if result.experiment_type == experiment_type]
    asked = "".join(
        f" {what} {value!r}"
        for what, value in (("of type", experiment_type), ("in suite", suite_name))
        if value is not None
    )
    if not results:
        raise StudyError(
            f"The store holds no experiment{asked}. Run `lorastudy suite <file.yaml>` first, or `lorastudy demo` "
            "for a study that needs no data of your own."
        )
    studies = split_studies(results)
    if not any(study.completed for study in studies):
        messages = "; ".join(dict.fromkeys(r.failure_message for r in results if r.failure_message))
        because = f" What went wrong: {messages}." if messages else ""
        raise StudyError(
            f"None of the {len(results)} experiments{asked} in the store has completed.{because} Run "
            "`lorastudy suite <file.yaml>` again, then `lorastudy report`."
        )
    return studies


def _part(tracker: ExperimentTracker, analysis: Analysis, *, suite: SuiteSummary) -> Part:
    figures = study_figures(analysis, _curves(tracker, analysis))
    return Part(analysis=analysis, figures=figures, description=suite.description, questions=suite.questions)


def _curves(tracker: ExperimentTracker, analysis: Analysis) -> Mapping[str, Sequence[CurvePoint]]:
    """The training curve of each arm that is drawn, over its completed seeds, all thinned alike."""
    drawn = frozenset(curve_arms(analysis))
    arms = [arm for arm in analysis.study.reported_arms if arm.name in drawn]
    steps = tracker.get_all_steps([result.experiment_id for arm in arms for result in arm.completed])
    runs = {arm.name: [steps[result.experiment_id] for result in arm.completed] for arm in arms}
    last = max((row.step for arm_runs in runs.values() for run in arm_runs for row in run), default=1)
    return {name: mean_curve(arm_runs, width=bin_width(last)) for name, arm_runs in runs.items()}


def _with_distinct_file_names(parts: Sequence[Part]) -> list[Part]:
    """The specification's file names for one study; with several, each study's begin with its suite's name."""
    if len(parts) == 1:
        return list(parts)
    prefixes: dict[str, int] = {}
    renamed = []
    for part in parts:
        slug = re.sub(r"[^A-Za-z0-9]+", "_", part.analysis.study.suite_name).strip("_").lower() or "suite"
        prefixes[slug] = prefixes.get(slug, 0) + 1
        prefix = slug if prefixes[slug] == 1 else f"{slug}_{prefixes[slug]}"
        renamed.append(replace(part, figures=tuple(_prefixed(figure, prefix) for figure in part.figures)))
    return renamed


def _prefixed(figure: Figure, prefix: str) -> Figure:
    return replace(figure, name=f"{prefix}_{figure.name}")
