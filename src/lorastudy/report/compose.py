"""A whole report as blocks: one part for each study, in the order in which a reader needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Block, Heading, Paragraph, Strong
from lorastudy.report.figures.figure import Figure, Kind
from lorastudy.report.findings.catalogue import questions_of
from lorastudy.report.numbers import names
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
from lorastudy.report.sections.reproduce import reproduce_blocks
from lorastudy.report.sections.results import comparison_blocks, results_blocks
from lorastudy.tracker.views import StatedQuestion


@dataclass(frozen=True, kw_only=True)
class Part:
    """One study's analysis with its figures."""

    analysis: Analysis
    figures: tuple[Figure, ...]
    description: str = ""
    """What the suite file says of itself."""
    questions: tuple[StatedQuestion, ...] = ()
    """What it asked, the oldest statement first."""

    @property
    def title(self) -> str:
        """The suite's name with the experiment type."""
        study = self.analysis.study
        return f"{study.suite_name} ({study.experiment_type.replace('_', ' ')})"


def compose(parts: Sequence[Part], *, output: Path) -> list[Block]:
    """The report's blocks. With several studies each is a part of its own: nothing is pooled across them."""
    if len(parts) == 1:
        title = Heading(level=1, text=f"LoRA study: {parts[0].title}")
        return [title, *_part(parts[0], level=2, output=output)]
    blocks: list[Block] = [
        Heading(level=1, text="LoRA studies"),
        Paragraph(
            (
                (
                    f"This report covers {len(parts)} studies: {names(part.title for part in parts)}. Each is "
                    "analysed on its own; nothing is pooled or compared across them."
                ),
            )
        ),
    ]
    for part in parts:
        blocks += [Heading(level=2, text=part.title), *_part(part, level=3, output=output)]
    return blocks


def _part(part: Part, *, level: int, output: Path) -> list[Block]:
    analysis, study = part.analysis, part.analysis.study
    return [
        *([Paragraph((part.description,))] if part.description else []),
        *front_blocks(analysis, is_stated=bool(part.questions)),
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
        *reproduce_blocks(study, level=level, output=output, rungs=_rungs(part)),
    ]


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
