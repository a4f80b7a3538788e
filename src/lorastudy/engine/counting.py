"""One training step of an engine on fake tensors: how many bytes of tensors live at each moment.

The engine's own code runs, so whatever it saves, frees or fuses is what is counted. Only five things stand
between: the probe that compares logits is left out, a last MLP that runs on labelled tokens alone is taken to say the
same of them, a number read from a tensor is 1 and a truth false, the loss and the backward pass say when they begin and
end, and experts in fp32 are multiplied, which torch does on real tensors alone. What
kernels allocate inside themselves is not seen here, but for the one where that is a whole weight: bitsandbytes' product
with a 4-bit weight.
"""

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorastudy.data.tokenise import IGNORED, TokenRow
from lorastudy.engine import packed, patches
from lorastudy.engine.arms import Arm
from lorastudy.engine.batch import assemble
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.loss import completion_loss
from lorastudy.engine.packed import PackedEngine
from lorastudy.engine.padded_forward import label_logits
from lorastudy.engine.quantised import tensors_of
from lorastudy.protocol.footprint import MicroBatch, Phase
from lorastudy.protocol.jobs import EngineName


@dataclass(frozen=True, kw_only=True)
class Event:
    """After an operation that made a tensor. `operation` tells whether two steps do the same."""

    phase: Phase
    operation: str
    num_bytes: int
    num_tensors: int


@dataclass(frozen=True, kw_only=True)
class CountedStep:
    """A step's events, in order, beyond what was there when the engine stood ready.

    The loss is one event: its beginning. `resident_bytes` are adapters, gradients and optimizer state;
    `loss_peak_bytes` the most that was there in the loss.
    """

    resident_bytes: int
    num_parameters: int
    events: tuple[Event, ...]
    loss_peak_bytes: int


@dataclass(kw_only=True)
class _Log:
    phase: Phase = "forward"
    events: list[Event] = field(default_factory=list)


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch
    """Counts the bytes of every storage that an operation makes, until its last tensor is gone."""

    def __init__(self, *, known: Iterable[Tensor] = ()) -> None:
        """Storages of `known` count nothing: they were there before."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch
        self.live_bytes = 0
        self.num_live = 0
        self.peak_bytes = 0
        self.log: _Log | None = None
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype is torch.bool else 1.0
        if func is torch.ops.aten._grouped_mm.default and args[0].dtype is not torch.bfloat16:
            func = _grouped_mm
        out = func(*args, **(kwargs or {}))
        num_new = sum(self._enter(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        num_bytes = self.live_bytes + _bytes_inside(func, args)
        self.peak_bytes = max(self.peak_bytes, num_bytes)
        if self.log is not None and num_new:
            self.log.events.append(
                Event(
                    phase=self.log.phase,
                    operation=str(func),
                    num_bytes=num_bytes,
                    num_tensors=self.num_live,
                )
            )
        return out

    def _enter(self, tensor: Tensor) -> bool:
        """Whether the tensor's storage is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return False
        self._known.add(key)
        self.live_bytes += storage.nbytes()
        self.num_live += 1
        weakref.finalize(storage, self._leave, key, storage.nbytes())
        return True

    def _leave(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live_bytes -= num_bytes
        self.num_live -= 1


def _grouped_mm(x: Tensor, weight: Tensor, *ends: Tensor | None, **_: Any) -> Tensor:
    """What torch's product of rows with the matrix of their expert makes: its rule for fake tensors knows bf16 alone.

    (rows, D) x (experts, D, O) -> (rows, O); in the backward pass (D, rows) x (rows, O) -> (experts, D, O).
    """
    if x.dim() == weight.dim() == 2:
        assert ends[0] is not None
        return x.new_empty(ends[0].shape[0], x.shape[0], weight.shape[1])
    return x.new_empty(*x.shape[:-1], weight.shape[-1])


def _bytes_inside(func: Any, args: Any) -> int:
    """The dequantised weight that bitsandbytes holds while it multiplies with a 4-bit one."""
    if str(func) != "bitsandbytes.gemm_4bit.default":
        return 0
    x, _, shape = args[:3]
    num_bytes: int = math.prod(shape) * x.element_size()
    return num_bytes


def count_step(
    base: BaseModel,
    arms: Sequence[Arm],
    *,
    engine: EngineName,
    batch: MicroBatch,
    gradient_checkpointing: bool,
) -> CountedStep:
    """Count one optimizer step of these arms on a base of fake tensors."""
    count = _count_reference if engine == "reference" else _count_packed
    return count(base, arms, batch=batch, gradient_checkpointing=gradient_checkpointing)


def _count_packed(
    base: BaseModel, arms: Sequence[Arm], *, batch: MicroBatch, gradient_checkpointing: bool
) -> CountedStep:
    known = [tensor for module in base.model.modules() for tensor in tensors_of(module)]
    with ExitStack() as stack:
        ledger = Ledger(known=known)
        stack.enter_context(_replaced(packed, "check_supported", by=_assume_supported))
        stack.enter_context(_replaced(patches, "equal_but_for_rounding", by=_assume_same))
        stack.enter_context(ledger)
        engine = PackedEngine(base, arms, gradient_checkpointing=gradient_checkpointing)
        stack.callback(engine.close)
        resident, num_resident = ledger.live_bytes, ledger.num_live
        log, loss_peak = _Log(), [0]
        stack.enter_context(_marked_loss(ledger, log, peak=loss_peak))
        stack.enter_context(_marked_backward(log))
        ledger.log = log
        tensors = assemble(rows_of(batch, num_ids=_num_ids(base)), device=base.device)
        engine.train([[tensors]], on_step=lambda _: None)
        ledger.log = None
    return CountedStep(
        resident_bytes=resident,
        num_parameters=sum(group.weights_GP.numel() for group in engine._bank.groups),
        events=_beyond(log.events, resident_bytes=resident, num_resident=num_resident),
        loss_peak_bytes=loss_peak[0] - resident,
    )


def _count_reference(
    base: BaseModel, arms: Sequence[Arm], *, batch: MicroBatch, gradient_checkpointing: bool
) -> CountedStep:
    """The second step of PEFT in a plain loop: the optimizer makes its moments in the first one.

    One arm trains at a time. The loss begins where the labels' logits are there; what it takes is counted as all else is.
    """
    from lorastudy.engine import reference

    (arm,) = arms
    known = [tensor for module in base.model.modules() for tensor in tensors_of(module)]
    with ExitStack() as stack:
        ledger = Ledger(known=known)
        stack.enter_context(ledger)
        # PEFT moves adapters to where the base is, in its precision, and then back to fp32. They are there already, and
        # fake tensors cannot be moved in place.
        with _replaced(nn.Module, "to", by=lambda module, *_, **__: module):
            engine = reference.ReferenceEngine(
                base, [replace(arm, num_steps=2)], gradient_checkpointing=gradient_checkpointing
            )
        stack.callback(engine.close)
        log = _Log()
        stack.enter_context(_replaced(reference, "label_logits", by=_marking_loss(log, ledger=ledger)))
        stack.enter_context(_marked_backward(log))
        tensors = assemble(rows_of(batch, num_ids=_num_ids(base)), device=base.device)
        resident = num_resident = 0

        def after_step(_: object) -> None:
            nonlocal resident, num_resident
            if ledger.log is None:
                resident, num_resident = ledger.live_bytes, ledger.num_live
                log.events.clear()
                ledger.log, log.phase = log, "forward"

        engine.train([[tensors]] * 2, on_step=after_step)
        ledger.log = None
        num_parameters = sum(p.numel() for course in engine.trainers for p in course.parameters)
    return CountedStep(
        resident_bytes=resident,
        num_parameters=num_parameters,
        events=_beyond(log.events, resident_bytes=resident, num_resident=num_resident),
        loss_peak_bytes=0,
    )


def _beyond(events: Sequence[Event], *, resident_bytes: int, num_resident: int) -> tuple[Event, ...]:
    """The events, by what they hold more than was there before."""
    return tuple(
        replace(
            event,
            num_bytes=event.num_bytes - resident_bytes,
            num_tensors=event.num_tensors - num_resident,
        )
        for event in events
    )


def _marking_loss(log: _Log, *, ledger: Ledger) -> Any:
    """`label_logits`, after which the loss begins, and with it what the backward pass does."""

    def marked(*args: Any, **kwargs: Any) -> Tensor:
        logits_MV = label_logits(*args, **kwargs)
        log.events.append(_loss_begins(ledger))
        log.phase = "backward"
        return logits_MV

    return marked


def _loss_begins(ledger: Ledger) -> Event:
    return Event(
        phase="loss", operation="loss begins", num_bytes=ledger.live_bytes, num_tensors=ledger.num_live
    )


def count_loss(base: BaseModel, *, num_rows: int) -> int:
    """The most that the loss over this many labelled states takes beyond what was there before."""
    head: Any = base.model.get_output_embeddings()
    weight = head.weight
    hidden_KMD = torch.empty(1, num_rows, weight.shape[1], dtype=base.dtype, device=base.device)
    hidden_KMD.requires_grad_()
    targets_M = torch.zeros(num_rows, dtype=torch.long, device=base.device)
    scale_K = torch.ones(1, device=base.device)
    with Ledger(known=[hidden_KMD, targets_M, scale_K, *head.parameters()]) as ledger:
        completion_loss(hidden_KMD, head, targets_M=targets_M, grad_scale_K=scale_K)
    return int(ledger.peak_bytes)


@contextmanager
def _marked_loss(ledger: Ledger, log: _Log, *, peak: list[int]) -> Iterator[None]:
    """Within, the loss is one event, however many chunks it takes."""

    def marked(*args: Any, **kwargs: Any) -> Tensor:
        log.events.append(_loss_begins(ledger))
        ledger.log, ledger.peak_bytes = None, ledger.live_bytes
        try:
            return completion_loss(*args, **kwargs)
        finally:
            peak[0] = max(peak[0], ledger.peak_bytes)
            ledger.log, log.phase = log, "backward"

    with _replaced(packed, "completion_loss", by=marked):
        yield


@contextmanager
def _marked_backward(log: _Log) -> Iterator[None]:
    """Within, what follows a backward pass is the optimizer's."""
    backward: Any = Tensor.backward

    def marked(*args: Any, **kwargs: Any) -> None:
        backward(*args, **kwargs)
        log.phase = "optimizer"

    with _replaced(Tensor, "backward", by=marked):
        yield


@contextmanager
def _replaced(owner: Any, name: str, *, by: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _assume_supported(*_: Any, **__: Any) -> None:
    """Whether the packed forward is right is asked before training; fake tensors have no numbers to compare."""


def _assume_same(*_: Any) -> bool:
    """That the last MLP may be spared: whether it runs on fewer tokens is seen here, what it then says is not."""
    return True


def rows_of(batch: MicroBatch, *, num_ids: int) -> list[TokenRow]:
    """Rows of these lengths that have so many labels together; a row's first token has none."""
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


def counted_arm(number: int, module_names: tuple[str, ...], *, r: int, dropout: bool) -> Arm:
    """An arm of which nothing matters but its size and its place."""
    return Arm(
        experiment_id=str(number), seed=number, r=r, lora_alpha=float(r), use_rslora=False, scaling=1.0,
        lora_dropout=0.1 if dropout else 0.0, module_names=module_names, learning_rate=1e-4,
        lr_scheduler_type="constant", num_warmup_steps=0, num_steps=1, weight_decay=0.0, max_grad_norm=1.0,
        adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8,
    )  # fmt: skip
