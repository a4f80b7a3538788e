"""A whole report as blocks: one part for each study, in the order in which a reader needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Block, Bullets, Code, Heading, Paragraph, Strong, Text
from lorastudy.report.figures.figure import Figure, Kind
from lorastudy.report.findings.catalogue import questions_of
from lorastudy.report.numbers import names
from lorastudy.report.read import Studied
from lorastudy.report.sections.fairness import fairness_blocks
from lorastudy.report.sections.front import front_blocks
from lorastudy.report.sections.frontier import frontier_blocks
from lorastudy.report.sections.method import environment_blocks, method_blocks
from lorastudy.report.sections.overview import arm_blocks, failure_blocks
from lorastudy.report.sections.packs import incident_blocks, pack_blocks
from lorastudy.report.sections.predictions import prediction_blocks
from lorastudy.report.sections.question import question_blocks
from lorastudy.report.sections.racing import racing_blocks
from lorastudy.report.sections.rates import rate_blocks
from lorastudy.report.sections.reproduce import reproduce_blocks, suite_of
from lorastudy.report.sections.results import comparison_blocks, results_blocks
from lorastudy.store.views import StatedQuestion
from lorastudy.suite.suite import Suite


@dataclass(frozen=True, kw_only=True)
class Part:
    """One study with its figures."""

    studied: Studied
    figures: tuple[Figure, ...]

    @property
    def analysis(self) -> Analysis:
        """Of the study."""
        return self.studied.analysis

    @property
    def questions(self) -> tuple[StatedQuestion, ...]:
        """What its suite asked, the oldest statement first."""
        return self.studied.questions


def compose(parts: Sequence[Part], *, output: Path, imported_apart: Sequence[str] = ()) -> list[Block]:
    """The report's blocks. With several studies each is a part of its own: nothing is pooled across them.

    `imported_apart` are suites of imported results, which this report leaves out and names.
    """
    if len(parts) == 1:
        title = Heading(level=1, text=f"LoRA study: {parts[0].studied.title}")
        return [title, *_imported_apart(imported_apart), *_part(parts[0], level=2, output=output)]
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
        blocks += [Heading(level=2, text=part.studied.title), *_part(part, level=3, output=output)]
    return blocks


def _in_short(part: Part) -> Text:
    """What a study came to, of the sentences on its own first page."""
    essence = part.studied.front.essence(part.studied.title)
    return (
        Strong(f"{essence.title}."),
        f" {essence.verdict} ",
        Strong("Recommendation."),
        f" {essence.recommendation}",
    )


def _imported_apart(suites: Sequence[str]) -> list[Block]:
    if not suites:
        return []
    told = f"Imported results are told apart and are not in this report: {names(suites)}. To report one: "
    return [Paragraph((told, Code("lorastudy report --suite-name NAME"), "."))]


def _part(part: Part, *, level: int, output: Path) -> list[Block]:
    analysis, study = part.analysis, part.analysis.study
    description = part.studied.suite.description
    return [
        *([Paragraph((description,))] if description else []),
        *front_blocks(part.studied.front),
        *question_blocks(part.questions),
        *_drawn(part, "pairs"),
        *fairness_blocks(analysis.lint, num_arms=len(study.arms), level=level),
        *results_blocks(analysis, level=level),
        *_drawn(part, "ranks", "dots"),
        *_headed("Training curves", _drawn(part, "curves"), level=level),
        *frontier_blocks(analysis, figures=_drawn(part, "frontier"), level=level),
        *comparison_blocks(analysis, level=level),
        *_finding_blocks(analysis, level=level),
        *_headed("Costs and forgetting", _drawn(part, "forgetting", "bars", "parameters"), level=level),
        *arm_blocks(study, level=level),
        *rate_blocks(analysis, level=level),
        *racing_blocks(study, rungs=_rungs(part), level=level),
        *pack_blocks(study, level=level),
        *incident_blocks(study, level=level),
        *prediction_blocks(study, level=level),
        *failure_blocks(study, level=level),
        *method_blocks(analysis, level=level),
        *environment_blocks(study, level=level),
        *reproduce_blocks(_suite_of(part), level=level, output=output),
    ]


def _suite_of(part: Part) -> Suite:
    asked = part.questions[-1].question if part.questions else None
    return suite_of(part.analysis.study, design=part.studied.design, question=asked)


def _rungs(part: Part) -> tuple[float, ...]:
    return part.questions[-1].question.rungs if part.questions else ()


def _drawn(part: Part, *kinds: Kind) -> tuple[Figure, ...]:
    """The study's figures of these kinds."""
    return tuple(figure for figure in part.figures if figure.kind in kinds)


def _headed(title: str, figures: Sequence[Figure], *, level: int) -> list[Block]:
    return [Heading(level=level, text=title), *figures] if figures else []


def _finding_blocks(analysis: Analysis, *, level: int) -> list[Block]:
    findings = questions_of(analysis.study.experiment_type).findings(analysis)
    answers = [Paragraph((Strong(finding.question), " ", *finding.answer)) for finding in findings]
    return [Heading(level=level, text="Findings"), *answers]
