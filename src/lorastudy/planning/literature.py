"""Published rules for a LoRA configuration, each with its source, for use when nothing was measured here.

The rules are a starting point, not a result: their sources measured other models on other data.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lorastudy.planning.memory import ArmSize, ModelShape, num_trainable
from lorastudy.suite.rate_search import HIDDEN_SIZE, POWERS, as_shown, published_rate
from lorastudy.suite.settings import Quantization, Settings
from lorastudy.suite.targets import resolve_targets


@dataclass(frozen=True, kw_only=True)
class LiteratureRule:
    """One rule in a sentence, and the paper that shows it."""

    says: str
    source: str


_REGRET = "Schulman et al., LoRA Without Regret (Thinking Machines, 2025)"
_QLORA = "Dettmers et al., QLoRA (arXiv 2305.14314)"
#: Every rule that a literature-only recommendation follows, in the order in which a reader meets the settings.
RULES: Mapping[str, LiteratureRule] = {
    "targets": LiteratureRule(
        says="adapt every linear layer, else the MLP: attention alone falls behind at equal numbers of parameters",
        source=_REGRET,
    ),
    "rank": LiteratureRule(
        says="at least as many trainable parameters as there are completion tokens, and no rank below 8; "
        "with every layer adapted, ranks from 8 to 256 were equal on instruction data",
        source=f"{_REGRET}; {_QLORA}",
    ),
    "alpha": LiteratureRule(
        says="alpha 32 with the scale alpha / r, the scale that the rule for the learning rate belongs to; that alpha "
        "is best is disputed, so it is worth a study",
        source=f"{_REGRET}; against it Biderman et al. (arXiv 2405.09673)",
    ),
    "learning_rate": LiteratureRule(
        says="ten times the best rate of full fine-tuning (fifteen below about 100 steps), falling with the hidden size "
        "by a power of the family",
        source=_REGRET,
    ),
    "batch": LiteratureRule(
        says="an effective batch well below 32, above which LoRA falls behind full fine-tuning",
        source=_REGRET,
    ),
    "precision": LiteratureRule(
        says="bf16 where it fits; else NF4 with double quantization, which matched bf16 (newer models lose more)",
        source=_QLORA,
    ),
}

EFFECTIVE_BATCH = 16
LOWEST_RANK, USUAL_RANK, HIGHEST_RANK = 8, 16, 512
ALPHA = 32.0


def family_power(model_type: str) -> float | None:
    """The exponent with which the best learning rate falls as the hidden size grows; None for an unknown family."""
    return next((power for name, power in POWERS.items() if model_type.startswith(name)), None)


def published_learning_rate(model_type: str, *, hidden_size: int, num_steps: int | None) -> float:
    """The learning rate by the published rule of `suite.rate_search`. An unknown family gets the mean of all exponents."""
    power = family_power(model_type)
    powers = list(POWERS.values()) if power is None else [power]
    return published_rate(hidden_size=hidden_size, power=sum(powers) / len(powers), num_steps=num_steps)


def sufficient_rank(parameters_per_rank: int, *, num_completion_tokens: int | None, at_most: int) -> int:
    """The smallest power of two, from 8, with at least as many parameters as completion tokens; 16 without a count.

    Never more than `at_most`.
    """
    if num_completion_tokens is None:
        return min(USUAL_RANK, at_most)
    wanted = max(LOWEST_RANK, math.ceil(num_completion_tokens / parameters_per_rank))
    return int(min(2 ** math.ceil(math.log2(wanted)), at_most))


def literature_settings(
    shape: ModelShape,
    *,
    base: Settings,
    num_completion_tokens: int | None,
    num_steps: int | None,
    precision: Quantization | None = None,
) -> Iterator[Settings]:
    """Configurations to try: first the one that the rules favour, then others that need less memory.

    `base` holds what the rules do not decide: base model, data, length of rows. If `precision` is given, the rules do
    not decide that either. Every configuration has its batch in one micro-batch; `layouts` then makes it fit.
    """
    hidden_size = shape.hidden_size or HIDDEN_SIZE
    names = resolve_targets(shape.linear_layers, target_modules="all", layers_to_transform=None)
    per_rank = num_trainable(shape, ArmSize(r=1, module_names=names))
    at_most = min(HIGHEST_RANK, hidden_size)
    rank = sufficient_rank(per_rank, num_completion_tokens=num_completion_tokens, at_most=at_most)
    lowest = min(LOWEST_RANK, rank)
    rate = published_learning_rate(shape.model_type, hidden_size=hidden_size, num_steps=num_steps)
    rather, least = precision or "bf16", precision or "4bit"
    for targets, r, held_in in dict.fromkeys(
        (
            ("all", rank, rather), ("all", rank, least), ("all", lowest, least), ("mlp", rank, rather),
            ("mlp", lowest, least),
        )
    ):  # fmt: skip
        yield base.model_copy(
            update={
                "target_modules": targets,
                "lora_rank": r,
                "lora_alpha": ALPHA,
                "learning_rate": as_shown(rate),
                "quantization": held_in,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
                "per_device_train_batch_size": EFFECTIVE_BATCH,
                "gradient_accumulation_steps": 1,
            }
        )


def layouts(settings: Settings) -> Iterator[Settings]:
    """The same training with ever smaller memory: first smaller micro-batches, then gradient checkpointing as well.

    Gradient accumulation keeps the effective batch, and so the trained result, the same in every layout.
    """
    rows, accumulation = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    sizes = [size for size in range(rows, 0, -1) if rows % size == 0]
    for recompute in dict.fromkeys((settings.gradient_checkpointing, True)):
        for size in sizes:
            yield settings.model_copy(
                update={
                    "per_device_train_batch_size": size,
                    "gradient_accumulation_steps": accumulation * (rows // size),
                    "gradient_checkpointing": recompute,
                }
            )
