"""`write_report`: from the store to RESULTS.md, its plots and an HTML file beside it.

`compose` puts the whole report together as blocks: one part for each study, its sections in the order in which a reader needs
them. The same results give the same bytes: nothing here reads a clock.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorastudy.analysis.imported import ImportedAnalysis
from lorastudy.analysis.overview import Analysis
from lorastudy.places import REPORT
from lorastudy.report.document import (
    Block,
    Bullets,
    Code,
    Figure,
    Heading,
    Kind,
    Paragraph,
    Shown,
    Strong,
    StudyPart,
    Text,
    folded,
    presentable,
)
from lorastudy.report.figures.data import coloured_arms, curve_arms, study_figures
from lorastudy.report.figures.static import save_figure
from lorastudy.report.findings.by_type import questions_of
from lorastudy.report.html import render_html
from lorastudy.report.markdown import render_markdown
from lorastudy.report.numbers import names
from lorastudy.report.read import Report, Studied, read_report
from lorastudy.report.row_differences import rows_of_deciding_pair
from lorastudy.report.sections.answers import answer_blocks
from lorastudy.report.sections.costs import frontier_blocks, incident_blocks, pack_blocks, prediction_blocks
from lorastudy.report.sections.curves import held_out_blocks
from lorastudy.report.sections.front import decision_blocks, front_blocks, limit_blocks, run_blocks
from lorastudy.report.sections.imported import imported_blocks
from lorastudy.report.sections.method import (
    configuration_block,
    environment_blocks,
    fairness_blocks,
    method_blocks,
    reproduce_blocks,
    suite_of,
)
from lorastudy.report.sections.overview import arm_blocks, failure_blocks
from lorastudy.report.sections.results import comparison_blocks, results_blocks
from lorastudy.report.sections.row_by_row import row_blocks
from lorastudy.report.sections.tiles import key_figures
from lorastudy.report.sections.tuning import racing_blocks, rate_blocks
from lorastudy.report.sections.versus import versus_blocks
from lorastudy.report.side_by_side import RowOfArms, stored_answers
from lorastudy.stats.held_out_curves import HeldOutCurve, held_out_curves
from lorastudy.stats.study import give_the_same_bits
from lorastudy.stats.summary import CurvePoint, bin_width, mean_curve
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import StatedQuestion
from lorastudy.suite.safe_text import Privacy


@dataclass(frozen=True, kw_only=True)
class Part:
    """One study with its figures."""

    studied: Studied
    figures: tuple[Figure, ...]
    held_out: Mapping[str, HeldOutCurve]
    """The held-out loss during training, by arm, of those that were scored on the way."""
    answers: tuple[RowOfArms, ...] = ()
    """Stored prompts with their answers, if the report is to have them."""

    @property
    def analysis(self) -> Analysis:
        """The analysis of the study."""
        return self.studied.analysis

    @property
    def questions(self) -> tuple[StatedQuestion, ...]:
        """Its suite's stated questions, the oldest first."""
        return self.studied.questions


def write_report(
    tracker: ExperimentTracker,
    *,
    experiment_type: str | None = None,
    suite_name: str | None = None,
    reference: str | None = None,
    output: Path = REPORT,
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
    output: Path = REPORT,
    plots: Path | None = None,
    with_answers: bool = False,
) -> list[Path]:
    """Write what was read and return the files written: Markdown, HTML, then the plots.

    `with_answers` also writes the prompts, references and answers that the store keeps. They are rows of the user's data.

    Plots go to `<output's stem in lower case>/plots` beside the output by default: `RESULTS.md`
    has them in `results/plots`, and two reports in one folder do not overwrite each other's.
    """
    folder = plots if plots is not None else output.parent / output.stem.lower() / "plots"
    if report.imported is not None:
        return _write_imported(report.imported, output=output, folder=folder)
    found = [_part(tracker, studied, with_answers=with_answers) for studied in report.studies]
    parts = _with_distinct_file_names(found)
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
    """The same blocks as Markdown and as an HTML page beside it, fit to be shown to others."""
    blocks = presentable(blocks, Privacy.of_this_machine())
    markdown, page = render_markdown(blocks, output=output, plots=plots), render_html(blocks)
    html_path = output.with_suffix(".html")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(markdown, encoding="utf-8")
    html_path.write_text(page, encoding="utf-8")
    return [output, html_path]


def _part(tracker: ExperimentTracker, studied: Studied, *, with_answers: bool) -> Part:
    analysis = studied.analysis
    drawn = curve_arms(analysis)
    held_out = {name: curve for name, curve in held_out_curves(analysis.study).items() if name in drawn}
    figures = study_figures(analysis, _curves(tracker, analysis), held_out=held_out)
    answers = stored_answers(tracker, analysis) if with_answers else ()
    return Part(studied=studied, figures=figures, held_out=held_out, answers=answers)


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


def compose(parts: Sequence[Part], *, output: Path, imported_apart: Sequence[str] = ()) -> list[Block]:
    """The report's blocks. With several studies each is a part of its own: nothing is pooled across them.

    `imported_apart` are suites of imported results, which this report only names.
    """
    if len(parts) == 1:
        title = Heading(level=1, text=f"LoRA study: {parts[0].studied.title}")
        return [title, *_imported_apart(imported_apart), _study_part(parts[0], level=2, output=output)]
    blocks: list[Block] = [
        Heading(level=1, text="LoRA studies"),
        Paragraph(
            (
                (
                    f"This report covers {len(parts)} studies, the one that ran last first. Each is analysed on its own; "
                    "nothing is pooled or compared across them. One alone: "
                ),
                Code("lorastudy report --suite-name NAME"),
                ".",
            )
        ),
        Bullets(tuple(_in_short(part) for part in parts)),
        *_imported_apart(imported_apart),
    ]
    for part in parts:
        blocks += [
            Heading(level=2, text=part.studied.title),
            _study_part(part, level=3, output=output),
        ]
    return blocks


def _in_short(part: Part) -> Text:
    """A study's answer, as on its own first page."""
    summary = part.studied.front.summary(part.studied.title)
    return (Strong(f"{summary.title}."), f" {summary.answer}")


def _imported_apart(suites: Sequence[str]) -> list[Block]:
    if not suites:
        return []
    text = f"Imported results are reported separately and are not in this report: {names(suites)}. To report one: "
    return [Paragraph((text, Code("lorastudy report --suite-name NAME"), "."))]


def _study_part(part: Part, *, level: int, output: Path) -> StudyPart:
    return StudyPart(
        arms=coloured_arms(part.analysis), blocks=tuple(_part_blocks(part, level=level, output=output))
    )


def _part_blocks(part: Part, *, level: int, output: Path) -> list[Block]:
    analysis, study, page = part.analysis, part.analysis.study, part.studied.front
    pairs, scores, frontier = _drawn(part, "pairs"), _drawn(part, "ranks", "dots"), _drawn(part, "frontier")
    shown = pairs or scores
    # The page shows two charts abreast; a Markdown file has the frontier in its own section.
    charts = Shown(on_page=(*shown, *frontier), in_markdown=shown)
    return [
        *front_blocks(page, figures=key_figures(analysis), charts=[charts]),
        *results_blocks(analysis, level=level),
        *(scores if pairs else ()),
        *comparison_blocks(analysis, level=level),
        *versus_blocks(analysis, level=level),
        *decision_blocks(page, level=level),
        *_finding_blocks(analysis, level=level),
        *limit_blocks(page, level=level),
        *failure_blocks(study, level=level),
        *fairness_blocks(analysis.lint, num_arms=len(study.arms), level=level),
        *row_blocks(analysis, rows_of_deciding_pair(analysis), figures=_drawn(part, "rows"), level=level),
        *answer_blocks(analysis, part.answers, level=level),
        *frontier_blocks(analysis, figures=(Shown(in_markdown=frontier),), level=level),
        *_headed(
            "Costs and forgetting",
            _drawn(part, "forgetting", "bars", "parameters", "predictions"),
            level=level,
        ),
        *_headed("Training curves", _curve_figures(part), level=level),
        *held_out_blocks(part.held_out, figures=(Shown(in_markdown=_drawn(part, "held_out")),), level=level),
        *run_blocks(
            page, part.questions, study=study, level=level, description=part.studied.suite.description
        ),
        *arm_blocks(study, level=level),
        *rate_blocks(analysis, figures=_drawn(part, "rates"), level=level),
        *racing_blocks(study, rungs=_rungs(part), level=level),
        *folded(pack_blocks(study, level=level)),
        *incident_blocks(study, level=level),
        *folded(prediction_blocks(study, level=level)),
        *method_blocks(analysis, level=level),
        *folded(environment_blocks(study, level=level)),
        *folded(_reproduce_blocks(part, level=level, output=output)),
    ]


def _reproduce_blocks(part: Part, *, level: int, output: Path) -> list[Block]:
    """The suite file with its commands, and on the page the file of the arm that the study names."""
    study, arm = part.analysis.study, part.studied.front.headline.arm
    question = part.questions[-1].question if part.questions else None
    suite = suite_of(study, design=part.studied.design, question=question)
    same_bits = give_the_same_bits(study.completed)
    return [
        *reproduce_blocks(suite, level=level, output=output, same_bits=same_bits),
        *([] if arm is None else configuration_block(study, arm=arm)),
    ]


def _rungs(part: Part) -> tuple[float, ...]:
    return part.questions[-1].question.rungs if part.questions else ()


def _drawn(part: Part, *kinds: Kind) -> tuple[Figure, ...]:
    """The study's figures of these kinds."""
    return tuple(figure for figure in part.figures if figure.kind in kinds)


def _curve_figures(part: Part) -> tuple[Block, ...]:
    """Training loss, on the page with the held-out loss beside it; that one has its own section in Markdown."""
    training = _drawn(part, "curves")
    if not training:
        return ()
    return (Shown(on_page=(*training, *_drawn(part, "held_out")), in_markdown=training),)


def _headed(title: str, figures: Sequence[Block], *, level: int) -> list[Block]:
    return [Heading(level=level, text=title), *figures] if figures else []


def _finding_blocks(analysis: Analysis, *, level: int) -> list[Block]:
    findings = questions_of(analysis.study.experiment_type).findings(analysis)
    answers = [Paragraph((Strong(finding.question), " ", *finding.answer)) for finding in findings]
    return [Heading(level=level, text="Findings"), *answers]
