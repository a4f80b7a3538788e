"""Experiment types: classes that decide an arm's LoRA configuration and its name.

`BaseExperiment` is the interface, five types come with the package, and `resolve_type` finds the class that a suite names.
To add a type, subclass `BaseExperiment` in a file of your own and write `experiment_type: path/to/file.py:MyExperiment` in
the suite.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from lorastudy.errors import ModelError, StudyError
from lorastudy.suite.base_model import Shape, weight_shapes
from lorastudy.suite.methods import written_out
from lorastudy.suite.names import names_of_varied, value_in_name
from lorastudy.suite.own_code import is_file, name_in_file, run_file
from lorastudy.suite.settings import LENGTH_KEYS, AskedSettings, Settings
from lorastudy.suite.targets import named_layers, resolve_targets
from lorastudy.suite.wording import checked, did_you_mean

#: Other names that `get_lora_config` may use for a setting.
ALIASES: Mapping[str, str] = {"r": "lora_rank", "lora_r": "lora_rank"}


class ExperimentConfig(Settings):
    """The settings of one arm as the suite gives them: `config.lora_rank`, `config.learning_rate`, ..."""

    varied: tuple[str, ...] = ()
    """The settings in which the suite's arms differ."""

    @classmethod
    def of(cls, settings: Settings, *, varied: tuple[str, ...] = ()) -> "ExperimentConfig":
        """The settings as a configuration."""
        return cls.model_construct(**{**dict(settings), "varied": varied})


class BaseExperiment(ABC):
    """One arm of an experiment type. A subclass decides the arm's adapter and its name."""

    question: ClassVar[str] = "Which of these configurations is better?"
    key_questions: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config

    @abstractmethod
    def get_lora_config(self) -> Mapping[str, Any]:
        """The settings that this type decides. They override the suite's.

        Keys: `lora_r` (or `r`, `lora_rank`), `lora_alpha`, `lora_dropout`, `target_modules`, `use_rslora`, and any
        other setting by its name.
        """

    @abstractmethod
    def get_experiment_name(self) -> str:
        """The name of an arm that the suite does not name; also its output folder."""


def settings_of(experiment: BaseExperiment) -> Settings:
    """The arm's settings, overridden by what `get_lora_config` returns.

    Raises:
        StudyError: an unknown key, or a value out of range.
    """
    kind = type(experiment).__name__
    decided: dict[str, Any] = {}
    for key, value in dict(experiment.get_lora_config()).items():
        name = ALIASES.get(key, key)
        where = f"{kind}.get_lora_config: {key!r}"
        if name not in Settings.model_fields:
            raise StudyError(f"{where} is not a setting{did_you_mean(str(key), Settings.model_fields)}")
        if name in decided:
            raise StudyError(f"{where} and another key both give {name}; keep one")
        try:
            # Such a class may name a method as a file does.
            decided[name] = checked(AskedSettings if name == "method" else Settings, name, value=value)
        except ValueError as error:
            raise StudyError(f"{where} {error}") from error
    if all(decided.get(key) is not None for key in LENGTH_KEYS):
        raise StudyError(f"{kind}.get_lora_config: {' and '.join(LENGTH_KEYS)} both set the length; keep one")
    if any(decided.get(key) is not None for key in LENGTH_KEYS):
        decided = {**dict.fromkeys(LENGTH_KEYS), **decided}
    given = {key: getattr(experiment.config, key) for key in Settings.model_fields}
    return Settings.model_validate(written_out({**given, **decided}))


def adapter_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The suite's own adapter settings, in the form that `get_lora_config` returns."""
    return {
        "lora_r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": config.target_modules,
        "use_rslora": config.use_rslora,
    }


class RankAblation(BaseExperiment):
    """Arms differ in `lora_rank`."""

    question = "How large a rank does this model need on this data?"
    key_questions = (
        "How does rank affect model accuracy?",
        "What's the memory overhead of higher ranks?",
        "Where are the diminishing returns?",
    )

    def get_lora_config(self) -> Mapping[str, Any]:
        """The suite's own adapter settings."""
        return adapter_settings(self.config)

    def get_experiment_name(self) -> str:
        """`rank_ablation_r16`."""
        return f"rank_ablation_r{self.config.lora_rank}"


class ModuleAblation(BaseExperiment):
    """Arms differ in `target_modules`."""

    question = "Which modules should carry the adapter?"
    key_questions = (
        "Which modules are most important?",
        "Can we skip some layers for efficiency?",
        "Is MLP fine-tuning necessary?",
    )

    def get_lora_config(self) -> Mapping[str, Any]:
        """The suite's own adapter settings."""
        return adapter_settings(self.config)

    def get_experiment_name(self) -> str:
        """`module_ablation_qkvo`; module names are joined: `module_ablation_q_proj-v_proj`."""
        return f"module_ablation_{value_in_name(self.config.target_modules)}"


#: Name parts of matrices that belong to no linear layer that an adapter can sit on.
_NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe", "norm", "output.weight")


class ParameterMatchedModules(BaseExperiment):
    """Arms differ in `target_modules`; each gets the rank that gives it as many parameters as the others.

    An adapter of rank r on a layer of n inputs and m outputs has r (n + m) parameters. The suite's `lora_rank` is the rank
    of an arm on all linear layers; it sets the number of parameters. An arm on fewer layers gets a larger rank: the one
    that comes nearest to that number. At equal rank (`module_ablation`), an arm on the MLP has far more parameters than
    an arm on attention, so a difference between them may come from the modules or from the number of parameters.
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
        layers, excluded = self.config.layers_to_transform, self.config.exclude_modules or ()
        whole = parameters_per_rank(shapes, target_modules="all", layers_to_transform=layers)
        own = parameters_per_rank(
            shapes,
            target_modules=self.config.target_modules,
            layers_to_transform=layers,
            exclude_modules=excluded,
        )
        return max(1, round(self.config.lora_rank * whole / own))

    def get_lora_config(self) -> Mapping[str, Any]:
        """The suite's own adapter settings at the matched rank. An alpha policy such as `2r` follows that rank."""
        return {**adapter_settings(self.config), "lora_r": self.matched_rank}

    def get_experiment_name(self) -> str:
        """`parameter_matched_modules_qkvo_r12`."""
        return f"parameter_matched_modules_{value_in_name(self.config.target_modules)}_r{self.matched_rank}"


def linear_shapes(base_model: str) -> dict[str, Shape]:
    """The weight shape of each linear layer except the output head, by the layer's name.

    Raises:
        ModelError: this machine has no safetensors files of the model, or the model has experts.
    """
    weights = weight_shapes(base_model)
    if weights is None:
        raise ModelError(
            f"base_model: {base_model}: matching arms by parameters needs the shapes of its weights, and this machine "
            f"has no safetensors files of it; download them first: hf download {base_model}"
        )
    if any(".experts." in name for name in weights):
        raise ModelError(
            f"base_model: {base_model}: has experts, and its files do not show how PEFT adapts them, so arms cannot be "
            "matched by parameters. Use module_ablation; its report states the parameters of each arm"
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
    exclude_modules: tuple[str, ...] = (),
) -> int:
    """Trainable parameters of an adapter of rank 1: inputs plus outputs, summed over its layers."""
    names = resolve_targets(
        named_layers(shapes),
        target_modules=target_modules,
        layers_to_transform=layers_to_transform,
        exclude_modules=exclude_modules,
    )
    return sum(sum(shapes[name]) for name in names)


class QuantizationStudy(BaseExperiment):
    """Arms differ in `quantization`, the precision of the frozen base."""

    question = "How far can the base be quantized before the adapter suffers?"
    key_questions = (
        "How much accuracy do we lose with 4-bit?",
        "Is 8-bit worth the extra memory?",
        "What's the speed-accuracy tradeoff?",
    )

    def get_lora_config(self) -> Mapping[str, Any]:
        """The suite's own adapter settings, and this arm's precision of the base."""
        return {**adapter_settings(self.config), "quantization": self.config.quantization}

    def get_experiment_name(self) -> str:
        """`quantization_study_4bit`."""
        return f"quantization_study_{self.config.quantization}"


class Custom(BaseExperiment):
    """Arms differ in the settings that the suite varies."""

    question = "Which of these configurations is better?"
    key_questions = (
        "Which configuration has the lowest held-out loss?",
        "What does each configuration cost in memory and time?",
        "Which differences are larger than the noise of the seeds?",
    )

    def get_lora_config(self) -> Mapping[str, Any]:
        """The suite's own adapter settings."""
        return adapter_settings(self.config)

    def get_experiment_name(self) -> str:
        """`custom_r16_lr0.0002`: each varied setting with this arm's value; `custom` if nothing varies."""
        return "_".join(["custom", *names_of_varied(self.config, self.config.varied)])


TYPES: dict[str, type[BaseExperiment]] = {
    "rank_ablation": RankAblation,
    "module_ablation": ModuleAblation,
    "parameter_matched_modules": ParameterMatchedModules,
    "quantization_study": QuantizationStudy,
    "custom": Custom,
}
EXPERIMENT_TYPES = tuple(TYPES)


def resolve_type(experiment_type: str) -> type[BaseExperiment]:
    """The class of a type: one of the package's, or `path/to/file.py:Class`. That file is then run.

    Raises:
        StudyError: there is no such type, file or class; the class is no complete `BaseExperiment`; the file raises.
    """
    if experiment_type in TYPES:
        return TYPES[experiment_type]
    in_file = class_in_file(experiment_type)
    if in_file is None:
        raise StudyError(
            f"there is no experiment type {experiment_type!r}{did_you_mean(experiment_type, EXPERIMENT_TYPES)}; "
            f"the types are {', '.join(EXPERIMENT_TYPES)}, and path/to/file.py:Class for your own"
        )
    missing = missing_class_file(experiment_type)
    if missing is not None:
        raise StudyError(f"experiment_type {experiment_type}: {missing}")
    path, name = in_file
    return _checked_class(_run_file(path), name=name, path=path)


def class_in_file(experiment_type: str) -> tuple[Path, str] | None:
    """The file and the class of `path/to/file.py:Class`; None for any other `experiment_type`."""
    return name_in_file(experiment_type)


def missing_class_file(experiment_type: str) -> str | None:
    """The message if the file of `path/to/file.py:Class` does not exist; None if it does."""
    in_file = class_in_file(experiment_type)
    assert in_file is not None
    return (
        None
        if is_file(in_file[0])
        else f"there is no file {str(in_file[0])!r} (paths start at the current folder)"
    )


def _run_file(path: Path) -> ModuleType:
    """The module in the file.

    It runs as a module of `lorastudy.experiments`, so that both `from .base_experiment import ...` and the absolute
    import work, wherever the file is.
    """
    return run_file(path, package="lorastudy.experiments")


def _checked_class(module: ModuleType, *, name: str, path: Path) -> type[BaseExperiment]:
    own = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    kind = own.get(name)
    if kind is None:
        usable = [
            key
            for key, value in own.items()
            if issubclass(value, BaseExperiment) and value is not BaseExperiment
        ]
        there = f"; it has {', '.join(usable)}" if usable else "; it has no subclass of BaseExperiment"
        raise StudyError(f"{path} has no class {name}{there}")
    if not issubclass(kind, BaseExperiment) or kind is BaseExperiment:
        raise StudyError(
            f"{path}: {name} is not a subclass of lorastudy.experiments.base_experiment.BaseExperiment"
        )
    lacking = sorted(getattr(kind, "__abstractmethods__", ()))
    if lacking:
        raise StudyError(f"{path}: {name} lacks {' and '.join(lacking)}")
    return kind
