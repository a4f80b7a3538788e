"""What a study of each experiment type found, and which findings belong to which type. Rank ablations have a module of their own (`rank`)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Strong, Text
from lorastudy.report.findings import rank
from lorastudy.report.findings.wording import (
    NO_VERDICT,
    KeyFinding,
    cost_bounds,
    difference,
    measured_difference,
    score,
    seen_but_not_shown,
    verdicts_by_word,
    without_verdict,
)
from lorastudy.report.numbers import (
    EQUAL_TIMES,
    MOST_LISTED,
    NUM_LISTED_OF_MANY,
    count,
    duration,
    listing,
    names,
    percent_more,
    size,
)
from lorastudy.stats.comparison import Comparison
from lorastudy.stats.rate_choice import best_of
from lorastudy.stats.study import StudyArm, differing_settings
from lorastudy.stats.summary import ArmSummary, Metric, Spread


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What an experiment type asks, and the functions that answer."""

    question: str
    findings: Callable[[Analysis], tuple[KeyFinding, ...]]
    headline: Callable[[Analysis], str]


def questions_of(experiment_type: str) -> Questions:
    """The questions of the experiment type; the general ones for a custom type."""
    return _BY_TYPE.get(experiment_type, _GENERIC)


GENERIC_QUESTION = "How do the arms differ in accuracy, memory and time?"


def generic_findings(analysis: Analysis) -> tuple[KeyFinding, ...]:
    """How the arms compare, and what they cost."""
    return (
        KeyFinding(question="How do the arms compare in accuracy?", answer=_accuracy(analysis)),
        KeyFinding(question="What do they cost?", answer=(_costs(analysis),)),
    )


def generic_headline(analysis: Analysis) -> str:
    """The verdicts against the reference, or that there are none."""
    comparisons = analysis.primary_comparisons
    if analysis.reference is None or not comparisons:
        return "Fewer than two arms completed, so there is nothing to compare."
    return f"{verdicts_by_word(analysis)}{seen_but_not_shown(comparisons)}"


def best_first(analysis: Analysis) -> list[ArmSummary]:
    """Arms with the primary metric, ordered by its mean."""
    metric = analysis.primary
    scored = [(spread.mean, summary) for summary in analysis.completed if (spread := summary.score(metric))]
    ordered = sorted(scored, key=lambda pair: pair[0], reverse=not metric.lower_is_better)
    return [summary for _, summary in ordered]


def in_order(analysis: Analysis, summaries: Sequence[ArmSummary]) -> str:
    """`In order of mean held-out loss, lowest first: mlp 1.20 ± 0.01; qv 1.31 ± 0.02 nats per token. `."""
    metric = analysis.primary
    first = "lowest" if metric.lower_is_better else "highest"
    shown = summaries if len(summaries) <= MOST_LISTED else summaries[:NUM_LISTED_OF_MANY]
    listed = "; ".join(f"{one.arm.name} {score(one, metric, alongside=summaries)}" for one in shown)
    if len(shown) < len(summaries):
        listed += f"; then {len(summaries) - len(shown)} more, in the table of results;"
    unit = f" {metric.unit}" if metric.unit else ""
    return f"In order of mean {metric.title.lower()}, {first} first: {listed}{unit}. "


def cheapest_not_worse(analysis: Analysis) -> str:
    """The arm of least peak memory of those that no interval puts behind the reference; empty without one.

    An arm whose whole interval lies on the worse side is left out even where the verdict is open: with few seeds
    every verdict is, and to name the cheapest of all arms would recommend what was seen to do worse.
    """
    reference = analysis.reference
    if reference is None:
        return ""
    compared = {c.arm for c in analysis.primary_comparisons} | {reference.name}
    behind = {c.arm for c in analysis.primary_comparisons if _is_behind(c) or not c.is_valid}
    measured = [
        (memory.median, summary)
        for summary in analysis.completed
        if summary.arm.name in compared and (memory := summary.costs.peak_memory_bytes)
    ]
    candidates = [pair for pair in measured if pair[1].arm.name not in behind]
    if len(measured) < 2 or not candidates:
        return ""
    least, cheapest = min(candidates, key=lambda pair: pair[0])
    if cheapest.arm.name == reference.name:
        if least <= min(memory for memory, _ in measured):
            return f"No arm needs less memory than {reference.name}."
        return f"Every arm that needs less memory than {reference.name} is behind by its interval, or not validly compared."
    comparison = analysis.comparison(cheapest.arm.name)
    assert comparison is not None
    return (
        f"Of the arms that no interval puts behind {reference.name}, {cheapest.arm.name} needs the least memory "
        f"({size(least)}); its difference in {comparison.metric.title.lower()} is {difference(comparison)}."
    )


def _is_behind(comparison: Comparison) -> bool:
    """Whether the whole interval lies on the worse side."""
    return cost_bounds(comparison)[0] > 0


def _accuracy(analysis: Analysis) -> Text:
    ordered = best_first(analysis)
    if len(ordered) < 2 or analysis.reference is None:
        return ("Fewer than two arms completed; these runs cannot answer this.",)
    return (
        in_order(analysis, ordered),
        Strong(verdicts_by_word(analysis)),
        seen_but_not_shown(analysis.primary_comparisons),
    )


def _costs(analysis: Analysis) -> str:
    memory = _extremes(analysis, {s.arm.name: s.costs.peak_memory_bytes for s in analysis.completed})
    steps = _extremes(analysis, {s.arm.name: s.costs.step_seconds for s in analysis.completed})
    sentences = []
    if memory:
        (low_name, low), (high_name, high) = memory
        sentences.append(
            f"Peak memory of an arm alone runs from {size(low)} ({low_name}) to {size(high)} ({high_name}), "
            f"{percent_more(high, low)}."
        )
    if steps:
        (low_name, low), (high_name, high) = steps
        sentences.append(
            f"A step alone takes from {duration(low)} ({low_name}) to {duration(high)} ({high_name}); "
            f"{EQUAL_TIMES}."
        )
    return " ".join(sentences) or "Neither memory nor time was measured."


def _extremes(
    analysis: Analysis, spreads: dict[str, Spread | None]
) -> tuple[tuple[str, float], tuple[str, float]] | None:
    medians = [(s.arm.name, spread.median) for s in analysis.completed if (spread := spreads[s.arm.name])]
    if not medians:
        return None
    return min(medians, key=lambda pair: pair[1]), max(medians, key=lambda pair: pair[1])


MODULES_QUESTION = "Which modules are worth adapting, can layers be left out, and is the MLP needed?"


def module_findings(analysis: Analysis) -> tuple[KeyFinding, ...]:
    """Answers to the three questions, or that the runs cannot answer them."""
    return (
        KeyFinding(question="Which modules are most important?", answer=_modules(analysis)),
        KeyFinding(question="Can we skip some layers for efficiency?", answer=(_layers(analysis),)),
        KeyFinding(question="Is MLP fine-tuning necessary?", answer=(_mlp(analysis),)),
    )


def _modules(analysis: Analysis) -> Text:
    ordered = best_first(analysis)
    if len(ordered) < 2 or analysis.reference is None:
        return ("Fewer than two arms completed; these runs cannot answer this.",)
    return (
        in_order(analysis, ordered),
        Strong(verdicts_by_word(analysis)),
        seen_but_not_shown(analysis.primary_comparisons),
        f" {_parameter_match(ordered)}",
    )


def _parameter_match(summaries: Sequence[ArmSummary]) -> str:
    """Whether arms of equal rank also have equally many parameters, without which modules are not alone compared."""
    counts = [s.costs.trainable_parameters.mean for s in summaries if s.costs.trainable_parameters]
    if not counts:
        return "Trainable parameters were not measured."
    if max(counts) <= 1.1 * min(counts):
        return "The arms are matched in trainable parameters within 10 %."
    return (
        f"The arms are not matched in trainable parameters ({count(min(counts))} to {count(max(counts))}), so "
        "an arm may be ahead because it is larger."
    )


def _layers(analysis: Analysis) -> str:
    whole = [s.arm for s in analysis.completed if s.arm.settings.get("layers_to_transform") is None]
    parts = [s.arm for s in analysis.completed if s.arm.settings.get("layers_to_transform") is not None]
    pairs = [(part, full) for part in parts for full in whole if _differ_in_layers_only(part, full)]
    if not pairs:
        return (
            "No two arms differ only in `layers_to_transform`, so these runs cannot answer this. "
            + cheapest_not_worse(analysis)
        ).strip()
    sentences = [
        f"{part.name} (layers {listing(str(i) for i in part.settings['layers_to_transform'])}) against "
        f"{full.name} (all layers): {_against(analysis, part, reference=full)}."
        for part, full in pairs
    ]
    return f"{' '.join(sentences)} {NO_VERDICT}"


def _mlp(analysis: Analysis) -> str:
    roles = {s.arm.name: target_roles(s.arm) for s in analysis.completed}
    attention = [
        s for s in analysis.completed if roles[s.arm.name] == ATTENTION_ONLY and s.score(analysis.primary)
    ]
    with_mlp = [s.arm for s in analysis.completed if "mlp" in (roles[s.arm.name] or ())]
    if not attention or not with_mlp:
        return "This needs an arm with and an arm without MLP modules; these runs cannot answer it."
    broadest = max(attention, key=lambda summary: _size_then_quality(summary, analysis.primary)).arm
    comparisons = analysis.pairs(with_mlp, reference=broadest)
    listed = "; ".join(f"{comparison.arm} {without_verdict(comparison)}" for comparison in comparisons)
    return (
        f"Against {broadest.name}, the largest arm without MLP modules: {listed}. {_necessity(comparisons)} "
        f"{NO_VERDICT}"
    )


def _necessity(comparisons: Sequence[Comparison]) -> str:
    """What the intervals speak for. They are not corrected for their number, so they decide nothing."""
    ahead = [comparison.arm for comparison in comparisons if cost_bounds(comparison)[1] < 0]
    if ahead:
        return f"The whole interval of {names(ahead)} lies on the better side, which speaks for the MLP."
    if all(cost_bounds(comparison)[0] > 0 for comparison in comparisons):
        return (
            "Every arm with MLP modules has its whole interval on the worse side, which speaks against "
            "the MLP."
        )
    return "No arm with MLP modules was seen to be ahead; that is not proof that they are unnecessary."


def _size_then_quality(summary: ArmSummary, metric: Metric) -> tuple[float, float]:
    """The larger first, and of equals (one configuration at several learning rates) the better one."""
    size, quality = summary.costs.trainable_parameters, summary.score(metric)
    return (size.mean if size else 0.0, -metric.cost_sign * quality.mean if quality else -math.inf)


def _differ_in_layers_only(one: StudyArm, other: StudyArm) -> bool:
    return differing_settings([one, other]) == ("layers_to_transform",)


def _against(analysis: Analysis, arm: StudyArm, *, reference: StudyArm) -> str:
    (comparison,) = analysis.pairs([arm], reference=reference)
    return without_verdict(comparison)


Role = Literal["attention", "mlp"]
ATTENTION_ONLY: frozenset[Role] = frozenset({"attention"})
_PRESET_ROLES: dict[str, frozenset[Role]] = {
    "q": ATTENTION_ONLY,
    "v": ATTENTION_ONLY,
    "qv": ATTENTION_ONLY,
    "qkvo": ATTENTION_ONLY,
    "mlp": frozenset({"mlp"}),
    "all": frozenset({"attention", "mlp"}),
}
#: Parts of module names in the architectures of transformers: Llama, Qwen, Phi, GPT-2, GPT-NeoX, Falcon, OPT.
_MLP_NAMES = frozenset(
    [
        "mlp",
        "gate_proj",
        "up_proj",
        "down_proj",
        "gate_up_proj",
        "fc1",
        "fc2",
        "fc_in",
        "fc_out",
        "c_fc",
        "dense_h_to_4h",
        "dense_4h_to_h",
    ]
)
_ATTENTION_NAMES = frozenset(
    [
        "attn",
        "self_attn",
        "attention",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "qkv_proj",
        "out_proj",
        "query_key_value",
        "c_attn",
        "dense",
    ]
)


def target_roles(arm: StudyArm) -> frozenset[Role] | None:
    """The roles that the arm adapts; None when a module's name does not say (GPT-2's `c_proj` is in both)."""
    targets = arm.settings["target_modules"]
    if isinstance(targets, str):
        return _PRESET_ROLES[targets]
    roles = [_role_of(name) for name in targets]
    return None if None in roles else frozenset(role for role in roles if role is not None)


def _role_of(module_name: str) -> Role | None:
    """By the last part of the name that is known: `mlp.c_proj` is the MLP's, `attn.c_proj` is attention's."""
    for part in reversed(module_name.split(".")):
        if part in _MLP_NAMES:
            return "mlp"
        if part in _ATTENTION_NAMES:
            return "attention"
    return None


QUANTIZATION_QUESTION = "What do 4-bit and 8-bit training cost in accuracy, and what do they save?"


def quantization_findings(analysis: Analysis) -> tuple[KeyFinding, ...]:
    """Answers to the three questions, or that the runs cannot answer them."""
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
        compared = [analysis.comparison(arm.name, metric) for metric in analysis.criterion.compared_metrics]
        # Verdicts are about the primary metric; three verdicts for each arm would triple the chance of a false one.
        parts = [
            f"{c.metric.title.lower()} {difference(c) if c.metric == analysis.primary else measured_difference(c)}"
            for c in compared
            if c is not None and c.mean is not None
        ]
        listed = "; ".join(parts) or "no score in common"
        sentences.append(f"{_with_precision(arm)} against {_with_precision(reference)}: {listed}.")
    return " ".join(sentences)


def _eight_bit(analysis: Analysis) -> str:
    fours, eights = _arms_of(analysis, "4bit"), _arms_of(analysis, "8bit")
    if not fours or not eights:
        return "This needs a completed 8-bit and a completed 4-bit arm; these runs cannot answer it."
    eight = best_of(analysis.study, eights, metric=analysis.primary) or eights[0]
    four = best_of(analysis.study, fours, metric=analysis.primary) or fours[0]
    (comparison,) = analysis.pairs([eight], reference=four)
    answer = f"{_with_precision(eight)} against {_with_precision(four)}, {comparison.metric.title.lower()}: {without_verdict(comparison)}. {NO_VERDICT}"
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
    sentences = [f"{_with_precision(reference)}: {_speed(base)}."]
    for summary in analysis.completed:
        comparison = analysis.comparison(summary.arm.name)
        if comparison is not None:
            quality = f"{comparison.metric.title.lower()} {difference(comparison)}"
            sentences.append(f"{_with_precision(summary.arm)}: {_speed(summary)}, {quality}.")
    if any(summary.costs.step_seconds for summary in analysis.completed):
        sentences.append(f"(Steps of an arm alone; {EQUAL_TIMES}.)")
    return " ".join(sentences)


def _speed(summary: ArmSummary) -> str:
    step, tokens = summary.costs.step_seconds, summary.costs.tokens_per_second
    if step is None or tokens is None:
        return "speed not measured"
    return f"{duration(step.median)} a step, {count(tokens.median)} tokens/s"


def _arms_of(analysis: Analysis, quantization: str) -> list[StudyArm]:
    return [s.arm for s in analysis.completed if s.arm.settings["quantization"] == quantization]


def _with_precision(arm: StudyArm) -> str:
    precision = arm.settings["quantization"]
    return arm.name if precision in arm.name else f"{arm.name} ({precision})"


_GENERIC = Questions(question=GENERIC_QUESTION, findings=generic_findings, headline=generic_headline)
_BY_TYPE = {
    "rank_ablation": Questions(
        question=rank.QUESTION, findings=rank.rank_findings, headline=rank.rank_headline
    ),
    "module_ablation": Questions(
        question=MODULES_QUESTION, findings=module_findings, headline=generic_headline
    ),
    "parameter_matched_modules": Questions(
        question=f"{MODULES_QUESTION.removesuffix('?')}, at an equal number of trainable parameters?",
        findings=module_findings,
        headline=generic_headline,
    ),
    "quantization_study": Questions(
        question=QUANTIZATION_QUESTION,
        findings=quantization_findings,
        headline=generic_headline,
    ),
}
