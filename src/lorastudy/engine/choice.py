"""Which engine trains a pack."""

import sys
from functools import partial

from lorastudy.engine.arms import Arm, EngineFactory
from lorastudy.engine.attention import UnsupportedModelError
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.packed import PackedEngine
from lorastudy.engine.reference import ReferenceEngine
from lorastudy.spec.settings import Settings


def engine_factory(name: str, *, base: BaseModel, settings: Settings, probe: Arm) -> EngineFactory:
    """The engine asked for; `auto` is the packed one wherever it agrees with the model's own forward."""
    packed = partial(PackedEngine, base, gradient_checkpointing=settings.gradient_checkpointing)
    reference = partial(ReferenceEngine, base, gradient_checkpointing=settings.gradient_checkpointing)
    if name == "reference":
        return reference
    try:
        packed([probe]).close()
    except UnsupportedModelError as error:
        if name == "packed":
            raise
        print(f"engine: reference, since {error}", file=sys.stderr)
        return reference
    return packed
