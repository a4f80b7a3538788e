"""Peak memory on a GPU, case by case: what predictions are scored against, and what the memory tables are made of.

Rows are all of full length, which is the peak of a run. Training is two steps of the packed engine, so the optimizer's
state is there; inference is one scoring pass. Measured is what the allocator handed out at most, the base included.
A case holds all that a prediction needs (shape, precision, ranks, batch, length), so predictions are made from the
results file (`python -m benchmarks.memory_error --gpu FILE`), where no GPU is needed, and never in the process that is
measured.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.job import Job, Row, Run
from benchmarks.parity import arms_of, token_row
from benchmarks.random_base import as_base, config_of, quantise, random_model, rows_of_lengths, tiny
from lorastudy.engine.batch import assemble
from lorastudy.engine.loading import BaseModel
from lorastudy.engine.meter import MemoryMeter, num_parameters
from lorastudy.engine.numerics import numerics
from lorastudy.engine.packed import PackedEngine
from lorastudy.suite.settings import Quantization

#: Seconds to draw a base of that shape and to quantise it, generously; a case on a base that is there takes few.
SECONDS_PER_BASE = {"phi-2": 10.0, "llama-7b": 25.0, "llama-13b": 45.0}
SECONDS_PER_CASE = 4.0
#: The projections of attention, as the shapes call them.
ATTENTION = {
    "phi-2": ("q_proj", "k_proj", "v_proj", "dense"),
    "llama-7b": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "llama-13b": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
RANKS = (4, 8, 16, 32, 64)
PRECISIONS: tuple[Quantization, ...] = ("4bit", "bf16", "8bit")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration whose peak is measured."""

    shape: str
    quantization: Quantization
    ranks: tuple[int, ...]
    batch_size: int = 1
    length: int = 512
    gradient_checkpointing: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        """The modules that are adapted."""
        return ATTENTION[self.shape]

    @property
    def id(self) -> str:
        """What it is called in the results."""
        ranks = "-".join(map(str, self.ranks))
        again = "-recomputed" if self.gradient_checkpointing else ""
        return f"memory-{self.shape}-{self.quantization}-ranks-{ranks}-batch-{self.batch_size}-length-{self.length}{again}"


def table_cases() -> list[Case]:
    """What the README's tables show: Phi-2 in 4 bits along rank, and two larger models by precision."""
    return [
        *(Case(shape="phi-2", quantization="4bit", ranks=(rank,)) for rank in RANKS),
        *(
            Case(shape=shape, quantization=quantization, ranks=(16,))
            for shape in ("llama-7b", "llama-13b")
            for quantization in PRECISIONS
        ),
    ]


def memory_cases() -> list[Case]:
    """Grouped by base, the most wanted first: those of the tables, then what else changes a peak."""
    wanted = table_cases()
    cases = [case for case in wanted if case.shape == "phi-2"]
    for quantization in PRECISIONS:
        cases += [
            Case(shape="phi-2", quantization=quantization, ranks=RANKS),
            Case(shape="phi-2", quantization=quantization, ranks=(16,), batch_size=4),
            Case(shape="phi-2", quantization=quantization, ranks=(16,), length=1024),
            Case(shape="phi-2", quantization=quantization, ranks=(16,), length=2048),
            Case(
                shape="phi-2",
                quantization=quantization,
                ranks=(16,),
                batch_size=4,
                gradient_checkpointing=True,
            ),
        ]
    for case in wanted:
        if case.shape != "phi-2":
            cases += [
                case,
                replace(case, ranks=(64,)),
                replace(case, length=1024),
                replace(case, ranks=(16,) * 4),
            ]
    return cases


def rows_of(case: Case, *, vocabulary: int) -> tuple[Row, ...]:
    """The rows of one step, all of full length, with an untrained prompt in front of each."""
    return rows_of_lengths([case.length] * case.batch_size, vocabulary=vocabulary, seed=0)


class MemoryBench:
    """Measures cases; keeps the base between cases that share it. Owns that base."""

    def __init__(self, *, device: str, is_tiny: bool) -> None:
        self._device = torch.device(device)
        self._is_tiny = is_tiny
        self._key: tuple[str, str] | None = None
        self._base: BaseModel | None = None

    def seconds_needed(self, case: Case) -> float:
        """What the case may take, with its base if that is another than the last one."""
        base = 0.0 if self._key == (case.shape, case.quantization) else SECONDS_PER_BASE[case.shape]
        return base + SECONDS_PER_CASE

    def measure(self, case: Case) -> dict[str, Any]:
        """Peak bytes of training and of inference; what the base takes, and what it takes with the engine about it.

        Raises:
            RuntimeError: it does not fit, or a kernel is missing.
        """
        base = self._base_of(case)
        job = _job(case, base=base)
        resting = _allocated(self._device)
        engine = PackedEngine(
            base, arms_of(job, base=base), gradient_checkpointing=case.gradient_checkpointing
        )
        try:
            ready = _allocated(self._device)
            batch = assemble([token_row(row) for row in job.batches()[0]], device=self._device)
            training = self._peak(lambda: engine.train([[batch], [batch]], on_step=lambda _: None))
            inference = self._peak(lambda: engine.score(batch))
        finally:
            engine.close()
        return {
            "id": case.id,
            "case": asdict(case) | {"targets": list(case.targets)},
            "num_labels": batch.num_completion_tokens,
            "num_parameters": num_parameters(base),
            "memory_kind": "cuda_allocated" if self._device.type == "cuda" else "cpu_resident",
            "base_bytes": resting,
            "ready_bytes": ready,
            "training_peak_bytes": training,
            "inference_peak_bytes": inference,
        }

    def _peak(self, action: Callable[[], object]) -> int | None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        with numerics(self._device, deterministic=True), MemoryMeter(self._device) as meter:  # as in a worker
            action()
        return meter.peak_bytes

    def _base_of(self, case: Case) -> BaseModel:
        key = (case.shape, case.quantization)
        if self._base is None or key != self._key:
            self._base = self._key = None  # the old one goes before the new one comes
            config = tiny(config_of(case.shape)) if self._is_tiny else config_of(case.shape)
            model = random_model(config, dtype=torch.bfloat16, device=self._device)
            if case.quantization != "bf16":
                quantise(model, quantization=case.quantization, dtype=torch.bfloat16)
            self._base = as_base(model, name=case.shape, device=self._device, dtype=torch.bfloat16)
            self._key = key
        return self._base


def _job(case: Case, *, base: BaseModel) -> Job:
    """Two steps of rows of full length; seeds tell arms of equal rank apart."""
    rows = rows_of(case, vocabulary=int(base.model.config.vocab_size))
    return Job(
        model=case.shape,
        random_weights=True,
        device=base.device.type,
        quantization="bf16",  # of the settings only; the base is what it is
        targets=case.targets,
        batch_size=case.batch_size,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        runs=tuple(Run(name=f"arm{n}", rank=rank, alpha=16.0, seed=n) for n, rank in enumerate(case.ranks)),
        train=(*rows, *rows),
        scored={},
    )


def _allocated(device: torch.device) -> int | None:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None
