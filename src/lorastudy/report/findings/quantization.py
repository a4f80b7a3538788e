"""A quantization study's questions: what 4-bit costs, whether 8-bit is worth its memory, speed against accuracy."""

from lorastudy.analysis.overview import COMPARED_METRICS, Analysis
from lorastudy.report.costs import NOT_TOLD_APART
from lorastudy.report.findings.wording import (
    NO_VERDICT,
    KeyFinding,
    cost_bounds,
    difference,
    measured_difference,
    without_verdict,
)
from lorastudy.report.numbers import count, duration, percent_more, size
from lorastudy.stats.rate_choice import best_of
from lorastudy.stats.study import StudyArm
from lorastudy.stats.summary import ArmSummary

QUESTION = "What do 4-bit and 8-bit training cost in accuracy, and what do they save?"


def quantization_findings(analysis: Analysis) -> tuple[KeyFinding, ...]:
    """Answers to the three questions; each says so where the runs cannot answer it."""
    return (
        KeyFinding(question="How much accuracy do we lose with 4-bit?", answer=(_four_bit(analysis),)),
        KeyFinding(question="Is 8-bit worth the extra memory?", answer=(_eight_bit(analysis),)),
        KeyFinding(question="What is the speed-accuracy trade-off?", answer=(_trade_off(analysis),)),
    )


def _four_bit(analysis: Analysis) -> str:
    arms = _arms_of(analysis, "4bit")
    reference = analysis.reference
    if not arms or reference is None or reference.settings["quantization"] == "4bit":
        return "This needs a completed 4-bit arm and one of higher precision; these runs cannot answer it."
    sentences = []
    for arm in arms:
        compared = [analysis.comparison(arm.name, metric) for metric in COMPARED_METRICS]
        # Verdicts are about the primary metric; three verdicts for each arm would triple the chance of a false one.
        parts = [
            f"{c.metric.title.lower()} {difference(c) if c.metric == analysis.primary else measured_difference(c)}"
            for c in compared
            if c is not None and c.mean is not None
        ]
        listed = "; ".join(parts) or "no score in common"
        sentences.append(f"{_name(arm)} against {_name(reference)}: {listed}.")
    return " ".join(sentences)


def _eight_bit(analysis: Analysis) -> str:
    fours, eights = _arms_of(analysis, "4bit"), _arms_of(analysis, "8bit")
    if not fours or not eights:
        return "This needs a completed 8-bit and a completed 4-bit arm; these runs cannot answer it."
    eight = best_of(analysis.study, eights, metric=analysis.primary) or eights[0]
    four = best_of(analysis.study, fours, metric=analysis.primary) or fours[0]
    (comparison,) = analysis.pairs([eight], reference=four)
    answer = f"{_name(eight)} against {_name(four)}, {comparison.metric.title.lower()}: {without_verdict(comparison)}. {NO_VERDICT}"
    memory = [analysis.summary(arm.name).costs.peak_memory_bytes for arm in (eight, four)]
    if memory[0] and memory[1]:
        ours, theirs = memory[0].median, memory[1].median
        answer += f" Its peak memory is {size(ours)} against {size(theirs)} ({percent_more(ours, theirs)})."
        if ours > theirs:
            seen = "seen" if cost_bounds(comparison)[1] < 0 else "not seen"
            answer += f" The extra memory was {seen} to buy accuracy here."
    return answer


def _trade_off(analysis: Analysis) -> str:
    reference = analysis.reference
    if reference is None or len(analysis.completed) < 2:
        return "Fewer than two arms completed; these runs cannot answer this."
    base = analysis.summary(reference.name)
    sentences = [f"{_name(reference)}: {_speed(base)}."]
    for summary in analysis.completed:
        comparison = analysis.comparison(summary.arm.name)
        if comparison is not None:
            quality = f"{comparison.metric.title.lower()} {difference(comparison)}"
            sentences.append(f"{_name(summary.arm)}: {_speed(summary)}, {quality}.")
    if any(summary.costs.step_seconds for summary in analysis.completed):
        sentences.append(f"(Steps of an arm alone; {NOT_TOLD_APART}.)")
    return " ".join(sentences)


def _speed(summary: ArmSummary) -> str:
    step, tokens = summary.costs.step_seconds, summary.costs.tokens_per_second
    if step is None or tokens is None:
        return "speed not measured"
    return f"{duration(step.median)} a step, {count(tokens.median)} tokens/s"


def _arms_of(analysis: Analysis, quantization: str) -> list[StudyArm]:
    return [s.arm for s in analysis.completed if s.arm.settings["quantization"] == quantization]


def _name(arm: StudyArm) -> str:
    precision = arm.settings["quantization"]
    return arm.name if precision in arm.name else f"{arm.name} ({precision})"
