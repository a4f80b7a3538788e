"""Peak memory of a pack before it trains, term by term: every term a function that says its formula.

    P parameters of the base, p trainable parameters of all arms, N tokens of a micro-batch

What is held whatever the batch is follows from the model's shape. What a step takes on top is counted on the engine
itself (`lorastudy.protocol.footprint`), and no number of it stands here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from lorastudy.errors import ModelError
from lorastudy.protocol.footprint import Footprint, Phase
from lorastudy.protocol.jobs import Precision
from lorastudy.protocol.records import MemoryTerms
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


#: Bytes of a weight that is not quantised: bitsandbytes' layers keep the rest of the model in bf16.
PLAIN_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "8bit": 2, "4bit": 2}

#: Adapters, their gradients and both moments of AdamW are fp32 whatever the base is in.
FP32_BYTES = 4

#: bitsandbytes' defaults, which transformers does not change: weights that share a constant, and constants that
#: share one of theirs with double quantization (QLoRA, arXiv 2305.14314, section 3).
BLOCK_4BIT, BLOCK_OF_CONSTANTS = 64, 256

#: Entries of the table from 4-bit codes to values, and of the one for the constants; fp32, one of each per layer.
CODE_4BIT, CODE_OF_CONSTANTS = 16, 256

#: PyTorch's CUDA allocator rounds each tensor up to a multiple of this (`kMinBlockSize`).
CUDA_ROUNDING = 512

#: What cuBLAS takes from PyTorch's allocator: `:4096:2:16:8`, and 32 MiB on Hopper (`getChosenWorkspaceSize`).
CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_HOPPER = 2 * 4096 * 1024 + 8 * 16 * 1024, 32 * 1024 * 1024

#: Terms that add up over the arms of a pack, and those that a step adds to what is held between steps.
_TERMS_OF_ARMS = ("adapters", "gradients", "optimizer")

_TERMS_OF_A_STEP = ("activations", "loss", "workspace", "allocator_slack")


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where a pack would train, as far as memory goes."""

    kind: str
    """`cpu` or `cuda`."""
    compute_capability: int | None = None


@dataclass(frozen=True, kw_only=True)
class ArmSize:
    """What memory depends on of an arm."""

    r: int
    module_names: tuple[str, ...]
    has_dropout: bool = False


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The terms, and in which phase of a step the peak is."""

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
    """Peak bytes of training these arms together; `footprint` is what their step was counted to hold."""
    trainable = sum(num_trainable(shape, arm) for arm in arms)
    quantised = precision.quantization in {"4bit", "8bit"}
    num_constants = 5 * sum(layer.is_quantisable for layer in shape.linear_layers) * quantised
    terms = MemoryTerms(
        base_weights=base_weight_bytes(shape, precision),
        quantisation_constants=quantisation_bytes(shape, precision),
        adapters=adapter_bytes(trainable),
        gradients=gradient_bytes(trainable),
        optimizer=optimizer_bytes(trainable, footprint=footprint),
        activations=activation_bytes(footprint),
        loss=loss_bytes(footprint),
        workspace=workspace_bytes(footprint, device=device),
        allocator_slack=slack_bytes(shape.num_tensors + num_constants + footprint.num_tensors, device=device),
    )
    return Prediction(terms=terms, phase=footprint.phase)


def in_turn(alone: Sequence[Prediction]) -> Prediction:
    """Peak bytes of training one arm after another: the step of the largest, beside adapters, gradients and moments of all."""
    largest = max(alone, key=lambda each: each.terms.activations + each.terms.loss + each.terms.workspace)
    of_arms = {name: sum(getattr(each.terms, name) for each in alone) for name in _TERMS_OF_ARMS}
    terms = replace(largest.terms, **of_arms)
    return Prediction(terms=terms, phase=largest.phase)


def part_of(
    whole: Prediction, *, alone_in_whole: Sequence[Prediction], alone_in_part: Sequence[Prediction]
) -> Prediction:
    """Peak bytes of some arms of a predicted pack: they have that share of its step which their steps have alone.

    For packs that form while a study runs, of arms that racing leaves or of one half after it ran out of memory.
    """

    def step_bytes(prediction: Prediction) -> int:
        return sum(getattr(prediction.terms, name) for name in _TERMS_OF_A_STEP)

    share = sum(map(step_bytes, alone_in_part)) / sum(map(step_bytes, alone_in_whole))
    of_step = {name: round(getattr(whole.terms, name) * share) for name in _TERMS_OF_A_STEP}
    of_arms = {name: sum(getattr(each.terms, name) for each in alone_in_part) for name in _TERMS_OF_ARMS}
    return Prediction(terms=replace(whole.terms, **of_step, **of_arms), phase=whole.phase)


def base_weight_bytes(shape: ModelShape, precision: Precision) -> int:
    """P x bytes of a weight, and the model's buffers. 4-bit: 1/2 byte a quantised weight; 8-bit: 1 byte.

    transformers quantises linear layers only; embeddings, norms, biases and the head keep 2 bytes. A packed 4-bit
    layer has a whole number of bytes.
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
    """Constants that turn codes back into weights.

    8-bit: an fp32 for each output of a layer. 4-bit: an fp32 for each block of 64 weights; with double quantization
    a byte instead, an fp32 for each 256 of these bytes and one for their mean. And the tables of codes.
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


def num_trainable(shape: ModelShape, arm: ArmSize) -> int:
    """Rank x (inputs + outputs), summed over the adapted layers and, in these, over experts.

    lora_A is (r, inputs), lora_B (outputs, r).
    """
    layers = shape.layers_by_name()
    return arm.r * sum(layers[name].parameters_per_rank for name in arm.module_names)


def adapter_bytes(num_trainable_parameters: int) -> int:
    """4 p: adapters are fp32."""
    return FP32_BYTES * num_trainable_parameters


def gradient_bytes(num_trainable_parameters: int) -> int:
    """4 p: a gradient is kept for each trainable parameter through the step."""
    return FP32_BYTES * num_trainable_parameters


def optimizer_bytes(num_trainable_parameters: int, *, footprint: Footprint) -> int:
    """What the engine keeps per trainable parameter, less adapter and gradient: AdamW's two moments, 8 p."""
    kept = footprint.resident_bytes_per_parameter * num_trainable_parameters
    return round(kept) - adapter_bytes(num_trainable_parameters) - gradient_bytes(num_trainable_parameters)


def activation_bytes(footprint: Footprint) -> int:
    """What the forward pass leaves for the backward pass, as counted; linear in arms x tokens.

    With gradient checkpointing that is the input of each layer. Nothing where the peak is the optimizer's.
    """
    return 0 if footprint.phase == "optimizer" else footprint.held_bytes


def loss_bytes(footprint: Footprint) -> int:
    """The logits of one chunk and what is made of them, as counted, where the loss is the peak of the step."""
    return footprint.loss_bytes


def workspace_bytes(footprint: Footprint, *, device: Device) -> int:
    """What comes and goes at the peak (gradients of one layer, a dequantised weight, the optimizer's temporaries).

    As counted: the peak less activations and loss. On CUDA the workspace of cuBLAS besides, once for the forward
    and once for the backward thread.
    """
    counted = footprint.total_bytes - activation_bytes(footprint) - loss_bytes(footprint)
    if device.kind != "cuda":
        return counted
    is_hopper = device.compute_capability == 9
    return counted + 2 * (CUBLAS_WORKSPACE_HOPPER if is_hopper else CUBLAS_WORKSPACE)


def slack_bytes(num_tensors: int, *, device: Device) -> int:
    """Half of the allocator's rounding for each live tensor on CUDA; 0 on a CPU, where tensor bytes are counted."""
    return num_tensors * CUDA_ROUNDING // 2 if device.kind == "cuda" else 0
