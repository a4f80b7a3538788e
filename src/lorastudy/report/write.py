"""`write_report`: from the store to RESULTS.md, its plots and an HTML file beside it.

The same results give the same bytes: nothing here reads a clock.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lorastudy.analysis.imported import ImportedAnalysis
from lorastudy.analysis.overview import Analysis
from lorastudy.report.compose import Part, compose
from lorastudy.report.document import Block
from lorastudy.report.figures.data import curve_arms, study_figures
from lorastudy.report.figures.figure import Figure
from lorastudy.report.figures.static import save_figure
from lorastudy.report.html import render_html
from lorastudy.report.markdown import render_markdown
from lorastudy.report.presentable import presentable
from lorastudy.report.read import Report, Studied, read_report
from lorastudy.report.sections.imported import imported_blocks
from lorastudy.stats.summary import CurvePoint, bin_width, mean_curve
from lorastudy.store import ExperimentTracker
from lorastudy.suite.privacy import Privacy


def write_report(
    tracker: ExperimentTracker,
    *,
    experiment_type: str | None = None,
    suite_name: str | None = None,
    reference: str | None = None,
    output: Path = Path("RESULTS.md"),
    plots: Path | None = None,
) -> list[Path]:
    """Write the report of one type or suite, or of all suites, and return the files written; see `save_report`.

    Raises:
        StudyError: there is nothing to report; the message says what to run.
    """
    report = read_report(tracker, experiment_type=experiment_type, suite_name=suite_name, reference=reference)
    return save_report(report, tracker, output=output, plots=plots)


def save_report(
    report: Report,
    tracker: ExperimentTracker,
    *,
    output: Path = Path("RESULTS.md"),
    plots: Path | None = None,
) -> list[Path]:
    """Write what was read and return the files written: Markdown, HTML, then the plots.

    Plots go to `<output's stem in lower case>/plots` beside the output, unless told otherwise: `RESULTS.md`
    has them in `results/plots`, and two reports in one folder do not overwrite each other's.
    """
    folder = plots if plots is not None else output.parent / output.stem.lower() / "plots"
    if report.imported is not None:
        return _write_imported(report.imported, output=output, folder=folder)
    parts = _with_distinct_file_names([_part(tracker, studied) for studied in report.studies])
    folder.mkdir(parents=True, exist_ok=True)
    images = [path for part in parts for figure in part.figures for path in save_figure(figure, folder)]
    blocks = compose(parts, output=output, imported_apart=report.imported_apart)
    return [*_write_pages(blocks, output=output, plots=folder), *images]


def _write_imported(analysis: ImportedAnalysis, *, output: Path, folder: Path) -> list[Path]:
    blocks = imported_blocks(analysis)
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


def _part(tracker: ExperimentTracker, studied: Studied) -> Part:
    return Part(studied=studied, figures=study_figures(studied.analysis, _curves(tracker, studied.analysis)))


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
