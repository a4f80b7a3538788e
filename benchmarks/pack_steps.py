"""Training steps of packs in one process, timed by the processor: arms of several seeds with one order of the rows or their own."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lorastudy.data.load import train_and_eval
from lorastudy.data.token_sets import token_sets
from lorastudy.engine.arms import StepResult, TrainingArm, make_arm
from lorastudy.engine.batch import MicroBatch, plan_pack
from lorastudy.engine.chat_template import prompt_style
from lorastudy.engine.loading import BaseModel, load_base
from lorastudy.engine.numerics import numerics
from lorastudy.engine.packed import PackedEngine
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings
from lorastudy.suite.targets import targets_of

_CPU = torch.device("cpu")

Pack = tuple[list[TrainingArm], list[Sequence[MicroBatch]]]
"""Arms, and the micro-batches of their steps."""


@dataclass(frozen=True, kw_only=True)
class StepBench:
    """A base model, its training rows, and an arm for each rank and seed."""

    base: BaseModel
    train: Any
    settings: Settings
    arms: tuple[TrainingArm, ...]

    @classmethod
    @contextmanager
    def of(cls, suite: dict[str, Any]) -> Iterator["StepBench"]:
        """The bench of a suite as plain values. Steps run with the arithmetic of a worker."""
        keys = {key: value for key, value in suite.items() if key in Settings.model_fields}
        settings = [
            Settings.model_validate(keys | {"lora_rank": each["lora_rank"]}) for each in suite["experiments"]
        ]
        base = load_base(settings[0], device=_CPU)
        study = train_and_eval(settings[0], style=prompt_style(base.tokenizer, settings[0].prompt_format))
        train = token_sets(study, settings[0], tokenizer=base.tokenizer, reach=None)["train"]
        names = targets_of(settings[0], base.target_layers)
        arms = tuple(
            make_arm(_experiment(each, seed=seed), module_names=names, num_steps=suite["max_steps"])
            for each in settings
            for seed in suite["seeds"]
        )
        with numerics(_CPU, deterministic=True):
            yield cls(base=base, train=train, settings=settings[0], arms=arms)

    def together(self, *, one_order: bool, num_steps: int) -> list[Pack]:
        """All arms in one pack. The first step is for warming up."""
        arms = list(self.arms) if one_order else sorted(self.arms, key=lambda arm: arm.seed)
        return [(arms, self._steps(arms, one_order=one_order, num_steps=num_steps))]

    def apart(self, *, num_steps: int) -> list[Pack]:
        """A pack for each seed."""
        packs = [
            [arm for arm in self.arms if arm.seed == seed] for seed in sorted({arm.seed for arm in self.arms})
        ]
        return [(arms, self._steps(arms, one_order=False, num_steps=num_steps)) for arms in packs]

    def _steps(
        self, arms: Sequence[TrainingArm], *, one_order: bool, num_steps: int
    ) -> list[Sequence[MicroBatch]]:
        plan = plan_pack(
            self.train,
            self.settings,
            data_seeds={arm.experiment_id: 0 if one_order else arm.seed for arm in arms},
            num_steps={arm.experiment_id: num_steps + 1 for arm in arms},
            device=_CPU,
        )
        return list(plan.steps())

    def tokens_per_second(self, packs: Sequence[Pack]) -> float:
        """Tokens of all arms in a second of the processor, over all packs, without the first step of each."""
        num_tokens, seconds = 0, 0.0
        for arms, steps in packs:
            ends: list[float] = []
            tokens: list[int] = []

            def on_step(result: StepResult, ends: list[float] = ends, tokens: list[int] = tokens) -> None:
                ends.append(time.process_time())
                tokens.append(result.num_tokens)

            engine = PackedEngine(self.base, arms)
            try:
                engine.train(steps, on_step=on_step)
            finally:
                engine.close()
            num_tokens += sum(tokens[1:])
            seconds += ends[-1] - ends[0]
        return num_tokens / seconds


def _experiment(settings: Settings, *, seed: int) -> Experiment:
    return Experiment(
        name="a", arm="a", experiment_type="custom", seed=seed, settings=settings,
        sources=Sources(base_model="base", dataset="rows"),
    )  # fmt: skip
