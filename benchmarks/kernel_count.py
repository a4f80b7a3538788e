"""Kernels that one training step of the packed engine launches on a GPU, counted without one.

    python -m benchmarks.kernel_count --top 20       print the counts of every setting by operation and phase
    python -m benchmarks.kernel_count --write        write them to benchmarks/results/kernels.json

A step is forward pass, loss, backward pass, clipping and optimizer, of a model of Phi-2's shape in the settings of the
GPU benchmark (`benchmarks/gpu.py`). The memory trace (`engine/memory_trace.py`) runs the engine's own code on tensors of
the meta device, on the code path of CUDA. `KernelLedger` sees every operation of that step. How it counts:

- An operation launches one kernel. Views, allocations and operations on the CPU launch none.
- Operations in `SEVERAL` launch the number of kernels that CUDA's implementation has.
- A foreach operation and the fused optimizer launch as many kernels as `multi_tensor_apply` cuts their tensors into.
  Between tensors that lie differently in memory, a foreach operation launches a kernel for each tensor.
- Copies between host and device are counted apart. A copy blocks unless it is `non_blocking`; the host then waits for
  the device. Reading a number from a tensor also waits.

The count is of the operations that the engine asks for. It is not measured: cuBLAS may use two kernels for one
product, and a sort uses many. With deterministic
algorithms an `index_put_` or `index_copy` sorts its indices, some ten kernels more; a step has one for each chunk of
the loss, and two others. Dropout is off, since the trace does not draw masks.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.gpu import ROWS
from benchmarks.gpu_rows import RANKS
from benchmarks.job import GpuRequest
from benchmarks.random_base import SHAPES, config_of, rows_like_alpaca
from lorastudy.engine import memory_trace
from lorastudy.engine.fake_model import META, FakeModels, counted_arms
from lorastudy.engine.memory_trace import Ledger, count_layers
from lorastudy.engine.targets import target_layers
from lorastudy.protocol.jobs import CountedArm, FootprintQuestion, MicroBatch, Precision

RESULTS = Path(__file__).parent / "results" / "kernels.json"
SHAPE, NUM_LAYERS, LONGEST = "phi-2", 32, 512
PHASES = ("forward", "loss", "backward", "optimizer")

#: Operations that only make or describe a tensor, besides those whose result is a view by their schema.
_LAUNCH_NOTHING = frozenset({
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_local_scalar_dense",
    "lift_fresh",
})  # fmt: skip

#: Operations of more than one kernel: a copy or a fill before the operation itself, or flash attention's four of its
#: backward pass (the sums of dO O, zeros for dQ, the gradients, and the conversion of dQ).
SEVERAL = {
    "baddbmm": 2, "index_copy": 2, "index_put": 2, "masked_fill": 2, "scatter": 2, "scatter_add": 2,
    "select_backward": 2, "slice_backward": 2,
    "_flash_attention_backward": 4, "_scaled_dot_product_flash_attention_for_cpu_backward": 4,
}  # fmt: skip

#: Operations whose result has a size that the host must wait for.
_SIZED_BY_CONTENT = frozenset({"nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive"})

#: `multi_tensor_apply` of CUDA: the most tensors of a launch by the number of lists, the most blocks of a launch, and
#: the elements of a block.
_FOREACH_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
_FOREACH_BLOCKS, _FOREACH_CHUNK = 320, 65536


@dataclass(kw_only=True)
class Kernels:
    """What a step launches, copies and waits for: each by (phase, operation)."""

    launches: Counter[tuple[str, str]] = field(default_factory=Counter)
    to_device: Counter[tuple[str, str]] = field(default_factory=Counter)
    to_host: Counter[tuple[str, str]] = field(default_factory=Counter)
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Moments at which the host waits for the device."""

    def as_json(self) -> dict[str, Any]:
        """Every count by phase; launches also by operation, the most frequent first."""
        return {
            "launches": _by_phase(self.launches),
            "to_device": _by_phase(self.to_device),
            "to_host": _by_phase(self.to_host),
            "waits": _by_phase(self.waits),
            "operations": {
                phase: {name: count for (of, name), count in self.launches.most_common() if of == phase}
                for phase in PHASES
            },
        }


def _by_phase(counts: Counter[tuple[str, str]]) -> dict[str, int]:
    return {phase: sum(count for (of, _), count in counts.items() if of == phase) for phase in PHASES}


class KernelLedger(Ledger):  # type: ignore[no-untyped-call]  # torch
    """A ledger of the memory trace that also counts the kernels of the step, once the engine is made."""

    def __init__(self, *, known: Iterable[Tensor] = (), into: Kernels) -> None:
        super().__init__(known=known)
        self.kernels = into

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self.phase is not None:
            self._count(func, args, kwargs or {}, out)
        return out

    @property
    def phase(self) -> str | None:
        """The phase of the step; None while the engine is made."""
        if self.peaks is None:
            return None
        return "loss" if self.peaks.is_in_loss else self.peaks.phase

    def copied_to_device(self) -> None:
        """Count a tensor that was made of numbers of the host: torch fills it there and copies it, and waits."""
        if self.phase is not None:
            self.kernels.to_device[self.phase, "torch.tensor"] += 1
            self.kernels.waits[self.phase, "torch.tensor"] += 1

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        assert self.phase is not None
        name = func._schema.name.split("::")[-1]
        key = (self.phase, operation_name(func, args, out))
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        if name == "_local_scalar_dense" or name in _SIZED_BY_CONTENT:
            self.kernels.waits[key] += any(x.device == META for x in inputs)
        way = _way_of_copy(name, inputs, outputs)
        if way is not None:
            getattr(self.kernels, way)[key] += 1
            is_async = kwargs.get("non_blocking", False) or (name == "copy_" and args[2:3] == (True,))
            self.kernels.waits[key] += not is_async
        elif any(x.device == META for x in (*inputs, *outputs)):
            self.kernels.launches[key] += num_launches(func, args, outputs)


def operation_name(func: Any, args: Any, out: Any) -> str:
    """The operation as a reader looks for it. A conversion says from which precision to which."""
    if func is torch.ops.aten._to_copy.default:
        names = [str(x.dtype).removeprefix("torch.") for x in (args[0], out)]
        return f"convert {' to '.join(names)}"
    return str(func).removeprefix("aten.").removesuffix(".default").replace("_for_cpu", "")


def num_launches(func: Any, args: Any, outputs: Sequence[Tensor]) -> int:
    """The kernels that CUDA launches for an operation; 0 for a view, an allocation or an empty result."""
    name = func._schema.name.split("::")[-1]
    returned = func._schema.returns
    is_view = bool(returned) and all(r.alias_info is not None and not r.alias_info.is_write for r in returned)
    if is_view or name in _LAUNCH_NOTHING or (outputs and all(x.numel() == 0 for x in outputs)):
        return 0
    if name.startswith(("_foreach", "_fused")):
        return _launches_of_lists(name, args)
    if "out" in func._overloadname:  # writes into the tensor that it adds to: nothing is copied first
        return 1
    return SEVERAL.get(name, 1)


def _launches_of_lists(name: str, args: Any) -> int:
    """The launches of a foreach operation, or of the fused optimizer."""
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
    is_fused, is_in_place = name.startswith("_fused"), name.endswith("_")
    if not is_fused and any(len({x.stride() for x in together}) > 1 for together in zip(*lists, strict=True)):
        return len(lists[0])
    num_lists = (
        len(lists) - 1 if is_fused else len(lists) + (not is_in_place)
    )  # the numbers of steps are no list
    num_launches = foreach_launches([x.numel() for x in lists[0]], num_lists=num_lists)
    return num_launches + 2 * (name == "_foreach_norm")  # zeros for the blocks' sums, and the sum of these


def foreach_launches(sizes: Sequence[int], *, num_lists: int) -> int:
    """The launches into which CUDA cuts a foreach operation: by tensors and by blocks of a launch, in this order."""
    most_tensors = _FOREACH_TENSORS[min(num_lists, max(_FOREACH_TENSORS))]
    launches = tensors = blocks = 0
    for number, size in enumerate(sizes):
        tensors += 1
        num_chunks = -(-size // _FOREACH_CHUNK)
        for chunk in range(num_chunks):
            blocks += 1
            is_last_chunk = chunk == num_chunks - 1
            is_full = (tensors == most_tensors and is_last_chunk) or blocks == _FOREACH_BLOCKS
            if is_full or (is_last_chunk and number == len(sizes) - 1):
                launches, blocks = launches + 1, 0
                tensors = 0 if is_last_chunk else 1
    return launches


def _way_of_copy(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str | None:
    """`to_device` or `to_host` for a copy between the two; else None."""
    if name == "_to_copy":
        source, target = inputs[0], outputs[0]
    elif name == "copy_":
        target, source = inputs[:2]
    else:
        return None
    if source.device == target.device:
        return None
    return "to_device" if target.device == META else "to_host"


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


# --- the settings ---------------------------------------------------------------------------------------


def question_of(request: GpuRequest, *, folder: Path = SHAPES / SHAPE) -> FootprintQuestion:
    """The setting of a row of the GPU benchmark, with its first micro-batch."""
    rows = rows_like_alpaca(
        request.batch_size, vocabulary=config_of(str(folder)).vocab_size, longest=LONGEST, seed=0
    )
    ranks = [RANKS[number % len(RANKS)] for number in range(request.num_arms)]
    return FootprintQuestion(
        engine="packed",
        device_kind="cuda",
        folder=str(folder),
        precision=Precision(quantization="4bit" if request.quantization == "4bit" else "bf16"),
        arms=tuple(CountedArm(r=r, targets=("qkvo", None)) for r in ranks),
        gradient_checkpointing=False,
        row_lengths=tuple(len(row.input_ids) for row in rows),
        num_labels=sum(label != -100 for row in rows for label in row.labels[1:]),
    )


#: One more setting than the GPU benchmark has: each arm has rows of its own.
OWN_ROWS = GpuRequest(id="gpu-5-arms-batch-4-own-rows", num_arms=5, batch_size=4)


def own_rows_question(*, folder: Path = SHAPES / SHAPE) -> FootprintQuestion:
    """The setting of `OWN_ROWS`: the rows of arm k are drawn with seed k."""
    question = question_of(OWN_ROWS, folder=folder)
    orders = [
        rows_like_alpaca(
            OWN_ROWS.batch_size, vocabulary=config_of(str(folder)).vocab_size, longest=LONGEST, seed=seed
        )
        for seed in range(OWN_ROWS.num_arms)
    ]
    return replace(
        question,
        arms=tuple(replace(arm, order=number) for number, arm in enumerate(question.arms)),
        orders=tuple(
            MicroBatch(
                row_lengths=tuple(len(row.input_ids) for row in rows),
                num_labels=sum(label != -100 for row in rows for label in row.labels[1:]),
            )
            for rows in orders
        ),
    )


def all_questions() -> dict[GpuRequest, FootprintQuestion]:
    """Every setting."""
    return {request: question_of(request) for request in ROWS} | {OWN_ROWS: own_rows_question()}


def kernels_of(question: FootprintQuestion, *, models: FakeModels, num_layers: int | None = None) -> Kernels:
    """A step of the whole model, or of its first `num_layers` layers."""
    kernels = Kernels()
    layers = target_layers(models.meta(question.folder, trust_remote_code=False))
    with _counting(kernels):
        count_layers(
            question, counted_arms(question.arms, layers=layers), models=models, num_layers=num_layers
        )
    return kernels


@contextmanager
def _counting(kernels: Kernels) -> Iterator[None]:
    """In this context the memory trace counts kernels, and runs every chunk of the loss."""
    ledgers: list[KernelLedger] = []

    def ledger(*, known: Iterable[Tensor] = ()) -> KernelLedger:
        ledgers.append(KernelLedger(known=known, into=kernels))
        return ledgers[-1]

    def noted(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The function of torch that makes tensors of the meta device without an operation."""

        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            if ledgers and tensor.device == META:
                ledgers[-1].copied_to_device()
            return tensor

        return made

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(memory_trace, "Ledger", ledger))
        stack.enter_context(mock.patch.object(memory_trace, "_NUM_CHUNKS", sys.maxsize))
        stack.enter_context(mock.patch.object(torch, "tensor", noted(torch.tensor)))
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Count every setting; print the counts, or write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_count")
    parser.add_argument("--top", type=int, default=10, help="operations to print for each setting")
    parser.add_argument(
        "--rows", nargs="*", choices=[row.id for row in (*ROWS, OWN_ROWS)], help="only these settings"
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    chosen = parser.parse_args(arguments)
    models, settings = FakeModels(), []
    for request, question in all_questions().items():
        if chosen.rows is None or request.id in chosen.rows:
            kernels = kernels_of(question, models=models)
            settings.append(
                {
                    "id": request.id,
                    "num_arms": request.num_arms,
                    "batch_size": request.batch_size,
                    "quantization": request.quantization,
                    "has_own_rows": bool(question.orders),
                    "row_lengths": question.row_lengths,
                    "num_labels": question.num_labels,
                }
                | kernels.as_json()
            )
            print(_told(request, kernels, top=chosen.top), flush=True)
    if chosen.write:
        libraries = {name: version(name) for name in ("torch", "transformers")}
        body = {"shape": SHAPE, "num_layers": NUM_LAYERS, "versions": libraries, "settings": settings}
        RESULTS.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return 0


def _told(request: GpuRequest, kernels: Kernels, *, top: int) -> str:
    lines = [f"{request.id}: {kernels.launches.total():,} kernels"]
    for name, counts in vars(kernels).items():
        lines.append(f"  {name}: {', '.join(f'{phase} {n:,}' for phase, n in _by_phase(counts).items())}")
    lines += [
        f"  {count:8,}  {phase:<9}  {name}" for (phase, name), count in kernels.launches.most_common(top)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
