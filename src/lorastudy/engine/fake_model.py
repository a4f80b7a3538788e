"""Base models whose tensors have shapes and no content, made from a `config.json` alone, and arms to count on them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from lorastudy.engine.arms import TrainingArm
from lorastudy.engine.loading import BaseModel, dtype_of
from lorastudy.engine.quantised import fake_quantised, keep_trainable_on_cpu
from lorastudy.engine.targets import linear_modules
from lorastudy.errors import FOREIGN_ERRORS, ModelError, first_line
from lorastudy.protocol.jobs import CountedArm, Precision
from lorastudy.suite.targets import TargetLayer, resolve_targets

#: The device of tensors with a shape, a type and a storage of the right size, but no content.
META = torch.device("meta")


def read_config(folder: str, *, trust_remote_code: bool) -> Any:
    """Transformers' configuration from a folder with a `config.json`.

    Raises:
        ModelError: transformers does not know the model type.
    """
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: config.json: {first_line(error)}") from error


def meta_model(config: Any, *, trust_remote_code: bool) -> PreTrainedModel:
    """The model on the meta device.

    Raises:
        ModelError: it is no causal language model, or cannot be built.
    """
    with META:
        return built_model(config, dtype=torch.float32, trust_remote_code=trust_remote_code)


class FakeModels:
    """The models of one job without content, each built once."""

    def __init__(self) -> None:
        self._configs: dict[tuple[str, bool], Any] = {}
        self._meta: dict[tuple[str, bool], PreTrainedModel] = {}
        self._bases: dict[tuple[object, ...], BaseModel] = {}

    def config(self, folder: str, *, trust_remote_code: bool) -> Any:
        """The folder's configuration.

        Raises:
            ModelError: as `read_config`.
        """
        key = (folder, trust_remote_code)
        if key not in self._configs:
            self._configs[key] = read_config(folder, trust_remote_code=trust_remote_code)
        return self._configs[key]

    def meta(self, folder: str, *, trust_remote_code: bool) -> PreTrainedModel:
        """The folder's model on the meta device.

        Raises:
            ModelError: as `meta_model`.
        """
        key = (folder, trust_remote_code)
        if key not in self._meta:
            config = self.config(folder, trust_remote_code=trust_remote_code)
            self._meta[key] = meta_model(config, trust_remote_code=trust_remote_code)
        return self._meta[key]

    def base(
        self, folder: str, precision: Precision, *, num_layers: int | None, trust_remote_code: bool
    ) -> BaseModel:
        """A frozen base on the meta device, for use in an engine. `num_layers` limits it to the first layers.

        Raises:
            ModelError: as `meta_model`.
        """
        key = (folder, precision, num_layers, trust_remote_code)
        if key not in self._bases:
            config = self.config(folder, trust_remote_code=trust_remote_code)
            with META:
                self._bases[key] = _fake_base(
                    config, precision, num_layers=num_layers, trust_remote_code=trust_remote_code
                )
        return self._bases[key]


def _fake_base(
    config: Any, precision: Precision, *, num_layers: int | None, trust_remote_code: bool
) -> BaseModel:
    dtype = dtype_of(precision.quantization)
    model = built_model(config, dtype=dtype, trust_remote_code=trust_remote_code)
    if num_layers is not None:
        _keep_first(model, num_layers)
    if precision.quantization in {"4bit", "8bit"}:
        _quantise(model, precision)
    model.requires_grad_(requires_grad=False).eval()
    keep_trainable_on_cpu(model)
    nothing: Any = None
    return BaseModel(
        name="fake",
        model=model,
        tokenizer=nothing,
        device=META,
        dtype=dtype,
        eos_token_id=0,
        pad_token_id=0,
        linear_layers=linear_modules(model),
    )


def layers_are_alike(model: nn.Module) -> bool:
    """Whether all decoder layers have the same modules of the same sizes, and the same kind of attention."""
    layers = decoder_layers(model)
    config: Any = model.config
    if layers is None or len(set(getattr(config.get_text_config(), "layer_types", None) or ())) > 1:
        return False
    first, *others = (_signature(layer) for layer in layers[1])
    return all(other == first for other in others)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The list of decoder layers with its name; None if no list has the number of layers in the configuration."""
    config: Any = model.config
    num_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return name, module
    return None


def quantised_names(model: PreTrainedModel) -> set[str]:
    """The linear layers that transformers would quantise with bitsandbytes, by transformers' own rule."""
    kept = get_keys_to_not_convert(model)
    return {
        name
        for name, module in model.named_modules()
        if (isinstance(module, Conv1D) or type(module) is nn.Linear) and should_convert_module(name, kept)
    }


def built_model(config: Any, *, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """The model of a configuration, with the attention that transformers chooses for it.

    Raises:
        ModelError: it is no causal language model, or cannot be built.
    """
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    except FOREIGN_ERRORS as error:
        raise ModelError(
            f"config.json: {config.model_type}: cannot be built as a causal language model: {first_line(error)}"
        ) from error
    return model


def _keep_first(model: PreTrainedModel, num_layers: int) -> None:
    found = decoder_layers(model)
    assert found is not None
    name, layers = found
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layers[:num_layers])


def _quantise(model: PreTrainedModel, precision: Precision) -> None:
    for name in quantised_names(model):
        parent, _, leaf = name.rpartition(".")
        hollow = fake_quantised(
            model.get_submodule(name),
            precision.quantization,
            quant_type=precision.quant_type,
            double_quant=precision.double_quant,
        )
        setattr(model.get_submodule(parent), leaf, hollow)


def _signature(layer: nn.Module) -> tuple[object, ...]:
    return tuple(
        (name, type(module).__name__, tuple(tuple(p.shape) for p in module.parameters(recurse=False)))
        for name, module in layer.named_modules()
    )


def counted_arms(arms: Sequence[CountedArm], *, layers: Sequence[TargetLayer]) -> list[TrainingArm]:
    """The arms with the names of the modules that they adapt, for counting memory."""
    counted = []
    for number, arm in enumerate(arms):
        names = () if arm.method.is_full else _counted_modules(arm, layers=layers)
        alike = counted_arm(number, names, r=arm.r, dropout=arm.has_dropout)
        counted.append(replace(alike, method=arm.method))
    return counted


def _counted_modules(arm: CountedArm, *, layers: Sequence[TargetLayer]) -> tuple[str, ...]:
    """The modules that an arm adapts.

    The packed engine does not adapt parameters of experts. An arm that adapts nothing else is counted with all other
    layers in their place.
    """
    target_modules, numbers = arm.targets
    chosen = resolve_targets(
        layers,
        target_modules=target_modules,
        layers_to_transform=numbers,
        exclude_modules=arm.exclude_modules,
    )
    modules = {layer.name for layer in layers if not layer.is_parameter}
    others = tuple(layer.name for layer in layers if layer.name in modules and layer.left_out is None)
    return tuple(name for name in chosen if name in modules) or others


def counted_arm(number: int, module_names: tuple[str, ...], *, r: int, dropout: bool) -> TrainingArm:
    """An arm for counting, of which only the size matters."""
    return TrainingArm(
        experiment_id=str(number), seed=number, r=r, lora_alpha=float(r), use_rslora=False, scaling=1.0,
        lora_dropout=0.1 if dropout else 0.0, module_names=module_names, learning_rate=1e-4,
        lr_scheduler_type="constant", num_warmup_steps=0, num_steps=1, weight_decay=0.0, max_grad_norm=1.0,
        adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8,
    )  # fmt: skip
