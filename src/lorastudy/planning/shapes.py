"""The shape of a model, from its `config.json` alone: no weights are read, and no torch in this process.

A worker builds the model without content once; its answer is kept under the configuration's hash.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lorastudy.errors import ModelError
from lorastudy.suite.base_model import LAB_MODEL
from lorastudy.suite.hub import cached_folder
from lorastudy.suite.targets import TargetLayer
from lorastudy.version import LAB_BASE

CONFIG_NAME = "config.json"


@dataclass(frozen=True, kw_only=True)
class LinearLayer(TargetLayer):
    """A layer as targets and memory see it. `is_quantisable` where bitsandbytes takes it."""

    is_quantisable: bool

    @property
    def num_weights(self) -> int:
        """Of its matrix, without bias."""
        return self.in_features * self.out_features


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What a plan must know of a model. A tied matrix counts once; what a model does not have is None."""

    model_type: str
    linear_layers: tuple[LinearLayer, ...]
    num_parameters: int
    num_layer_parameters: int | None
    num_tensors: int
    buffer_bytes: int
    hidden_size: int | None
    num_layers: int | None
    num_attention_heads: int | None
    num_key_value_heads: int | None
    vocab_size: int | None
    max_position_embeddings: int | None
    attention_span: int | None
    """The fewest tokens that some layer sees at once; None where each sees all that came before."""
    packed_problem: str | None
    """Why the packed engine will not serve the model whatever its rows are; None where it will, as far as can be foreseen."""
    has_tied_head: bool

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The shape that a worker answered."""
        layers = tuple(LinearLayer(**layer) for layer in values["linear_layers"])
        return cls(**{**values, "linear_layers": layers})

    def layers_by_name(self) -> dict[str, LinearLayer]:
        """Name -> layer, in the model's order."""
        return {layer.name: layer for layer in self.linear_layers}


def config_folder(base_model: str) -> Path:
    """The folder that holds a base model's `config.json`: the lab's, one here, or the hub's cache.

    Raises:
        ModelError: it is not on this machine.
    """
    if base_model == LAB_MODEL:
        return LAB_BASE
    folder = Path(base_model)
    if not folder.is_dir():
        cached = cached_folder(base_model)
        if cached is None or not (cached / CONFIG_NAME).is_file():
            raise ModelError(
                f"base_model: {base_model}: its config.json is not on this machine, and an estimate reads nothing else. "
                f"Fetch it (`hf download {base_model} config.json`), or give a folder that holds one"
            )
        folder = cached
    if not (folder / CONFIG_NAME).is_file():
        raise ModelError(f"base_model: {folder}: holds no config.json, so it is not a transformers model")
    return folder
