"""Seconds of a training step by number of arms, measured on rows of given lengths."""

import itertools
import json
import statistics
import time
from typing import Any

import torch

from lorastudy.engine.arms import TrainingArm
from lorastudy.engine.batch import assemble
from lorastudy.engine.choice import chosen_engine
from lorastudy.engine.loading import BaseModel, load_base
from lorastudy.engine.memory_trace import rows_of
from lorastudy.engine.meter import synchronise
from lorastudy.engine.numerics import numerics
from lorastudy.protocol.jobs import EngineName, MicroBatch, PaceQuestion
from lorastudy.suite.settings import Settings
from lorastudy.suite.targets import targets_of

#: Timed steps after one warm-up step.
NUM_TIMED_STEPS = 3


def step_seconds(question: PaceQuestion, *, device: torch.device) -> dict[str, Any]:
    """Median seconds of an optimizer step for each number of arms, at the rank of the settings.

    Raises:
        ModelError: the base cannot be loaded, or the engine cannot train it.
    """
    settings = Settings.model_validate_json(json.dumps(question.settings))
    base = load_base(settings, device=device)
    batch = MicroBatch(row_lengths=question.row_lengths, num_labels=question.num_labels)
    with numerics(device, deterministic=settings.deterministic):
        points = [
            {
                "num_arms": num_arms,
                "num_tokens": num_arms * batch.num_tokens,
                "seconds": _seconds(base, settings, engine=question.engine, num_arms=num_arms, batch=batch),
            }
            for num_arms in question.nums_arms
        ]
    return {"points": points}


def _seconds(
    base: BaseModel, settings: Settings, *, engine: EngineName, num_arms: int, batch: MicroBatch
) -> float:
    names = targets_of(settings, base.target_layers)
    arms = [_arm(str(number), names, settings=settings) for number in range(num_arms)]
    vocabulary: Any = base.model.config
    rows = rows_of(batch, num_ids=int(vocabulary.get_text_config().vocab_size))
    tensors = assemble(rows, device=base.device)
    ends: list[float] = []

    def on_step(_: object) -> None:
        synchronise(base.device)
        ends.append(time.perf_counter())

    training = chosen_engine(engine, base=base, settings=settings)(arms)
    try:
        training.train([[tensors]] * (NUM_TIMED_STEPS + 1), on_step=on_step)
    finally:
        training.close()
    return statistics.median(end - start for start, end in itertools.pairwise(ends))


def _arm(name: str, module_names: tuple[str, ...], *, settings: Settings) -> TrainingArm:
    return TrainingArm(
        experiment_id=name, seed=0, r=settings.lora_rank, lora_alpha=settings.lora_alpha_value,
        use_rslora=settings.use_rslora, scaling=settings.lora_scaling, lora_dropout=settings.lora_dropout,
        module_names=module_names, learning_rate=1e-6, lr_scheduler_type="constant", num_warmup_steps=0,
        num_steps=NUM_TIMED_STEPS + 1, weight_decay=0.0, max_grad_norm=1.0, adam_beta1=0.9, adam_beta2=0.999,
        adam_epsilon=1e-8, method=settings.arm_method,
    )  # fmt: skip
