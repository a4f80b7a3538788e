"""Peak memory of a pack before it trains, term by term: each term is a function that states its formula.

    P parameters of the base, p trainable parameters of all arms, N tokens of a micro-batch

Memory that does not depend on the batch follows from the model's shape. Memory that a step adds is counted on the
engine itself (`engine/memory_trace.py`), so this module holds no number for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from lorastudy.errors import ModelError
from lorastudy.protocol.jobs import Footprint, Phase, Precision, attends_in_one_call
from lorastudy.protocol.records import MemoryTerms
from lorastudy.suite.base_model import LAB_MODEL, cached_folder
from lorastudy.suite.methods import PLAIN, ArmMethod
from lorastudy.suite.targets import AdapterSize, CountedSize, TargetLayer, arm_size
from lorastudy.version import LAB_BASE

CONFIG_NAME = "config.json"


@dataclass(frozen=True, kw_only=True)
class LinearLayer(TargetLayer):
    """A linear layer. `is_quantisable` says whether bitsandbytes quantises it."""

    is_quantisable: bool

    @property
    def num_weights(self) -> int:
        """Weights of the layer's matrix, without bias."""
        return self.in_features * self.out_features


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a model that a plan needs. A tied matrix counts once. None means that the model has no such size."""

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
    """The shortest attention window of any layer, in tokens; None if every layer attends to all earlier tokens."""
    has_sliding_windows: bool
    """Whether the other layers have plain sliding windows, which the packed engine has on a GPU in half precision."""
    packed_problem: str | None
    """Why the packed engine does not support the model with any rows; None if no obstacle is known."""
    has_tied_head: bool

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The shape in a worker's answer."""
        layers = tuple(LinearLayer(**layer) for layer in values["linear_layers"])
        return cls(**{**values, "linear_layers": layers})

    def span_on(self, device_kind: str, quantization: str) -> int | None:
        """The most tokens of a row that the packed engine trains on such a device; None if any number."""
        has_windows = attends_in_one_call(device_kind, is_half=quantization != "fp32")
        return None if self.has_sliding_windows and has_windows else self.attention_span

    def layers_by_name(self) -> dict[str, LinearLayer]:
        """Name -> layer, in the model's order."""
        return {layer.name: layer for layer in self.linear_layers}


def config_folder(base_model: str) -> Path:
    """The folder that holds a base model's `config.json`: the lab's, a local folder, or one in the hub's cache.

    Raises:
        ModelError: the file is not on this machine.
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


#: Bytes of a weight that is not quantised, by precision. Beside quantised layers, the rest of the model is in bf16.
PLAIN_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "8bit": 2, "4bit": 2}

#: Adapters, their gradients and both moments of AdamW are fp32, whatever the base's precision.
FP32_BYTES = 4

#: bitsandbytes' defaults, which transformers does not change: the number of weights that share a constant, and, with
#: double quantization, the number of constants that share a second constant (QLoRA, arXiv 2305.14314, section 3).
BLOCK_4BIT, BLOCK_OF_CONSTANTS = 64, 256

#: Entries of the table that maps 4-bit codes to values, and of the table for the constants. A layer has both, in fp32.
CODE_4BIT, CODE_OF_CONSTANTS = 16, 256

#: PyTorch's CUDA allocator rounds each tensor up to a multiple of this (`kMinBlockSize`).
CUDA_ROUNDING = 512

#: Bytes of cuBLAS's workspace in PyTorch's allocator: workers ask for `:4096:8`, eight times 4096 KiB
#: (`executors/process.py`).
CUBLAS_WORKSPACE = 8 * 4096 * 1024

#: Terms that add up over the arms of a pack.
_TERMS_OF_ARMS = ("adapters", "gradients", "optimizer")

#: Terms that exist only during a step.
_TERMS_OF_A_STEP = ("activations", "loss", "workspace", "allocator_slack")


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device properties that memory depends on."""

    kind: str
    """`cpu` or `cuda`."""


@dataclass(frozen=True, kw_only=True)
class ArmSize:
    """The properties of an arm that memory depends on."""

    r: int
    module_names: tuple[str, ...]
    has_dropout: bool = False
    method: ArmMethod = PLAIN
    counted: CountedSize | None = None
    """The size that PEFT counted on the model, where no formula here gives it (`ArmMethod.is_counted`)."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The memory terms at the peak, and the phase of a step in which the peak falls."""

    terms: MemoryTerms
    phase: Phase


def predict(
    shape: ModelShape,
    arms: Sequence[ArmSize],
    *,
    precision: Precision,
    footprint: Footprint,
    device: Device,
) -> Prediction:
    """Peak bytes of training these arms together. `footprint` is the counted memory of their step."""
    trainable = sum(num_trainable(shape, arm) for arm in arms)
    held = sum(held_bytes(shape, arm, precision=precision) for arm in arms)
    gradients = sum(gradient_bytes_of(shape, arm) for arm in arms)
    quantised = precision.quantization in {"4bit", "8bit"}
    num_constants = 5 * sum(layer.is_quantisable for layer in shape.linear_layers) * quantised
    terms = MemoryTerms(
        base_weights=base_weight_bytes(shape, precision),
        quantisation_constants=quantisation_bytes(shape, precision),
        adapters=held,
        gradients=gradients,
        optimizer=optimizer_bytes(trainable, beside=held + gradients, footprint=footprint),
        activations=activation_bytes(footprint),
        loss=loss_bytes(footprint),
        workspace=workspace_bytes(footprint, device=device),
        allocator_slack=slack_bytes(shape.num_tensors + num_constants + footprint.num_tensors, device=device),
    )
    return Prediction(terms=terms, phase=footprint.phase)


def in_turn(alone: Sequence[Prediction]) -> Prediction:
    """Peak bytes of training the arms one after another.

    It is the step of the largest arm plus the adapters, gradients and moments of all arms.
    """
    largest = max(alone, key=lambda each: each.terms.activations + each.terms.loss + each.terms.workspace)
    of_arms = {name: sum(getattr(each.terms, name) for each in alone) for name in _TERMS_OF_ARMS}
    terms = replace(largest.terms, **of_arms)
    return Prediction(terms=terms, phase=largest.phase)


def part_of(
    whole: Prediction, *, alone_in_whole: Sequence[Prediction], alone_in_part: Sequence[Prediction]
) -> Prediction:
    """Peak bytes of some arms of a predicted pack.

    The part's step takes this share of the whole pack's step, where "alone" means that the arm trains by itself:

        sum over the part of an arm's step bytes alone / sum over the whole of an arm's step bytes alone

    It serves packs that form while a study runs: the arms left by racing, or half of a pack that ran out of memory.
    """

    def step_bytes(prediction: Prediction) -> int:
        return sum(getattr(prediction.terms, name) for name in _TERMS_OF_A_STEP)

    share = sum(map(step_bytes, alone_in_part)) / sum(map(step_bytes, alone_in_whole))
    of_step = {name: round(getattr(whole.terms, name) * share) for name in _TERMS_OF_A_STEP}
    of_arms = {name: sum(getattr(each.terms, name) for each in alone_in_part) for name in _TERMS_OF_ARMS}
    return Prediction(terms=replace(whole.terms, **of_step, **of_arms), phase=whole.phase)


def base_weight_bytes(shape: ModelShape, precision: Precision) -> int:
    """P x bytes of a weight, plus the model's buffers. A quantised weight takes 1/2 byte in 4-bit and 1 byte in 8-bit.

    transformers quantises linear layers only; embeddings, norms, biases and the head keep 2 bytes. A 4-bit layer is
    rounded up to whole bytes.
    """
    plain = PLAIN_BYTES[precision.quantization]
    quantised = [layer for layer in shape.linear_layers if layer.is_quantisable]
    if precision.quantization not in {"4bit", "8bit"}:
        return plain * shape.num_parameters + shape.buffer_bytes
    rest = shape.num_parameters - sum(layer.num_weights for layer in quantised)
    if precision.quantization == "8bit":
        return plain * rest + sum(layer.num_weights for layer in quantised) + shape.buffer_bytes
    return plain * rest + sum(-(-layer.num_weights // 2) for layer in quantised) + shape.buffer_bytes


def quantisation_bytes(shape: ModelShape, precision: Precision) -> int:
    """Bytes of the constants that turn codes back into weights.

    8-bit: an fp32 for each output of a layer. 4-bit: the table of codes, and an fp32 for each block of 64 weights.
    With double quantization, each block has a byte in place of its fp32; there is an fp32 for each 256 of these bytes,
    one for their mean, and a second table of codes.
    """
    if precision.quantization == "8bit":
        return sum(FP32_BYTES * layer.out_features for layer in shape.linear_layers if layer.is_quantisable)
    if precision.quantization != "4bit":
        return 0
    total = 0
    for layer in shape.linear_layers:
        num_blocks = -(-layer.num_weights // BLOCK_4BIT)
        if not layer.is_quantisable:
            continue
        total += FP32_BYTES * CODE_4BIT
        if precision.double_quant:
            nested = -(-num_blocks // BLOCK_OF_CONSTANTS) + 1 + CODE_OF_CONSTANTS
            total += num_blocks + FP32_BYTES * nested
        else:
            total += FP32_BYTES * num_blocks
    return total


def size_of(shape: ModelShape, arm: ArmSize) -> AdapterSize:
    """The numbers of an arm's parameters."""
    layers = shape.layers_by_name()
    return arm_size(
        [layers[name] for name in arm.module_names],
        r=arm.r,
        method=arm.method,
        num_base_parameters=shape.num_parameters,
    )


def num_trainable(shape: ModelShape, arm: ArmSize) -> int:
    """Trainable parameters: rank x (inputs + outputs) in plain LoRA, summed over the adapted layers and their experts."""
    if arm.counted is not None:
        return arm.counted.num_trainable
    return size_of(shape, arm).num_trainable


def held_bytes(shape: ModelShape, arm: ArmSize, *, precision: Precision) -> int:
    """Bytes of the weights that the arm holds beside the base: those of its adapter.

    Full fine-tuning holds a copy of all weights for the optimizer if the base is in half precision. In fp32 it has none.
    """
    if arm.method.is_full and precision.quantization == "fp32":
        return 0
    if arm.counted is not None:
        return arm.counted.held_bytes
    return adapter_bytes(size_of(shape, arm).num_parameters)


def gradient_bytes_of(shape: ModelShape, arm: ArmSize) -> int:
    """Bytes of the arm's gradients."""
    if arm.counted is not None:
        return arm.counted.gradient_bytes
    return gradient_bytes(num_trainable(shape, arm))


def adapter_bytes(num_parameters: int) -> int:
    """4 bytes for each parameter: adapters are fp32. LoRA-FA's lora_A counts too, though it is frozen.

    For full fine-tuning in half precision these are the optimizer's fp32 weights.
    """
    return FP32_BYTES * num_parameters


def saved_bytes(shape: ModelShape, arm: ArmSize, *, precision: Precision) -> int:
    """4 bytes for each parameter of an adapter. LoRA-FA saves frozen ones too, PiSSA and OLoRA twice the rank.

    Full fine-tuning saves the model in its precision.
    """
    if arm.counted is not None:
        return arm.counted.saved_bytes
    size = PLAIN_BYTES[precision.quantization] if arm.method.is_full else FP32_BYTES
    return size * size_of(shape, arm).num_saved


def gradient_bytes(num_trainable_parameters: int) -> int:
    """4 p bytes: the step keeps a gradient for each trainable parameter."""
    return FP32_BYTES * num_trainable_parameters


def optimizer_bytes(num_trainable_parameters: int, *, footprint: Footprint, beside: int) -> int:
    """Bytes that the engine keeps per trainable parameter, minus `beside`, adapter and gradient: AdamW's two moments, 8 p.

    With PiSSA and OLoRA it also keeps the layers' own weights, to restore them, and with full fine-tuning those of the whole
    base: on a CPU only, since a GPU's are kept in the machine's memory.
    """
    return round(footprint.resident_bytes_per_parameter * num_trainable_parameters) - beside


def activation_bytes(footprint: Footprint) -> int:
    """Counted bytes that the forward pass keeps for the backward pass; linear in arms x tokens.

    With gradient checkpointing that is the input of each layer. 0 if the peak falls in the optimizer's phase.
    """
    return 0 if footprint.phase == "optimizer" else footprint.held_bytes


def loss_bytes(footprint: Footprint) -> int:
    """Counted bytes of one chunk's logits and of the tensors made from them, if the peak falls in the loss."""
    return footprint.loss_bytes


def workspace_bytes(footprint: Footprint, *, device: Device) -> int:
    """Bytes of temporaries at the peak: gradients of one layer, a dequantised weight, the optimizer's temporaries.

    That is the counted peak minus activations and loss. CUDA adds the workspace of cuBLAS, once for the forward
    thread and once for the backward thread.
    """
    counted = footprint.total_bytes - activation_bytes(footprint) - loss_bytes(footprint)
    return counted + 2 * CUBLAS_WORKSPACE * (device.kind == "cuda")


def slack_bytes(num_tensors: int, *, device: Device) -> int:
    """On CUDA, half of the allocator's rounding for each live tensor; 0 on a CPU, where only tensor bytes count."""
    return num_tensors * CUDA_ROUNDING // 2 if device.kind == "cuda" else 0
