"""Which engine trains a pack."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorastudy.engine.arms import Arm, Engine
from lorastudy.engine.attention import UnsupportedModelError
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.packed import PackedEngine
from lorastudy.spec.settings import Settings

if TYPE_CHECKING:
    from lorastudy.engine.reference import ReferenceEngine


@dataclass(frozen=True, kw_only=True)
class ChosenEngine:
    """The engine of a pack, to be made as often as it is needed: an `EngineFactory` that has a name."""

    kind: "type[PackedEngine | ReferenceEngine]"
    base: BaseModel
    gradient_checkpointing: bool

    @property
    def name(self) -> str:
        """`packed` or `reference`."""
        return self.kind.name

    def __call__(self, arms: Sequence[Arm]) -> Engine:
        """Fresh adapters for these arms on the pack's base."""
        return self.kind(self.base, arms, gradient_checkpointing=self.gradient_checkpointing)


def engine_factory(name: str, *, base: BaseModel, settings: Settings, probe: Arm) -> ChosenEngine:
    """The engine asked for; `auto` is the packed one wherever it agrees with the model's own forward."""
    checkpointing = settings.gradient_checkpointing
    if name != "reference":
        packed = ChosenEngine(kind=PackedEngine, base=base, gradient_checkpointing=checkpointing)
        try:
            packed([probe]).close()
        except UnsupportedModelError as error:
            if name == "packed":
                raise
            print(f"engine: reference, since {error}", file=sys.stderr)
        else:
            return packed
    from lorastudy.engine.reference import ReferenceEngine  # and PEFT with it, which takes a second

    return ChosenEngine(kind=ReferenceEngine, base=base, gradient_checkpointing=checkpointing)
