"""The memory of one training step, counted on tensors of the meta device, which have shapes but no content.

The engine's own code runs one optimizer step of the pack, so the count includes everything that the engine saves, frees
or fuses. `Ledger` counts the bytes of every storage from its first tensor to its last. No device is needed: the step
takes the code path of the kind of device that will train (`_as_on`). Code that depends on content is replaced:

- the self-check that compares logits is skipped, and the last MLP is assumed to give equal states on labelled tokens
  alone;
- a number read from a tensor is 1, and a truth value is false;
- the loss runs only its first chunks, since from the third on every chunk holds as much as the second.

The count misses memory that kernels allocate internally. The exception is bitsandbytes' product with a 4-bit weight,
which holds the whole dequantised weight.

A deep model of equal layers is counted at two depths. Each further layer adds the difference of the two, in every phase
of the step: it holds the same tensors as the layer below.
"""

import gc
import math
import re
import sys
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorastudy.data.tokenise import IGNORED, TokenRow
from lorastudy.engine import adapter_buffers, attention, loading, loss, matmul, packed, patches
from lorastudy.engine.arms import TrainingArm
from lorastudy.engine.attention import serves_on, takes_all_rows_on
from lorastudy.engine.batch import ArmBatches, Batch, assemble
from lorastudy.engine.fake_model import META, FakeModels, counted_arms, decoder_layers, layers_are_alike
from lorastudy.engine.fused_ops import FusedOps, find_fused_ops
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.lora import SlotDropout
from lorastudy.engine.loss import completion_loss
from lorastudy.engine.matmul import is_replaced
from lorastudy.engine.meta_ops import MetaOps
from lorastudy.engine.packed import PackedEngine
from lorastudy.engine.padded_forward import label_logits
from lorastudy.engine.quantised import features, tensors_of
from lorastudy.engine.targets import target_layers
from lorastudy.protocol.jobs import (
    DeviceKind,
    EngineName,
    Footprint,
    FootprintQuestion,
    MicroBatch,
    Phase,
)
from lorastudy.suite.targets import without_layer_number

#: Decoder layers of the smaller of the two counts. The first layer gets no gradient from below and the last one runs
#: its MLP on labelled tokens alone, so three layers are the fewest with an ordinary one. The other count has one more.
FEW_LAYERS = 3

#: Chunks of the loss that are run: while the second is formed, the first one's tensors are still there.
_NUM_CHUNKS = 3

_PHASES: tuple[Phase, ...] = ("forward", "loss", "backward", "optimizer")

_META_OPS = MetaOps()


def footprint(question: FootprintQuestion, *, models: FakeModels) -> Footprint:
    """Count a step of the pack in question, and extend the count to all layers of the model.

    Raises:
        ModelError: the model cannot be built, or the engine cannot train it.
    """
    meta = models.meta(question.folder, trust_remote_code=question.trust_remote_code)
    arms = counted_arms(question.arms, layers=target_layers(meta))
    found = decoder_layers(meta)
    num_layers = len(found[1]) if found else 0
    if num_layers <= 2 * FEW_LAYERS + 1 or not (layers_are_alike(meta) and _in_all_layers(arms, num_layers)):
        return as_footprint(count_layers(question, arms, models=models, num_layers=None))
    few, more = (
        count_layers(question, arms, models=models, num_layers=number)
        for number in (FEW_LAYERS, FEW_LAYERS + 1)
    )
    return as_footprint(few.extended(more, num_further=num_layers - FEW_LAYERS))


@dataclass(frozen=True, kw_only=True)
class CountedStep:
    """A counted step. `resident_bytes` are adapters, gradients and optimizer state; all else is beyond them.

    `peak_bytes` and `num_tensors` are by phase: the most that lives at one moment of it, and the number of tensors
    then. The loss has one moment, its beginning; `loss_growth_bytes` is by how much memory grows in it.
    """

    resident_bytes: int
    num_parameters: int
    peak_bytes: dict[Phase, int]
    num_tensors: dict[Phase, int]
    loss_growth_bytes: int

    def extended(self, one_more: "CountedStep", *, num_further: int) -> "CountedStep":
        """The step with `num_further` layers more than this one, from the count with one layer more."""

        def at(own: int, other: int) -> int:
            return own + num_further * (other - own)

        return CountedStep(
            resident_bytes=at(self.resident_bytes, one_more.resident_bytes),
            num_parameters=at(self.num_parameters, one_more.num_parameters),
            peak_bytes={phase: at(own, one_more.peak_bytes[phase]) for phase, own in self.peak_bytes.items()},
            num_tensors={
                phase: at(own, one_more.num_tensors[phase]) for phase, own in self.num_tensors.items()
            },
            loss_growth_bytes=one_more.loss_growth_bytes,
        )


def as_footprint(step: CountedStep) -> Footprint:
    """The phase with the step's peak, and the memory in use there."""
    held = step.peak_bytes["loss"]
    peaks = {**step.peak_bytes, "loss": held + step.loss_growth_bytes}
    # If peaks are equal, name the loss, since `loss_bytes` then explains the peak.
    phase = max(("loss", *_PHASES), key=lambda each: peaks[each])
    return Footprint(
        phase=phase,
        total_bytes=peaks[phase],
        held_bytes=min(held, peaks[phase]),
        loss_bytes=step.loss_growth_bytes if phase == "loss" else 0,
        num_tensors=step.num_tensors[phase],
        resident_bytes_per_parameter=step.resident_bytes / step.num_parameters,
    )


def count_layers(
    question: FootprintQuestion, arms: Sequence[TrainingArm], *, models: FakeModels, num_layers: int | None
) -> CountedStep:
    """The step counted on the first `num_layers` layers of the model, or on all of them if it is None."""
    base = models.base(
        question.folder,
        question.precision,
        num_layers=num_layers,
        trust_remote_code=question.trust_remote_code,
    )
    kept = [
        replace(arm, module_names=tuple(name for name in arm.module_names if name in base.linear_layers))
        for arm in arms
    ]
    batches = [question.orders[arm.order] for arm in question.arms] if question.orders else []
    return count_step(
        base,
        kept,
        engine=question.engine,
        batches=batches or [MicroBatch(row_lengths=question.row_lengths, num_labels=question.num_labels)],
        gradient_checkpointing=question.gradient_checkpointing,
        device_kind=question.device_kind,
    )


def _in_all_layers(arms: Sequence[TrainingArm], num_layers: int) -> bool:
    """Whether each arm adapts the same modules in every layer, and trains no module of a single layer whole."""
    if any(re.search(r"\d", name) for arm in arms for name in arm.method.modules_to_save):
        return False
    counts = (Counter(without_layer_number(name) for name in arm.module_names) for arm in arms)
    return all(count == num_layers for own in counts for name, count in own.items() if "*" in name)


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch
    """Counts the bytes of every storage that an operation makes, until its last tensor is gone."""

    def __init__(self, *, known: Iterable[Tensor] = ()) -> None:
        """The storages of `known` exist already and are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch
        self.live_bytes = 0
        self.num_live = 0
        self.peaks: _Peaks | None = None
        """Collects the peaks; None if no peaks are collected."""
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype is torch.bool else 1.0
        if func is torch.ops.aten._to_copy.default and _is_read(args[0], kwargs):
            return torch.ones(args[0].shape, dtype=args[0].dtype)
        if func is torch.ops.aten.baddbmm.dtype_out:  # has no meta kernel, and makes no tensor
            return kwargs["out"]
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype is not torch.bfloat16:
            out = _grouped_mm(*args, **(kwargs or {}))
        else:
            out = _META_OPS.run(func, args, options=kwargs or {})
        num_new = 0
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            num_new += isinstance(leaf, Tensor) and self._enter(leaf)
        if num_new and self.peaks is not None:
            self.peaks.note(self.live_bytes + _bytes_inside(func, args), num_tensors=self.num_live)
        return out

    def enter_all(self, values: Iterable[object]) -> None:
        """Count tensors that no operation makes: `torch.tensor` fills those of the meta device itself."""
        for value in values:
            if isinstance(value, Tensor):
                self._enter(value)

    def _enter(self, tensor: Tensor) -> bool:
        """Whether the tensor's storage is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        num_bytes = storage.nbytes()
        self._known.add(key)
        self.live_bytes += num_bytes
        self.num_live += 1
        weakref.finalize(storage, self._leave, key, num_bytes)
        return True

    def _leave(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live_bytes -= num_bytes
        self.num_live -= 1


@dataclass(kw_only=True)
class _Peaks:
    """The most bytes alive in each phase of a step. `loss_bytes` is the most within the loss."""

    phase: Phase = "forward"
    num_bytes: dict[Phase, int] = field(default_factory=dict)
    num_tensors: dict[Phase, int] = field(default_factory=dict)
    loss_bytes: int = 0
    is_in_loss: bool = False

    def note(self, num_bytes: int, *, num_tensors: int) -> None:
        """Record the bytes and tensors alive after an operation."""
        if self.is_in_loss:
            self.loss_bytes = max(self.loss_bytes, num_bytes)
        elif num_bytes >= self.num_bytes.get(self.phase, 0):
            self.num_bytes[self.phase], self.num_tensors[self.phase] = num_bytes, num_tensors

    def loss_begins(self, ledger: Ledger) -> None:
        """Record the memory that the forward pass keeps. A later micro-batch overwrites an earlier one."""
        self.num_bytes["loss"], self.num_tensors["loss"] = ledger.live_bytes, ledger.num_live
        self.loss_bytes = max(self.loss_bytes, ledger.live_bytes)

    def step(self, *, resident_bytes: int, num_resident: int, num_parameters: int) -> CountedStep:
        """The counted step, without earlier memory. A phase that makes no tensor has the bytes of the phase before."""
        return CountedStep(
            resident_bytes=resident_bytes,
            num_parameters=num_parameters,
            peak_bytes={
                phase: self.num_bytes.get(phase, resident_bytes) - resident_bytes for phase in _PHASES
            },
            num_tensors={
                phase: self.num_tensors.get(phase, num_resident) - num_resident for phase in _PHASES
            },
            loss_growth_bytes=self.loss_bytes - self.num_bytes["loss"],
        )


def _is_read(tensor: Tensor, options: Any) -> bool:
    """Whether a tensor without content is copied to where its numbers can be read."""
    device = options.get("device")
    return device is not None and device.type == "cpu" and tensor.device == META


def _grouped_mm(x: Tensor, weight: Tensor, *ends: Tensor | None, **_: Any) -> Tensor:
    """An empty result of torch's product of rows with their expert's matrix. torch's own meta kernel is for bf16 only.

    (rows, D) x (experts, D, O) -> (rows, O); in the backward pass (D, rows) x (rows, O) -> (experts, D, O).
    """
    if x.dim() == weight.dim() == 2:
        assert ends[0] is not None
        return x.new_empty(ends[0].shape[0], x.shape[0], weight.shape[1])
    return x.new_empty(*x.shape[:-1], weight.shape[-1])


def _bytes_inside(func: Any, args: Any) -> int:
    """What bitsandbytes holds while it multiplies: the dequantised 4-bit weight, or fp32 copies of both 8-bit factors."""
    if str(func) == "bitsandbytes.gemm_4bit.default":
        x, _, shape = args[:3]
        num_bytes: int = math.prod(shape) * x.element_size()
        return num_bytes
    if str(func) == "bitsandbytes.int8_scaled_mm.default" and _copies_8bit_to_fp32():
        x, weight = args[:2]
        return 4 * int(x.numel() + weight.numel())
    return 0


def _copies_8bit_to_fp32() -> bool:
    """Whether 8-bit products are fp32 ones on this device: bitsandbytes has its own on GPUs and for AVX-512."""
    return torch.backends.cpu.get_cpu_capability() != "AVX512"


def count_step(
    base: BaseModel,
    arms: Sequence[TrainingArm],
    *,
    engine: EngineName,
    batches: Sequence[MicroBatch],
    gradient_checkpointing: bool,
    device_kind: DeviceKind,
) -> CountedStep:
    """Count one optimizer step of these arms on a base of fake tensors.

    `batches` is one micro-batch for all arms, or one for each arm if arms have rows of their own.
    """
    with _as_on(device_kind):
        if engine == "reference":
            return _count_reference(
                base, arms, batch=batches[0], gradient_checkpointing=gradient_checkpointing
            )
        return _count_packed(base, arms, batches=batches, gradient_checkpointing=gradient_checkpointing)


def _rows_of_arms(
    base: BaseModel, arms: Sequence[TrainingArm], *, batches: Sequence[MicroBatch]
) -> Batch | ArmBatches:
    """The micro-batch of all arms."""
    num_ids = _num_ids(base)
    if len(batches) == 1:
        return assemble(rows_of(batches[0], num_ids=num_ids), device=base.device)
    host = torch.device("cpu")
    made = {own: assemble(rows_of(own, num_ids=num_ids), device=host) for own in set(batches)}
    return ArmBatches(by_arm={arm.experiment_id: made[own] for arm, own in zip(arms, batches, strict=True)})


def _count_packed(
    base: BaseModel,
    arms: Sequence[TrainingArm],
    *,
    batches: Sequence[MicroBatch],
    gradient_checkpointing: bool,
) -> CountedStep:
    known = [tensor for module in base.model.modules() for tensor in tensors_of(module)]
    with ExitStack() as stack:
        ledger = Ledger(known=known)
        stack.enter_context(_replaced(packed, "check_supported", by=_assume_supported))
        stack.enter_context(_replaced(patches, "equal_but_for_rounding", by=_assume_same))
        stack.enter_context(_replaced(adapter_buffers, "initial_lora_A", by=_undrawn_lora_A))
        stack.enter_context(_replaced(loss, "_rows", by=_first_chunks(loss._rows)))
        stack.enter_context(ledger)
        engine = PackedEngine(base, arms, gradient_checkpointing=gradient_checkpointing)
        stack.callback(engine.close)
        resident, num_resident, peaks = ledger.live_bytes, ledger.num_live, _Peaks()
        stack.enter_context(_replaced(packed, "completion_loss", by=_noted_loss(peaks, ledger=ledger)))
        stack.enter_context(_marked_backward(peaks))
        ledger.peaks = peaks
        batch = _rows_of_arms(base, arms, batches=batches)
        ledger.enter_all(vars(batch).values())
        engine.train([[batch]], on_step=lambda _: None)
        ledger.peaks = None
    return peaks.step(
        resident_bytes=resident,
        num_resident=num_resident,
        num_parameters=sum(arm.weights_P.numel() for arm in engine._adapters.vectors),
    )


def _count_reference(
    base: BaseModel, arms: Sequence[TrainingArm], *, batch: MicroBatch, gradient_checkpointing: bool
) -> CountedStep:
    """The second step of PEFT in a plain loop: the optimizer makes its moments in the first one.

    One arm trains at a time. The loss begins where the labels' logits are there, and counts as part of the backward
    pass.
    """
    from lorastudy.engine import full_fine_tuning, initial_weights, optimizers, reference
    from lorastudy.engine.peft_model import DORA_LAYERS

    (arm,) = arms
    known = [tensor for module in base.model.modules() for tensor in tensors_of(module)]
    with ExitStack() as stack:
        ledger = Ledger(known=known)
        stack.enter_context(ledger)
        # Its test for gradients that are not finite reads a number.
        stack.enter_context(_replaced(torch.amp.GradScaler, "_maybe_opt_step", by=_always_step))
        stack.enter_context(optimizers.paged_elsewhere(arm))
        stack.enter_context(_replaced(DORA_LAYERS, "dequantize_module_weight", by=_undrawn_weight))
        stack.enter_context(_replaced(initial_weights, "_weights_in_files", by=_no_weights))
        stack.enter_context(_replaced(torch, "rand", by=_drawn(torch.rand)))
        # PEFT moves adapters to the base's device and precision, then back to fp32. Under META they start there.
        with META, _replaced(nn.Module, "to", by=lambda module, *_, **__: module):
            kind = full_fine_tuning.FullFineTuning if arm.method.is_full else reference.ReferenceEngine
            engine = kind(base, [replace(arm, num_steps=2)], gradient_checkpointing=gradient_checkpointing)
        stack.callback(engine.close)
        peaks = _Peaks()
        stack.enter_context(_replaced(reference, "label_logits", by=_noted_logits(peaks, ledger=ledger)))
        stack.enter_context(_marked_backward(peaks))
        tensors = assemble(rows_of(batch, num_ids=_num_ids(base)), device=base.device)
        ledger.enter_all(vars(tensors).values())
        resident = num_resident = 0

        def after_step(_: object) -> None:
            nonlocal resident, num_resident
            if ledger.peaks is None:
                gc.collect()  # a recurrent model's cache is a cycle of references; the first step's must not count
                resident, num_resident = ledger.live_bytes, ledger.num_live
                peaks.phase, peaks.loss_bytes = "forward", 0
                ledger.peaks = peaks

        engine.train([[tensors]] * 2, on_step=after_step)
        ledger.peaks = None
        num_parameters = sum(p.numel() for trainer in engine.trainers for p in trainer.parameters)
    return peaks.step(resident_bytes=resident, num_resident=num_resident, num_parameters=num_parameters)


@contextmanager
def _as_on(device_kind: DeviceKind) -> Iterator[None]:
    """In this context the engine takes the code path of that kind of device, and torch's attention is the fused one.

    On both kinds the fused attention keeps its output and one fp32 number per query, and nothing of size queries x
    keys.
    """
    chunks = loss.CHUNK_ELEMENTS | {META.type: loss.CHUNK_ELEMENTS[device_kind]}
    with ExitStack() as stack:
        stack.enter_context(_replaced(loss, "CHUNK_ELEMENTS", by=chunks))
        stack.enter_context(_replaced(functional, "scaled_dot_product_attention", by=_fused_attention))
        stack.enter_context(_replaced(attention, "serves", by=partial(serves_on, device_kind=device_kind)))
        stack.enter_context(
            _replaced(attention, "takes_all_rows", by=partial(takes_all_rows_on, device_kind=device_kind))
        )
        stack.enter_context(
            _replaced(packed, "find_fused_ops", by=partial(_find_fused_ops, kind=device_kind))
        )
        stack.enter_context(_replaced(SlotDropout, "mask_like", by=_undrawn_mask))
        # A GPU's weights are kept in the machine's memory, which is not counted.
        stack.enter_context(_replaced(loading, "kept_weights", by=_copies if device_kind == "cpu" else list))
        if device_kind != "cpu":
            stack.enter_context(_replaced(sys.modules[__name__], "_copies_8bit_to_fp32", by=lambda: False))
        for owner, name in ((adapter_buffers, "pads_ranks"), (matmul, "keeps_fp32_sums")):
            stack.enter_context(_replaced(owner, name, by=lambda _: device_kind == "cuda"))
        for module in (matmul, patches):
            stack.enter_context(_replaced(module, "is_replaced", by=partial(_is_replaced, kind=device_kind)))
        yield


def _find_fused_ops(model: nn.Module, *, device: torch.device, kind: DeviceKind) -> FusedOps:
    return find_fused_ops(model, device=torch.device(kind) if device == META else device)


def _is_replaced(*, device: torch.device, dtype: torch.dtype, kind: DeviceKind) -> bool:
    return is_replaced(device=torch.device(kind) if device == META else device, dtype=dtype)


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor:
    """The result of torch's fused attention kernel, if it supports these shapes."""
    if options.pop("enable_gqa", False):
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, dim=-3) for x in (key, value))
    if query.dim() != 4 or query.shape[-1] != value.shape[-1] or options.get("dropout_p"):
        return scaled_dot_product_attention(query, key, value, attn_mask, **options)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query,
        key,
        value,
        0.0,
        options.get("is_causal", False),
        attn_mask=attn_mask,
        scale=options.get("scale"),
    )
    attended: Tensor = out
    return attended


def _noted_loss(peaks: _Peaks, *, ledger: Ledger) -> Any:
    """`completion_loss`, recorded as one moment plus its growth in memory, for any number of chunks."""

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        peaks.loss_begins(ledger)
        peaks.is_in_loss = True
        try:
            return completion_loss(*args, **kwargs)
        finally:
            peaks.is_in_loss, peaks.phase = False, "backward"

    return noted


def _noted_logits(peaks: _Peaks, *, ledger: Ledger) -> Any:
    """`label_logits`, whose end is recorded as the beginning of loss and backward pass."""

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        logits_MV = label_logits(*args, **kwargs)
        peaks.loss_begins(ledger)
        peaks.phase = "backward"
        return logits_MV

    return noted


@contextmanager
def _marked_backward(peaks: _Peaks) -> Iterator[None]:
    """In this context, operations after a backward pass count as the optimizer's."""
    backward: Any = Tensor.backward

    def marked(*args: Any, **kwargs: Any) -> None:
        backward(*args, **kwargs)
        peaks.phase = "optimizer"

    with _replaced(Tensor, "backward", by=marked):
        yield


def _first_chunks(rows: Any) -> Any:
    """The loss's rows with only their first chunks."""

    def first(*args: Any, **kwargs: Any) -> Any:
        hidden, targets, chunks = rows(*args, **kwargs)
        return hidden, targets, chunks[:_NUM_CHUNKS]

    return first


@contextmanager
def _replaced(owner: Any, name: str, *, by: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _assume_supported(*_: Any, **__: Any) -> None:
    """Skip the comparison, since fake tensors have no numbers. The self-check before training makes it."""


def _assume_same(*_: Any) -> bool:
    """True: the trace assumes that the last MLP gives equal states on fewer tokens, since it cannot compare numbers."""
    return True


def _undrawn_weight(layer: nn.Module) -> Tensor:
    """The weight that DoRA's layer dequantises: bf16 from 4-bit. DoRA on 8-bit weights is refused."""
    weight = layer.get_parameter("weight")
    if weight.dtype.is_floating_point:
        return weight
    inputs, outputs = features(layer)
    return torch.empty(outputs, inputs, dtype=torch.bfloat16, device=META)


def _no_weights(*_: object) -> dict[str, Tensor]:
    """No files of weights are read to count memory. LoftQ's initial weights have the size of plain ones."""
    return {}


def _drawn(rand: Any) -> Any:
    """`rand`, but a single number is 1: some of PEFT's layers draw one to decide whether their adapter acts."""
    return lambda *sizes, **options: 1.0 if sizes == (1,) else rand(*sizes, **options)


def _undrawn_mask(_: SlotDropout, x_GND: Tensor, **__: object) -> Tensor:
    return torch.empty(x_GND.shape, dtype=x_GND.dtype, device=x_GND.device)


def _always_step(_: object, optimizer: torch.optim.Optimizer, *__: object) -> None:
    optimizer.step()


def _copies(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]


def _undrawn_lora_A(arm: TrainingArm, *, in_features: int, **_: object) -> Tensor:
    return torch.empty(arm.r, in_features, device=META)


def rows_of(batch: MicroBatch, *, num_ids: int) -> list[TokenRow]:
    """Rows of these lengths with `num_labels` labels in total. A row's first token has no label."""
    rows, open_labels = [], batch.num_labels
    open_places = batch.num_tokens - len(batch.row_lengths)
    assert open_labels <= open_places, "more labels than tokens that have one before them"
    for length in batch.row_lengths:
        num_labels = -(-open_labels * (length - 1) // max(1, open_places))
        open_labels, open_places = open_labels - num_labels, open_places - (length - 1)
        ids = tuple(place % num_ids for place in range(length))
        labels = (*(IGNORED for _ in range(length - num_labels)), *ids[length - num_labels :])
        rows.append(TokenRow(input_ids=ids, labels=labels, prompt_ids=(), prompt_text="", reference=""))
    return rows


def _num_ids(base: BaseModel) -> int:
    config: Any = base.model.config
    return int(config.get_text_config().vocab_size)
