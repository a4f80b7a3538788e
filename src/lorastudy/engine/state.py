"""What training needs to go on as if nothing had happened, arm by arm, so that a part of a pack can go on too.

What is not here follows from the experiment: which rows a step sees, the learning rate of a step, and (in the
packed engine) every dropout mask, which is a function of seed, layer and forward pass.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ArmState:
    """One arm between two steps. The names of `numbers` and `tensors` are the engine's own."""

    experiment_id: str
    num_steps_done: int
    """Of the pack's steps, whether or not the optimizer took them."""
    is_diverged: bool
    numbers: Mapping[str, float]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """All arms between two steps. `num_forward_passes` is the clock of dropout, where it is the pack's."""

    engine: str
    arms: tuple[ArmState, ...]
    num_forward_passes: int = 0

    def of(self, experiment_ids: Iterable[str]) -> Self:
        """The part of some arms, in the order given.

        Raises:
            KeyError: one of them is not in it.
        """
        by_id = {arm.experiment_id: arm for arm in self.arms}
        return replace(self, arms=tuple(by_id[experiment_id] for experiment_id in experiment_ids))
