"""The choice of a pack's engine: decided with the loaded model, or predicted from its configuration alone."""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from lorastudy.engine.arms import Engine, TrainingArm
from lorastudy.engine.attention import UnsupportedModelError
from lorastudy.engine.fake_model import built_model, counted_arm, meta_model
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.packed import CheckedForward, PackedEngine
from lorastudy.engine.self_check import ROW_LENGTHS
from lorastudy.engine.targets import linear_modules
from lorastudy.errors import FOREIGN_ERRORS, ModelError
from lorastudy.protocol.jobs import EngineName
from lorastudy.suite.settings import Settings

if TYPE_CHECKING:
    from lorastudy.engine.reference import ReferenceEngine


@dataclass(frozen=True, kw_only=True)
class ChosenEngine:
    """The engine of a pack: an `EngineFactory` with a name. Every call makes a new engine."""

    kind: "type[PackedEngine | ReferenceEngine]"
    """The reference engine has a kind of its own for full fine-tuning."""
    base: BaseModel
    gradient_checkpointing: bool
    checked: CheckedForward | None = None
    """What the packed engine's checks found before it was chosen; its engines do not check again."""

    @property
    def name(self) -> str:
        """`packed` or `reference`."""
        return self.kind.name

    def __call__(self, arms: Sequence[TrainingArm]) -> Engine:
        """An engine with fresh adapters for these arms on the pack's base."""
        checkpointing = self.gradient_checkpointing
        if self.checked is None:
            return self.kind(self.base, arms, gradient_checkpointing=checkpointing)
        return PackedEngine(self.base, arms, gradient_checkpointing=checkpointing, checked=self.checked)


def probe_of(arms: Sequence[TrainingArm]) -> TrainingArm:
    """The arm to try an engine with for a pack: the first one, on the modules of all."""
    names = dict.fromkeys(name for arm in arms for name in arm.module_names)
    return replace(arms[0], module_names=tuple(names))


def engine_factory(
    name: str,
    *,
    base: BaseModel,
    settings: Settings,
    probe: TrainingArm,
    longest_row: int,
    on_fallback: Callable[[str], None],
) -> ChosenEngine:
    """The engine of that name. `auto` is the packed engine if it trains the method and agrees with the model's own forward.

    Otherwise `auto` is the reference engine, and `on_fallback` gets the reason.

    Raises:
        UnsupportedModelError: `name` is `packed`, and the packed engine cannot train this model on these rows.
    """
    checkpointing = settings.gradient_checkpointing
    reason = probe.method.only_in_reference
    if name != "reference" and reason is not None:
        on_fallback(reason)
    elif name != "reference":
        try:
            checked = _try_packed(base, probe, gradient_checkpointing=checkpointing, longest_row=longest_row)
        except UnsupportedModelError as error:
            if name == "packed":
                raise UnsupportedModelError(f"{error}; set `engine: auto` or `engine: reference`") from error
            on_fallback(str(error))
        else:
            return chosen_engine("packed", base=base, settings=settings, checked=checked)
    return chosen_engine("reference", base=base, settings=settings)


def chosen_engine(
    name: EngineName, *, base: BaseModel, settings: Settings, checked: CheckedForward | None = None
) -> ChosenEngine:
    """The engine of that name. Without `checked`, the packed engine checks itself every time that it is made."""
    kind: Any = PackedEngine
    if settings.arm_method.is_full:
        from lorastudy.engine.full_fine_tuning import FullFineTuning

        kind = FullFineTuning
    elif name == "reference":
        from lorastudy.engine.reference import ReferenceEngine  # imports PEFT, which takes a second

        kind = ReferenceEngine
    return ChosenEngine(
        kind=kind, base=base, gradient_checkpointing=settings.gradient_checkpointing, checked=checked
    )


def _try_packed(
    base: BaseModel, probe: TrainingArm, *, gradient_checkpointing: bool, longest_row: int
) -> CheckedForward:
    """What the packed engine's checks find, with two arms of rank 1. Two arms show whether the model keeps arms apart.

    A worker checks once for all packs of a base that ask for the same.

    Raises:
        UnsupportedModelError: it cannot train this model on rows of this length.
    """
    about = (
        probe.method, probe.module_names, probe.lora_dropout > 0, gradient_checkpointing, longest_row,
        torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    if about not in base.checked:
        base.checked[about] = _check_packed(
            base, probe, gradient_checkpointing=gradient_checkpointing, longest_row=longest_row
        )
    found: CheckedForward = base.checked[about]
    return found


def _check_packed(
    base: BaseModel, probe: TrainingArm, *, gradient_checkpointing: bool, longest_row: int
) -> CheckedForward:
    arms = [replace(probe, experiment_id=name, r=1) for name in ("one", "other")]
    engine = PackedEngine(base, arms, gradient_checkpointing=gradient_checkpointing, longest_row=longest_row)
    try:
        with torch.enable_grad():
            engine.check_step()
        return engine.checked
    finally:
        engine.close()


#: Sizes of the small twin. They do not affect whether the packed engine supports a model.
_FEW_IDS, _NARROW_MLP = 128, 64
_MLP_WIDTHS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "n_inner",
    "ffn_dim",
)
#: Factor on the random weights. It makes attention, caps and scales affect the logits, as in a trained model.
_WIDER = 3.0
#: The most weights of a twin. A larger one is not built; then only the run decides.
_MOST_PARAMETERS = 1 << 30
_MOST_LAYERS = 8


def packed_problem(config: Any, *, trust_remote_code: bool) -> str | None:
    """The reason why the packed engine will not support a model of this configuration; None if it probably will.

    A small random twin (first layers, small vocabulary, narrow MLP) goes through the same checks as the model before
    training. The twin has at least one layer of each kind.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _small_twin(config, trust_remote_code=trust_remote_code)
    if model is None:
        return None
    layers = linear_modules(model)
    if not layers:
        return f"{type(model).__name__} has no linear layers that the packed engine can adapt"
    nothing: Any = None
    base = BaseModel(
        name="twin", model=model, tokenizer=nothing, device=torch.device("cpu"), dtype=torch.float32, eos_token_id=0,
        pad_token_id=0, linear_layers=layers,
    )  # fmt: skip
    names = tuple(
        layer.name for layer in base.target_layers if layer.left_out is None and not layer.is_parameter
    )
    probe = counted_arm(0, names, r=1, dropout=False)
    try:
        _try_packed(base, probe, gradient_checkpointing=False, longest_row=max(ROW_LENGTHS))
    except UnsupportedModelError as error:
        return str(error)
    return None


def _small_twin(config: Any, *, trust_remote_code: bool) -> PreTrainedModel | None:
    """A random model of the first layers; None if it would be too large or its configuration cannot be reduced."""
    for widths in (_MLP_WIDTHS, ()):  # in some families the same name is also a width of other layers
        try:
            cut = _cut_down(config, widths=widths)
            size = sum(p.numel() for p in meta_model(cut, trust_remote_code=trust_remote_code).parameters())
            if size > _MOST_PARAMETERS:
                return None
            model = built_model(cut, dtype=torch.float32, trust_remote_code=trust_remote_code)
        except (ModelError, *FOREIGN_ERRORS):
            continue
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(_WIDER)
        return model.requires_grad_(requires_grad=False).eval()
    return None


def _cut_down(config: Any, *, widths: Sequence[str]) -> Any:
    cut = copy.deepcopy(config)
    text = cut.get_text_config()
    for name in widths:
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, min(getattr(text, name), _NARROW_MLP))
    _keep_first_layers(text)
    text.vocab_size = min(text.vocab_size, _FEW_IDS)
    text.pad_token_id = None if getattr(text, "pad_token_id", None) is None else 0
    return cut


def _keep_first_layers(text: Any) -> None:
    """Keep at least one layer of each kind that the configuration names, and the first layer with experts."""
    kinds = list(getattr(text, "layer_types", None) or [])
    num_layers = 1 + max((kinds.index(kind) for kind in kinds), default=0)
    num_layers = max(2, num_layers, 1 + (getattr(text, "first_k_dense_replace", None) or 0))
    text.num_hidden_layers = min(num_layers, _MOST_LAYERS, text.num_hidden_layers)
    if kinds:
        with suppress(AttributeError):  # some families derive it from the number of layers
            text.layer_types = kinds[: text.num_hidden_layers]
