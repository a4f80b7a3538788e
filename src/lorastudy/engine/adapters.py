"""Adapter folders in PEFT's format, written and checked without PEFT.

A key is the layer's name. The matrices of experts are parameters of one module. PEFT wraps that module once per
parameter, the last one outermost. So a parameter's key has one `.base_layer` for each wrapped parameter after it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from lorastudy.engine.arms import TrainingArm
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.targets import is_stored_otherwise
from lorastudy.errors import ModelError
from lorastudy.suite.methods import BESIDE_KEYS
from lorastudy.suite.peft_types import PEFT_TYPES
from lorastudy.suite.targets import TargetLayer, peft_names, selected_by

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."
PARTS = ("lora_A", "lora_B")
NORMS = "lora_magnitude_vector"
"""DoRA's norms, one for each output of a layer."""


def save_adapter(
    arm: TrainingArm, weights: Mapping[str, tuple[Tensor, Tensor]], *, base: BaseModel, folder: Path
) -> int:  # fmt: skip
    """Write `adapter_model.safetensors` and `adapter_config.json`; return the bytes of the weights.

    Raises:
        ModelError: the written files differ from those that PEFT expects.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stems = key_stems(arm.module_names, layers=base.targets_by_name)
    tensors = {
        f"{stems[name]}.{part}.weight": tensor.detach().cpu().contiguous()
        for name, pair in weights.items()
        for part, tensor in zip(PARTS, pair, strict=True)
    }
    weights_file = folder / WEIGHTS_FILE
    weights_file.unlink(missing_ok=True)  # a process that has the earlier file mapped keeps its bytes
    # Not `save_file`: on a full disk it raises its own type of error, which would count as a failure of the pack.
    weights_file.write_bytes(save(tensors, metadata={"format": "pt"}))
    save_config(arm, base=base, folder=folder)
    check_saved(arm, base=base, folder=folder)
    return weights_file.stat().st_size


def saved_weights(
    arm: TrainingArm, *, base: BaseModel, folder: Path
) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """`lora_A` and `lora_B` of every layer in an arm's adapter folder: the inverse of `save_adapter`.

    Raises:
        ModelError: not an adapter folder, damaged, or another adapter than the arm's.
    """
    _, tensors = read_adapter(folder)
    expected = expected_keys(arm, layers=base.targets_by_name)
    wrong = differences({key: tuple(tensor.shape) for key, tensor in tensors.items()}, expected)
    if wrong:
        raise ModelError(f"{folder}: not the adapter of {arm.experiment_id}: {'; '.join(wrong[:4])}")
    stems = key_stems(arm.module_names, layers=base.targets_by_name)
    return {
        name: (tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"])
        for name, stem in stems.items()
    }


def save_config(arm: TrainingArm, *, base: BaseModel, folder: Path) -> None:
    """Write `adapter_config.json`, which PEFT reads as `peft_model.lora_config`. Omitted keys have their default.

    PEFT is not used to write it: its import costs every worker a second, and it writes the modules in random order.
    """
    modules, parameters = targets_in_config(arm.module_names, base=base)
    config = {
        "base_model_name_or_path": base.name,
        "bias": "none",
        "fan_in_fan_out": is_transposed(arm, base=base),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": whole(arm.lora_alpha),
        "lora_dropout": arm.lora_dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": arm.r,
        "target_modules": sorted(modules),
        **({"target_parameters": sorted(parameters)} if parameters else {}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": arm.use_rslora,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def targets_in_config(names: Sequence[str], *, base: BaseModel) -> tuple[list[str], list[str]]:
    """PEFT's `target_modules` and `target_parameters` for these layers."""
    layers = base.targets_by_name
    parameters = [name for name in names if layers[name].is_parameter]
    modules = [name for name in names if not layers[name].is_parameter]
    return peft_names(modules, modules=base.module_names), parameters


def key_stems(names: Sequence[str], *, layers: Mapping[str, TargetLayer]) -> dict[str, str]:
    """PEFT's key for each layer of an adapter on these layers. `names` are in the model's order."""
    stems: dict[str, str] = {}
    for number, name in enumerate(names):
        stem = name
        if layers[name].is_parameter:
            stem = name.rpartition(".")[0]
            later = sum(
                layers[other].is_parameter and other.rpartition(".")[0] == stem
                for other in names[number + 1 :]
            )
            stem += ".base_layer" * later
        stems[name] = f"{PREFIX}{stem}"
    return stems


def expected_keys(
    arm: TrainingArm, *, layers: Mapping[str, TargetLayer], factor: int = 1
) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every tensor that PEFT expects in the arm's adapter, at the arm's ranks times `factor`.

    PEFT has one matrix for all experts: lora_A of (r x experts, inputs), lora_B of (outputs, r x experts).
    """
    expected: dict[str, tuple[int, ...]] = {}
    for name, stem in key_stems(arm.module_names, layers=layers).items():
        layer = layers[name]
        rank = factor * arm.method.rank_of(name, r=arm.r) * layer.num_experts
        expected[f"{stem}.lora_A.weight"] = (rank, layer.in_features)
        expected[f"{stem}.lora_B.weight"] = (layer.out_features, rank)
        if arm.method.use_dora:
            expected[f"{stem}.{NORMS}"] = (layer.out_features,)
    return expected


def shapes_saved(arm: TrainingArm, *, base: BaseModel) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every tensor in the arm's adapter as PEFT saves it."""
    if arm.method.is_counted:
        from lorastudy.engine.peft_model import shapes_by_peft

        return shapes_by_peft(arm, base=base)
    return expected_keys(arm, layers=base.targets_by_name, factor=arm.method.saved_ranks)


def check_saved(arm: TrainingArm, *, base: BaseModel, folder: Path) -> None:
    """Check a saved adapter against PEFT's expectations: the selected layers, the keys and their shapes.

    Raises:
        ModelError: a user would load another adapter than the trained one.
    """
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    selected = selected_by(config["target_modules"], modules=base.module_names)
    selected |= set(config.get("target_parameters") or ())
    expected = shapes_saved(arm, base=base)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        keys = file.keys()
        saved = {key: tuple(file.get_slice(key).get_shape()) for key in keys}
    wrong = [
        *(f"{name} is trained and not named" for name in set(arm.module_names) - selected),
        *(f"{name} is named and not trained" for name in selected - set(arm.module_names)),
        *differences(saved, expected),
    ]
    if wrong:
        raise ModelError(
            f"{folder}: the adapter as saved is not the one that was trained, and loading it would give another model: "
            f"{'; '.join(sorted(wrong)[:4])}"
        )


def check_peft(base: BaseModel, arms: Iterable[TrainingArm]) -> None:
    """Check that PEFT wraps and loads the layers of these arms, in families where PEFT does not go by names alone.

    These are families whose weights have other names in their files, and families with left-out layers.

    Raises:
        ModelError: PEFT wraps or loads other layers.
    """
    if is_stored_otherwise(base.model) or any(layer.left_out is not None for layer in base.target_layers):
        from lorastudy.engine.peft_model import check_wrapping

        for arm in {arm.module_names: arm for arm in arms}.values():
            check_wrapping(base, arm)


def differences(
    ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]
) -> list[str]:  # fmt: skip
    """Sentences that name the differences between our keys and shapes and those of PEFT."""
    wrong = [f"{key} is missing" for key in theirs.keys() - ours.keys()]
    wrong += [f"{key} is not expected" for key in ours.keys() - theirs.keys()]
    wrong += [
        f"{key} has shape {ours[key]} where {theirs[key]} is expected"
        for key in ours.keys() & theirs.keys()
        if ours[key] != theirs[key]
    ]
    return sorted(wrong)


def check_fits(base: BaseModel, folder: Path) -> None:
    """Check that a folder holds a LoRA adapter whose shapes fit this base.

    Raises:
        ModelError: it does not. The message names the missing file, or the differing layer and the adapter's base.
    """
    config, tensors = read_adapter(folder)
    if config.get("peft_type") not in {"LORA", *PEFT_TYPES}:
        known = ", ".join(["LORA", *PEFT_TYPES])
        raise ModelError(
            f"checkpoint: {folder}: a {config.get('peft_type')} adapter; these are supported: {known}"
        )
    another = f"checkpoint: {folder}: made for another base model ({config.get('base_model_name_or_path')})"
    if config.get("peft_type") in PEFT_TYPES or any(
        config.get(key) not in (None, "none", [], {}) for key in BESIDE_KEYS
    ):
        from lorastudy.engine.peft_model import shapes_of_config

        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if wrong := differences(shapes, shapes_of_config(folder, base=base)):
            raise ModelError(f"{another}: {'; '.join(wrong[:4])}")
        return
    layers = base.targets_by_name
    experts = _selected_experts(config, layers=base.target_layers)
    stems = {stem.removeprefix(PREFIX): name for name, stem in key_stems(experts, layers=layers).items()}
    present = set()
    for key, tensor in tensors.items():
        stem, _, part = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        name = stems.get(stem, stem)
        if name not in layers and ".experts." in key:
            continue  # this adapter names experts one by one, which PEFT converts
        if name not in layers or not _same_width(layers[name], tensor, part=part):
            shape = tuple(tensor.shape)
            raise ModelError(f"{another}: its {name} of shape {shape} does not fit {base.name}")
        present.add(name)
    absent = (_selected(config, base=base) | set(experts)) - present
    if absent:
        # PEFT would only warn and leave these layers at their random initial weights.
        raise ModelError(f"{another}: it has no weights for {min(absent)} of {base.name}")


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter's configuration and weights.

    Raises:
        ModelError: a file is missing or damaged, or reading it would run code.
    """
    pickle = folder / "adapter_model.bin"
    if pickle.exists() and not (folder / WEIGHTS_FILE).is_file():
        raise ModelError(
            f"checkpoint: {folder}: has {pickle.name} and no {WEIGHTS_FILE}; reading a pickle runs the code in it, so it is "
            "not read. Save the adapter again with PEFT where you trust it"
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ModelError(
                f"checkpoint: {folder}: has no {name}; expected an adapter folder such as output/<name>/final_model"
            )
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"checkpoint: {folder}: damaged: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"checkpoint: {folder}: damaged: {CONFIG_FILE} is not a JSON object")
    if config.get("megatron_config"):  # PEFT imports the module that `megatron_core` names
        raise ModelError(
            f"checkpoint: {folder}: its megatron_config would load code; only plain LoRA is supported"
        )
    return config, tensors


def _selected(config: Mapping[str, Any], *, base: BaseModel) -> set[str]:
    """The base's layers that the configuration lists by name; empty if it selects them in another way."""
    names = config.get("target_modules")
    if not isinstance(names, list) or config.get("layers_to_transform") or config.get("exclude_modules"):
        return set()
    free = (layer.name for layer in base.target_layers if not layer.is_parameter and layer.left_out is None)
    return selected_by(names, modules=free)


def _selected_experts(config: Mapping[str, Any], *, layers: Iterable[TargetLayer]) -> list[str]:
    """The parameters that the configuration names, in the model's order."""
    wanted: set[str] = set(config.get("target_parameters") or ())
    return [
        layer.name for layer in layers if layer.is_parameter and selected_by(wanted, modules=[layer.name])
    ]


def _same_width(layer: TargetLayer, tensor: Tensor, *, part: str) -> bool:
    if part == NORMS:
        return tuple(tensor.shape) == (layer.out_features,)
    if part not in PARTS or tensor.ndim != 2:
        return False
    return tensor.shape[1] == layer.in_features if part == "lora_A" else tensor.shape[0] == layer.out_features


def is_transposed(arm: TrainingArm, *, base: BaseModel) -> bool:
    """Whether the arm's layers store their weights as in GPT-2, inputs first."""
    return any(isinstance(base.linear_layers.get(name), Conv1D) for name in arm.module_names)


def whole(value: float) -> Any:
    """The value as int if it is whole, since PEFT types alpha as int."""
    return int(value) if value == int(value) else value
