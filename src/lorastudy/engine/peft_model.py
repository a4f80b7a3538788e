"""PEFT's own models with adapters on them. The only file that imports peft.

Import it only where PEFT is needed, since the import takes a second.
"""

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from peft.tuners.lora import dora as dora_layers
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import transpose
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lorastudy.engine import loading
from lorastudy.engine.adapters import (
    CONFIG_FILE,
    PARTS,
    PREFIX,
    WEIGHTS_FILE,
    check_fits,
    check_saved,
    differences,
    expected_keys,
    is_transposed,
    key_stems,
    read_adapter,
    shapes_saved,
    targets_in_config,
    whole,
)
from lorastudy.engine.arms import TokenScores, TrainingArm, stream_seed
from lorastudy.engine.batch import Batch
from lorastudy.engine.loading import BaseModel, num_embeddings
from lorastudy.engine.optimizers import optimizer_of
from lorastudy.engine.padded_forward import greedy_answers, label_logits
from lorastudy.errors import ModelError, first_line
from lorastudy.suite.methods import LOFTQ
from lorastudy.suite.targets import CountedSize
from lorastudy.suite.wording import did_you_mean

#: PEFT's module with DoRA's layer; counting memory replaces its dequantisation.
DORA_LAYERS = dora_layers

#: The name of an adapter that has the model for itself. PEFT writes an adapter of this name into the given folder.
ONLY_ADAPTER = "default"

#: The beginning of PEFT's warning of a trained module whose weights another module shares.
_TIED = "Model (with|has) `?tie_word_embeddings"

#: The errors that PEFT raises when it cannot wrap a layer or read an adapter.
_REFUSALS = (ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError)


def peft_config(arm: TrainingArm, *, base: BaseModel, parameters: Sequence[str] = ()) -> PeftConfig:
    """The arm as PEFT's own configuration: of LoRA, or of the adapter that its `peft` names.

    Raises:
        ModelError: PEFT refuses its values.
    """
    options = dict(arm.method.peft)
    if not options:
        return lora_config(arm, base=base, parameters=parameters)
    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(options.pop("peft_type"))]
    if "feedforward_modules" in {field.name for field in fields(kind)}:
        options.setdefault("feedforward_modules", ())
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    if "fan_in_fan_out" in {field.name for field in fields(kind)}:
        options["fan_in_fan_out"] = is_transposed(arm, base=base)
    modules, _ = targets_in_config(arm.module_names, base=base)
    try:
        made: PeftConfig = kind(
            target_modules=modules,
            modules_to_save=list(arm.method.modules_to_save) or None,
            task_type="CAUSAL_LM",
            **options,
        )
    except _REFUSALS as error:
        raise ModelError(f"peft: {first_line(error)}") from error
    return made


def lora_config(arm: TrainingArm, *, base: BaseModel, parameters: Sequence[str] = ()) -> LoraConfig:
    """The arm as PEFT's own configuration. PEFT fills in the base's name itself.

    `parameters` are parameters of experts that the arm does not adapt but PEFT must wrap.
    """
    modules, own = targets_in_config(arm.module_names, base=base)
    wrapped = sorted({*own, *parameters})
    # PEFT's type does not have pissa_niter_N. Its loftq quantises by itself; here the base is quantised already.
    initial_weights: Any = True if arm.method.init_lora_weights == LOFTQ else arm.method.init_lora_weights
    bias: Any = arm.method.bias
    return LoraConfig(
        r=arm.r,
        lora_alpha=whole(arm.lora_alpha),
        use_rslora=arm.use_rslora,
        lora_dropout=arm.lora_dropout,
        use_dora=arm.method.use_dora,
        rank_pattern=dict(arm.method.rank_pattern),
        alpha_pattern={pattern: whole(alpha) for pattern, alpha in arm.method.alpha_pattern},
        init_lora_weights=initial_weights,
        bias=bias,
        modules_to_save=list(arm.method.modules_to_save) or None,
        trainable_token_indices=list(arm.method.trainable_token_indices) or None,
        target_modules=modules,
        target_parameters=wrapped or None,
        fan_in_fan_out=is_transposed(arm, base=base),
        task_type="CAUSAL_LM",
    )


def wrap(base: BaseModel, arms: Mapping[str, TrainingArm]) -> PeftModel:
    """PEFT's model around the base with one named adapter per arm, with weights as PEFT draws them from the first arm's seed.

    In one PEFT model all adapters must name the same parameters of experts, so every adapter wraps those of all arms.
    """
    layers = base.targets_by_name
    parameters = [
        name
        for name in {name: None for arm in arms.values() for name in arm.module_names}
        if layers[name].is_parameter
    ]
    seed = stream_seed("initial weights", next(iter(arms.values())).seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # PEFT draws from torch's own stream
        return _wrapped(base, arms, parameters=parameters)


def _wrapped(base: BaseModel, arms: Mapping[str, TrainingArm], *, parameters: Sequence[str]) -> PeftModel:
    names = iter(arms)
    first = next(names)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_TIED)
        model = get_peft_model(
            base.model, peft_config(arms[first], base=base, parameters=parameters), adapter_name=first
        )
        for name in names:
            model.add_adapter(name, peft_config(arms[name], base=base, parameters=parameters))
    return model


def adapter_of(model: nn.Module, name: str, *, adapter_name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """`lora_A` and `lora_B` of a named adapter on one of the base's layers, or on a parameter of experts."""
    layer: Any = _submodule(model, name)
    return layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight


def _submodule(model: nn.Module, name: str) -> nn.Module:
    """PEFT's layer that replaces a module. For a parameter of experts, PEFT's wrapper that replaces its module."""
    parent, _, leaf = name.rpartition(".")
    holder: Any = model.get_submodule(f"{PREFIX}{parent}")
    if hasattr(holder, "parameter_name"):
        while holder.parameter_name != leaf:
            holder = holder.base_layer
        assert isinstance(holder, nn.Module)
        return holder
    found: nn.Module = getattr(holder, leaf)
    return found


@torch.no_grad()
def set_weights(
    model: nn.Module, weights: Mapping[str, tuple[Tensor, Tensor]], *, adapter_name: str
) -> None:  # fmt: skip
    """Give a named adapter of PEFT's model these weights."""
    for name, pair in weights.items():
        for parameter, value in zip(adapter_of(model, name, adapter_name=adapter_name), pair, strict=True):
            assert parameter.shape == value.shape, (name, parameter.shape, value.shape)
            parameter.copy_(value)


def make_optimizer(model: nn.Module, arm: TrainingArm, *, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """The arm's optimizer (`optimizer_of`), or what PEFT makes of it for LoRA+, or PEFT's own for LoRA-FA.

    `parameters` are those that it trains. PEFT's function for LoRA+ takes the parameters of the model that need a
    gradient: those of the active adapter, which must be the arm's. `create_lorafa_optimizer` freezes every lora_A of the
    model, so LoRA-FA must have the model for itself. It takes no constants of AdamW: its epsilon is 1e-6.

    Raises:
        ModelError: the optimizer has no kernels for the device.
    """
    rates: dict[str, Any] = {"lr": arm.learning_rate}
    kind, constants = optimizer_of(arm, device=next(model.parameters()).device)
    adapted: Any = model
    made: Optimizer
    if arm.method.is_lorafa:
        made = create_lorafa_optimizer(
            adapted, r=arm.r, lora_alpha=whole(arm.lora_alpha), weight_decay=arm.weight_decay, **rates
        )
    elif arm.method.loraplus_lr_ratio is not None:
        made = create_loraplus_optimizer(
            adapted,
            kind,
            loraplus_lr_ratio=arm.method.loraplus_lr_ratio,
            loraplus_weight_decay=arm.weight_decay,
            **rates,
            **constants,
        )
    else:
        made = kind(parameters, weight_decay=arm.weight_decay, **rates, **constants)
    return made


def initial_state(model: PeftModel) -> dict[str, Tensor]:
    """A copy of the weights of a model's only adapter, in PEFT's keys. `save_with_peft` needs it if these changed the base."""
    state = get_peft_model_state_dict(model, adapter_name=ONLY_ADAPTER, save_embedding_layers=False)
    return {key: value.detach().clone() for key, value in state.items()}


def save_with_peft(
    model: PeftModel, arm: TrainingArm, *, base: BaseModel, folder: Path, initial: Mapping[str, Tensor]
) -> int:
    """Write a model's only adapter as PEFT does; return the bytes of its weights file.

    If `initial` is not empty, PEFT subtracts it and writes a plain LoRA of twice the rank, which fits the unchanged base.

    Raises:
        ModelError: the written files differ from those that PEFT expects.
    """
    with tempfile.TemporaryDirectory() as place, torch.random.fork_rng():
        options: dict[str, Any] = {}
        if initial:
            before = Path(place) / "initial"
            before.mkdir()
            (before / WEIGHTS_FILE).write_bytes(
                save({key: value.contiguous() for key, value in initial.items()})
            )
            options["path_initial_model_for_weight_conversion"] = str(before)
        written = Path(place) / "adapter"
        with warnings.catch_warnings():
            # To subtract the initial adapter, PEFT loads it beside the trained one and warns of that.
            warnings.filterwarnings("ignore", message=r"\w+ changes the base weights of the model")
            warnings.filterwarnings("ignore", message=_TIED)
            model.save_pretrained(str(written), save_embedding_layers=False, **options)
        config = json.loads((written / CONFIG_FILE).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base.name
        # PEFT keeps the modules in a set, so it writes them in random order.
        for key in ("target_modules", "feedforward_modules"):
            if isinstance(config.get(key), list):
                config[key] = sorted(config[key])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS_FILE).unlink(
            missing_ok=True
        )  # a process that has the earlier file mapped keeps its bytes
        (folder / WEIGHTS_FILE).write_bytes((written / WEIGHTS_FILE).read_bytes())
        (folder / CONFIG_FILE).write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    check_saved(arm, base=base, folder=folder)
    return (folder / WEIGHTS_FILE).stat().st_size


def load_with_peft(
    model: PeftModel,
    arm: TrainingArm,
    *,
    base: BaseModel,
    folder: Path,
    whole_weights: Mapping[str, Tensor],
    drawn: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Give a model's only adapter the weights that `save_with_peft` wrote; return its initial weights, in PEFT's keys.

    If PEFT subtracted the initial adapter, it wrote [A | A0] and [B | -B0], so the trained A and B are the first half. They fit
    the base without scale * B0 A0. If `drawn`, the model's own initial weights, are those of the file, that is its base.
    They may be others, since a randomised SVD depends on the random stream and the device. Then the base is made from the
    file and `whole_weights`, the unchanged weights by layer. That gives the bits of training in fp32. In half precision PEFT
    rounds A0 and B0 after it has used them, so it gives those up to rounding.

    For other methods nothing is subtracted, and nothing is returned.

    Raises:
        ModelError: not an adapter folder, or another adapter than the arm's.
    """
    _, tensors = read_adapter(folder)
    expected = shapes_saved(arm, base=base)
    wrong = differences({key: tuple(tensor.shape) for key, tensor in tensors.items()}, expected)
    if wrong:
        raise ModelError(f"{folder}: not the adapter of {arm.experiment_id}: {'; '.join(wrong[:4])}")
    initial: dict[str, Tensor] = {}
    if arm.method.changes_base:
        halves = {key: tensor.chunk(2, dim=0 if ".lora_A." in key else 1) for key, tensor in tensors.items()}
        tensors = {key: trained for key, (trained, _) in halves.items()}
        initial = {key: first if ".lora_A." in key else -first for key, (_, first) in halves.items()}
        if not all(torch.equal(first, drawn[key].to(first.device)) for key, first in initial.items()):
            stems = key_stems(tuple(whole_weights), layers=base.targets_by_name)
            for name, weight in whole_weights.items():
                first_A, first_B = (initial[f"{stems[name]}.{part}.weight"] for part in PARTS)
                _take_out(_submodule(model, name), weight, first_A=first_A, first_B=first_B)
    set_peft_model_state_dict(model, tensors, adapter_name=ONLY_ADAPTER)
    return initial


@torch.no_grad()
def _take_out(layer: Any, weight: Tensor, *, first_A: Tensor, first_B: Tensor) -> None:
    """Give a layer its weight without its initial adapter, by PEFT's own arithmetic."""
    first_A, first_B = (first.to(weight.device).contiguous() for first in (first_A, first_B))
    rest = transpose(weight.to(torch.float32), layer.fan_in_fan_out)
    rest = rest - layer.scaling[ONLY_ADAPTER] * first_B @ first_A
    layer.get_base_layer().weight.data = transpose(rest.to(weight.dtype), layer.fan_in_fan_out)


def load_adapter(base: BaseModel, folder: Path) -> PeftModel:
    """PEFT's own loading of an adapter onto the base, for evaluation.

    Raises:
        ModelError: not an adapter folder, or an adapter of another base.
    """
    check_fits(base, folder)
    try:
        with warnings.catch_warnings():
            # PEFT only warns if a layer has no weights, and leaves it at its random initial weights.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            warnings.filterwarnings("ignore", message=_TIED)
            model = PeftModel.from_pretrained(base.model, str(folder))
    except (*_REFUSALS, UserWarning) as error:
        raise ModelError(f"checkpoint: {folder}: PEFT cannot load it: {error}") from error
    model.eval()
    return model


def taken_for_experts(model: nn.Module, names: Sequence[str]) -> frozenset[str]:
    """The linear layers that PEFT mistakes for parameters of experts by their names, and so cannot wrap.

    Adapters from before transformers 5 name experts' matrices `gate_proj`. Dense and shared layers have the same name.
    """
    config = LoraConfig(target_modules=list(names))
    convert_peft_config_for_transformers(config, model=model, conversions=None)
    kept: Any = config.target_modules
    return frozenset(names) - frozenset(kept)


def check_wrapping(base: BaseModel, arm: TrainingArm) -> None:
    """Check on a copy of the model on the meta device that PEFT wraps exactly these layers and loads these keys.

    Raises:
        ModelError: PEFT wraps or loads something else. The message names the difference.
    """
    check_beside(base, arm)
    ours = {} if arm.method.peft else expected_keys(arm, layers=base.targets_by_name)
    with _meta_copy(base.model) as copy, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they concern the differences checked below
        try:
            model = get_peft_model(copy, peft_config(arm, base=base))
            theirs = _shapes(model)
            if arm.method.peft:
                wrong = _wrapped_otherwise(model, arm)
            else:
                wrong = differences(ours, {key: shape for key, shape in theirs.items() if ".lora_" in key})
            if not wrong:
                loaded = set_peft_model_state_dict(
                    model, {key: torch.empty(shape) for key, shape in theirs.items()}
                )
                wrong += [f"{key} is not loaded" for key in loaded.missing_keys if ".lora_" in key]
                wrong += [f"{key} is not known in loading" for key in loaded.unexpected_keys]
        except _REFUSALS as error:
            wrong = [str(error).splitlines()[0]]
    if wrong:
        key = "peft" if arm.method.peft else "target_modules"
        raise ModelError(
            f"{key}: PEFT does not wrap in {type(base.model).__name__} what this arm would train, so its adapter could "
            f"not be loaded: {'; '.join(wrong[:4])}"
        )


def _wrapped_otherwise(model: PeftModel, arm: TrainingArm) -> list[str]:
    """Sentences that name the layers that PEFT adapts and the arm does not, or the reverse."""
    theirs, ours = set(model.base_model.targeted_module_names), set(arm.module_names)
    return [
        *(f"{name} is not adapted" for name in sorted(ours - theirs)),
        *(f"{name} is adapted, too" for name in sorted(theirs - ours)),
    ]


def set_adapter_training(model: nn.Module, *, training: bool) -> None:
    """Switch the adapters alone between training and scoring: their dropout is part of an experiment, the base's is not."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            own: Any = module
            own.training = training
            for name, child in own.named_children():
                if name != "base_layer":
                    child.train(training)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key -> shape of what PEFT saves of a model's only adapter. Resized embeddings, which it may add, are left out."""
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {key: tuple(value.shape) for key, value in saved.items()}


def shapes_by_peft(arm: TrainingArm, *, base: BaseModel) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every tensor that PEFT saves of the arm."""
    with _wrapped_copy(peft_config(arm, base=base), base=base) as model:
        return _shapes(model)


def shapes_of_config(folder: Path, *, base: BaseModel) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every tensor that PEFT expects in an adapter folder, by its configuration.

    Raises:
        ModelError: PEFT cannot put such an adapter on the base.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that this version of PEFT does not know
            config = PeftConfig.from_pretrained(str(folder))
        with _wrapped_copy(config, base=base) as model:
            return _shapes(model)
    except _REFUSALS as error:
        raise ModelError(f"checkpoint: {folder}: does not fit {base.name}: {first_line(error)}") from error


@contextmanager
def _wrapped_copy(config: PeftConfig, *, base: BaseModel) -> Iterator[PeftModel]:
    """PEFT's model with this adapter on a copy of the base on the meta device."""
    with _meta_copy(base.model) as copy, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they concern what PEFT saves, which is what this asks
        yield get_peft_model(copy, config)


def counted_size(arm: TrainingArm, *, base: BaseModel) -> CountedSize:
    """The size of what an arm trains, counted on a copy of the model on the meta device.

    Raises:
        ModelError: PEFT does not wrap what the arm would train.
    """
    check_wrapping(base, arm)
    with _meta_copy(base.model) as copy:
        own = {id(parameter) for parameter in copy.parameters()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(copy, peft_config(arm, base=base))
        trained = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not (arm.method.is_lorafa and ".lora_A." in name)
        ]
        held = [parameter for parameter in model.parameters() if id(parameter) not in own]
        saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    return CountedSize(
        num_trainable=sum(parameter.numel() for parameter in trained),
        held_bytes=sum(parameter.nbytes for parameter in held),
        gradient_bytes=sum(parameter.nbytes for parameter in trained),
        saved_bytes=sum(tensor.nbytes for tensor in saved.values()),
        num_beside=sum(parameter.numel() for parameter in held),
    )


def check_beside(base: BaseModel, arm: TrainingArm) -> None:
    """Check that the model has the weights that the arm trains beside its adapter.

    Raises:
        ModelError: it does not, or they are quantised or adapted. The message names the key and the nearest name.
    """
    method, model = arm.method, base.model
    if method.bias != "none" and not _biases(model, arm):
        raise ModelError(f"bias: {method.bias}: {type(model).__name__} has no such biases; remove it")
    vocabulary = num_embeddings(model.config)
    if max(method.trainable_token_indices, default=0) >= vocabulary:
        raise ModelError(
            f"trainable_token_indices: {max(method.trainable_token_indices)}: the model has embeddings of 0 to {vocabulary - 1}"
        )
    for name in method.modules_to_save:
        _check_module(base, arm, name=name)


def _check_module(base: BaseModel, arm: TrainingArm, *, name: str) -> None:
    modules = dict(base.model.named_modules(remove_duplicate=False))
    ends = [full for full in modules if full.endswith(name)]  # PEFT's rule
    found = [full for full in ends if full == name or full.endswith(f".{name}")]
    if not found:
        leaves = {
            full.rpartition(".")[2]
            for full, module in modules.items()
            if any(True for _ in module.parameters())
        }
        near = (
            did_you_mean(name, sorted(leaves)) or f"; these have weights: {', '.join(sorted(leaves - {''}))}"
        )
        raise ModelError(f"modules_to_save: {name}: not in this model{near}")
    if len(ends) > len(found):
        other = next(full for full in ends if full not in found)
        raise ModelError(f"modules_to_save: {name}: PEFT takes {other} for it, too; give a longer name")
    for full in found:
        adapted = next(
            (each for each in arm.module_names if each == full or each.startswith(f"{full}.")), None
        )
        if adapted is not None:
            raise ModelError(
                f"modules_to_save: {name}: the arm adapts {adapted}; leave it out of one of them"
            )
        if arm.method.trainable_token_indices and modules[full] is base.model.get_input_embeddings():
            raise ModelError(
                f"modules_to_save: {name}: trains all embeddings, and trainable_token_indices some; remove one"
            )
        if not all(weight.is_floating_point() for weight in modules[full].parameters()):
            raise ModelError(
                f"modules_to_save: {name}: its weights are quantised, and cannot train; set quantization: bf16, or name other modules"
            )


def _biases(model: nn.Module, arm: TrainingArm) -> list[nn.Parameter]:
    """The biases of the base that the arm trains."""
    names = {f"{name}.bias" for name in arm.module_names}
    return [
        parameter
        for name, parameter in model.named_parameters()
        if name.endswith(".bias") and (arm.method.bias == "all" or name in names)
    ]


class BaseParts:
    """The modules and biases of a base, to give it back after PEFT has put trained ones in their place."""

    def __init__(self, base: BaseModel, *, biases: str) -> None:
        """Keep them. `biases` is PEFT's `bias`: unless it is `none`, PEFT trains or loads those of the base in place."""
        self._model = base.model
        self._modules = dict(base.model.named_modules(remove_duplicate=False))
        named = base.model.named_parameters() if biases != "none" else iter(())
        self._biases = [weight for name, weight in named if name.endswith(".bias")]
        self._values = loading.kept_weights(self._biases)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the base its own parts again, after PEFT's `unload`."""
        for name, module in self._modules.items():
            parent, _, leaf = name.rpartition(".")
            if name and getattr(self._modules[parent], leaf) is not module:
                setattr(self._modules[parent], leaf, module)
        for weight, own in zip(self._biases, self._values, strict=True):
            weight.copy_(own)
            weight.grad = None


@contextmanager
def _meta_copy(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    with torch.device("meta"):
        kind: Any = type(model)
        yield kind(model.config).to(model.dtype).requires_grad_(requires_grad=False)


class LoadedAdapter:
    """A trained adapter as a `Scorer` of one arm. It is the same model as from `PeftModel.from_pretrained`."""

    def __init__(self, base: BaseModel, folder: Path) -> None:
        """Load the adapter onto the base.

        Raises:
            ModelError: not an adapter folder, or an adapter of another base.
        """
        self._base = base
        config, _ = read_adapter(folder)
        self._parts = BaseParts(base, biases=config.get("bias") or "none")
        self._model = load_adapter(base, folder)
        self.experiment_ids = (folder.name,)

    def close(self) -> None:
        """Remove the adapter and restore the base."""
        self._model.unload()
        self._parts.restore()
        self._base.model.requires_grad_(requires_grad=False)

    @torch.no_grad()
    def score(self, batch: Batch) -> TokenScores:
        """Score a batch."""
        logits_MV = label_logits(self._model, batch)
        nll_M = F.cross_entropy(logits_MV, batch.targets_M, reduction="none")
        correct_M = logits_MV.argmax(dim=-1) == batch.targets_M
        return TokenScores(nll_KM=nll_M.unsqueeze(0), correct_KM=correct_M.unsqueeze(0))

    def generate(self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int) -> list[list[list[int]]]:
        """Greedy answers, `[0][prompt]`, up to and without the end-of-text token."""
        return [greedy_answers(self._base, prompts, copies=1, max_new_tokens=max_new_tokens)]
