"""Which findings belong to which experiment type."""

from collections.abc import Callable
from dataclasses import dataclass

from lorastudy.analysis.overview import Analysis
from lorastudy.report.findings import generic, modules, quantization, rank
from lorastudy.report.findings.wording import KeyFinding


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What an experiment type asks, and the functions that answer."""

    question: str
    findings: Callable[[Analysis], tuple[KeyFinding, ...]]
    headline: Callable[[Analysis], str]


_GENERIC = Questions(
    question=generic.QUESTION, findings=generic.generic_findings, headline=generic.generic_headline
)
_BY_TYPE = {
    "rank_ablation": Questions(
        question=rank.QUESTION, findings=rank.rank_findings, headline=rank.rank_headline
    ),
    "module_ablation": Questions(
        question=modules.QUESTION, findings=modules.module_findings, headline=generic.generic_headline
    ),
    "parameter_matched_modules": Questions(
        question=f"{modules.QUESTION.removesuffix('?')}, at an equal number of trainable parameters?",
        findings=modules.module_findings,
        headline=generic.generic_headline,
    ),
    "quantization_study": Questions(
        question=quantization.QUESTION,
        findings=quantization.quantization_findings,
        headline=generic.generic_headline,
    ),
}


def questions_of(experiment_type: str) -> Questions:
    """The questions of the experiment type; the general ones for a type of one's own."""
    return _BY_TYPE.get(experiment_type, _GENERIC)
