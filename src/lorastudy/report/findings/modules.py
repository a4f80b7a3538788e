"""A module ablation's questions: which modules matter, whether layers can be left out, whether the MLP is needed."""

import math
from collections.abc import Sequence
from typing import Literal

from lorastudy.analysis.overview import Analysis
from lorastudy.report.document import Strong, Text
from lorastudy.report.findings.generic import best_first, cheapest_not_worse, in_order
from lorastudy.report.findings.wording import (
    NO_VERDICT,
    KeyFinding,
    cost_bounds,
    seen_but_not_shown,
    verdicts_by_word,
    without_verdict,
)
from lorastudy.report.numbers import count, listing, names
from lorastudy.stats.comparison import Comparison
from lorastudy.stats.study import StudyArm, differing_settings
from lorastudy.stats.summary import ArmSummary, Metric

QUESTION = "Which modules are worth adapting, can layers be left out, and is the MLP needed?"


def module_findings(analysis: Analysis) -> tuple[KeyFinding, ...]:
    """Answers to the three questions; each says so where the runs cannot answer it."""
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
    sign = -1 if metric.lower_is_better else 1
    return (size.mean if size else 0.0, sign * quality.mean if quality else -math.inf)


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
