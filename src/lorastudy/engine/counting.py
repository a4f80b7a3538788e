"""One training step of the packed engine on fake tensors: how many bytes of tensors live at each moment.

The engine's own code runs, so whatever it saves, frees or fuses is what is counted. Only four things stand
between: the probe that compares logits is left out, a last MLP that runs on labelled tokens alone is taken to say the
same of them, a number read from a tensor is 1, and the loss and the backward pass say when they begin and end. What
kernels allocate inside themselves is not seen here, but for the one where that is a whole weight: bitsandbytes' product
with a 4-bit weight.
"""

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorastudy.data.tokenise import IGNORED, TokenRow
from lorastudy.engine import last_layer, packed
from lorastudy.engine.arms import Arm
from lorastudy.engine.batch import assemble
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.loss import completion_loss
from lorastudy.engine.packed import PackedEngine
from lorastudy.engine.quantised import tensors_of
from lorastudy.footprint import MicroBatch, Phase


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
            return 1.0
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


def _bytes_inside(func: Any, args: Any) -> int:
    """The dequantised weight that bitsandbytes holds while it multiplies with a 4-bit one."""
    if str(func) != "bitsandbytes.gemm_4bit.default":
        return 0
    x, _, shape = args[:3]
    num_bytes: int = math.prod(shape) * x.element_size()
    return num_bytes


def count_step(
    base: BaseModel, arms: Sequence[Arm], *, batch: MicroBatch, gradient_checkpointing: bool
) -> CountedStep:
    """Count one optimizer step of these arms on a base of fake tensors."""
    known = [tensor for module in base.model.modules() for tensor in tensors_of(module)]
    with ExitStack() as stack:
        ledger = Ledger(known=known)
        stack.enter_context(_replaced(packed, "check_supported", by=_assume_supported))
        stack.enter_context(_replaced(last_layer, "are_the_same", by=_assume_same))
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
        events=tuple(
            Event(
                phase=event.phase,
                operation=event.operation,
                num_bytes=event.num_bytes - resident,
                num_tensors=event.num_tensors - num_resident,
            )
            for event in log.events
        ),
        loss_peak_bytes=loss_peak[0] - resident,
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
        log.events.append(
            Event(
                phase="loss",
                operation="loss begins",
                num_bytes=ledger.live_bytes,
                num_tensors=ledger.num_live,
            )
        )
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
