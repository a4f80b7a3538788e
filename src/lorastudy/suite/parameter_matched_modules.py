"""Which modules are worth an adapter, at an equal number of trainable parameters."""

from collections.abc import Mapping
from typing import Any

from lorastudy.errors import ModelError
from lorastudy.suite.base_experiment import BaseExperiment, adapter_settings
from lorastudy.suite.base_folder import Shape, weight_shapes
from lorastudy.suite.naming import value_in_name
from lorastudy.suite.targets import named_layers, resolve_targets

#: Parts of the names of weights that are matrices and belong to no linear layer that can be adapted.
_NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe", "norm", "output.weight")


class ParameterMatchedModules(BaseExperiment):
    """Arms differ in `target_modules`; each gets the rank with which it has as many parameters as the others.

    An adapter of rank r on a layer of n inputs and m outputs has r (n + m) parameters. The suite's `lora_rank` is
    that of an arm on all linear layers, and says how many parameters every arm has; an arm on fewer layers gets the
    rank that comes nearest, which is larger. At equal rank instead, an arm on the MLP has far more parameters than
    one on attention, and a difference between them is one of both (`module_ablation`).
    """

    question = "Which modules should carry the adapter, at an equal number of trainable parameters?"
    key_questions = (
        "Which modules are most important?",
        "Can we skip some layers for efficiency?",
        "Is MLP fine-tuning necessary?",
    )

    @property
    def matched_rank(self) -> int:
        """The rank of this arm.

        Raises:
            ModelError: the base model's weights are not on this machine, or it lacks the modules.
        """
        shapes = linear_shapes(self.config.base_model)
        layers = self.config.layers_to_transform
        whole = parameters_per_rank(shapes, target_modules="all", layers_to_transform=layers)
        own = parameters_per_rank(
            shapes, target_modules=self.config.target_modules, layers_to_transform=layers
        )
        return max(1, round(self.config.lora_rank * whole / own))

    def get_lora_config(self) -> Mapping[str, Any]:
        """The adapter as the suite gives it, but for its rank; an alpha that follows the rank follows this one."""
        return {**adapter_settings(self.config), "lora_r": self.matched_rank}

    def get_experiment_name(self) -> str:
        """`parameter_matched_modules_qkvo_r12`."""
        return f"parameter_matched_modules_{value_in_name(self.config.target_modules)}_r{self.matched_rank}"


def linear_shapes(base_model: str) -> dict[str, Shape]:
    """The shape of the weight of each linear layer but the output head, by the layer's name.

    Raises:
        ModelError: there are no safetensors files on this machine to read them from.
    """
    weights = weight_shapes(base_model)
    if weights is None:
        raise ModelError(
            f"base_model: {base_model}: matching arms by parameters takes the shapes of its weights, and there are no "
            f"safetensors files of it on this machine; fetch them first: hf download {base_model}"
        )
    if any(".experts." in name for name in weights):
        raise ModelError(
            f"base_model: {base_model}: has experts, and files do not say how PEFT adapts these; arms cannot be matched by "
            "parameters. Use module_ablation, whose report states the parameters of each arm"
        )
    return {
        name.removesuffix(".weight"): shape
        for name, shape in weights.items()
        if name.endswith(".weight") and len(shape) == 2 and not any(part in name for part in _NOT_ADAPTED)
    }


def parameters_per_rank(
    shapes: Mapping[str, Shape],
    *,
    target_modules: str | tuple[str, ...],
    layers_to_transform: tuple[int, ...] | None = None,
) -> int:
    """Trainable parameters of an adapter of rank 1: inputs plus outputs, summed over the layers it is on."""
    names = resolve_targets(
        named_layers(shapes), target_modules=target_modules, layers_to_transform=layers_to_transform
    )
    return sum(sum(shapes[name]) for name in names)
