"""The base model that a worker keeps from one pack to the next."""

from dataclasses import dataclass

import torch

from lorastudy.engine.loading import BaseModel, load_base
from lorastudy.suite.settings import Settings


@dataclass(kw_only=True)
class BaseCache:
    """The base model last used; packs of one base come one after another."""

    key: object = None
    base: BaseModel | None = None

    def get(self, settings: Settings, *, device: torch.device) -> BaseModel:
        """The base model of these settings, loaded only if it is another than the last one."""
        key = (
            settings.base_model, settings.quantization, settings.bnb_4bit_quant_type,
            settings.bnb_4bit_use_double_quant, settings.trust_remote_code,
        )  # fmt: skip
        if self.base is None or key != self.key:
            self.base = None  # the old one goes before the new one comes
            self.base, self.key = load_base(settings, device=device), key
        return self.base
