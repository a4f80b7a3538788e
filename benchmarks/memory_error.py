"""How far predicted peak memory is from what is measured, over many configurations on this machine's device.

    python -m benchmarks.memory_error --model lab --model path/to/model     measures on this machine's device
    python -m benchmarks.memory_error --gpu benchmarks/results/FILE.json    what `benchmarks.gpu --memory` measured

Every configuration trains two real steps of the packed engine. Measured is the peak of live tensor bytes on a CPU,
and the most that the allocator handed out on CUDA; the prediction sees the `config.json` and the lengths of the rows.
Writes `benchmarks/results/memory-error-<device>.json`, from which the documents' table is made.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory_predictions import CUDA, Case, Predictor
from lorastudy.engine.arms import TrainingArm
from lorastudy.engine.batch import Batch, assemble
from lorastudy.engine.environment import environment
from lorastudy.engine.loading import BaseModel, default_device, load_base
from lorastudy.engine.memory_trace import rows_of
from lorastudy.engine.meter import MemoryMeter, live_bytes, peak_growth
from lorastudy.engine.packed import PackedEngine
from lorastudy.planning.memory import Device, Prediction
from lorastudy.protocol.jobs import MicroBatch
from lorastudy.suite.settings import Quantization, Settings
from lorastudy.suite.targets import resolve_targets

HERE = Path(__file__).resolve().parent

#: (precision, target modules, gradient checkpointing, numbers of arms). One engine step is counted for each, and one
#: more where an arm trains alone.
PATTERNS: tuple[tuple[Quantization, str, bool, tuple[int, ...]], ...] = (
    ("fp32", "all", False, (1, 3, 8)),
    ("fp32", "qv", False, (2, 5)),
    ("fp32", "qkvo", True, (4,)),
    ("bf16", "all", True, (2, 6)),
    ("bf16", "mlp", False, (1, 3)),
    ("4bit", "all", False, (2, 4)),
    ("4bit", "qv", True, (1,)),
    ("8bit", "qkvo", False, (2,)),
)

#: (rank, lengths of the rows, share of tokens with a label), small enough for two CPU cores.
SIZES = ((4, (40, 96), 0.5), (64, (40, 96), 0.2), (16, (40, 40, 96, 96), 0.7))

#: The same for a GPU.
SIZES_CUDA = ((4, (512,) * 4, 0.5), (64, (512, 300), 0.3), (16, (128,) * 16, 0.7), (16, (2048,), 0.5))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What is there before the engine, what the engine adds, and by how much a step goes beyond that."""

    base: int
    resident: int
    step: int

    @property
    def peak(self) -> int:
        """The whole."""
        return self.base + self.resident + self.step


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_error")
    parser.add_argument("--model", action="append", default=[], help="`lab`, or a folder with weights")
    parser.add_argument("--gpu", type=Path, help="a results file of `benchmarks.gpu --memory`, to be scored")
    parser.add_argument("--into", type=Path, help="the file to write")
    chosen = parser.parse_args(arguments)
    if chosen.gpu is not None:
        scored = scored_on_gpu(json.loads(chosen.gpu.read_text(encoding="utf-8")))
        into = chosen.into or HERE / "results" / f"memory-error-{chosen.gpu.stem}.json"
        into.write_text(json.dumps(scored, indent=1) + "\n", encoding="utf-8")
        return 0
    device = default_device()
    cases = [case for model in chosen.model for case in cases_of(model, device=device)]
    into = chosen.into or HERE / "results" / f"memory-error-{device.type}.json"
    predictor = Predictor(Device(kind=device.type))
    results: list[dict[str, Any]] = []
    for base, case in with_bases(cases, device=device):
        results.append(as_result(case, predictor.predict(case), measure(base, case)))
        print(
            json.dumps({key: results[-1][key] for key in ("model", "quantization", "num_arms", "error")}),
            flush=True,
        )
        into.write_text(json.dumps(report(results, device=device), indent=1) + "\n", encoding="utf-8")
    return 0


def scored_on_gpu(measured: dict[str, Any]) -> dict[str, Any]:
    """The result file for what a GPU measured; rows are of full length, and their labels were counted there."""
    results = []
    predictor = Predictor(CUDA)
    for entry in measured["memory"]:
        asked = entry["case"]
        lengths = (asked["length"],) * asked["batch_size"]
        case = Case(
            model=asked["shape"],
            quantization=asked["quantization"],
            targets=tuple(asked["targets"]),
            gradient_checkpointing=asked["gradient_checkpointing"],
            ranks=tuple(asked["ranks"]),
            batch=MicroBatch(row_lengths=lengths, num_labels=entry["num_labels"]),
        )
        base, ready, peak = (entry[key] for key in ("base_bytes", "ready_bytes", "training_peak_bytes"))
        parts = Measured(base=base, resident=ready - base, step=peak - ready)
        results.append(as_result(case, predictor.predict(case), parts))
    environment = {"device": "cuda", "device_name": measured["device"], **measured["versions"]}
    return {"made_at": measured["made_at"], "environment": environment, "results": results}


def cases_of(model: str, *, device: torch.device) -> Iterator[Case]:
    """All sizes of all patterns for a model; arms of a pack differ in rank where there are several."""
    sizes = SIZES_CUDA if device.type == "cuda" else SIZES
    for quantization, targets, checkpointing, nums_arms in PATTERNS:
        for num_arms, (r, lengths, share) in itertools.product(nums_arms, sizes):
            yield Case(
                model=model,
                quantization=quantization,
                targets=targets,
                gradient_checkpointing=checkpointing,
                ranks=tuple(r if number % 2 == 0 else max(1, r // 2) for number in range(num_arms)),
                batch=MicroBatch(row_lengths=tuple(sorted(lengths)), num_labels=_labels(lengths, share)),
            )


def with_bases(cases: Sequence[Case], *, device: torch.device) -> Iterator[tuple[BaseModel, Case]]:
    """Each case with its base, loaded once for cases in a row that share it."""
    last: tuple[str, str] | None = None
    base: BaseModel | None = None
    for case in sorted(cases, key=lambda case: (case.model, case.quantization)):
        if (case.model, case.quantization) != last:
            base, last = None, (case.model, case.quantization)
            gc.collect()
            settings = Settings.model_validate({"base_model": case.model, "quantization": case.quantization})
            base = load_base(settings, device=device)
        assert base is not None
        yield base, case


def measure(base: BaseModel, case: Case) -> Measured:
    """Train two steps of the pack."""
    names = resolve_targets(base.target_layers, target_modules=case.targets, layers_to_transform=None)
    config: Any = base.model.config
    rows = rows_of(case.batch, num_ids=int(config.get_text_config().vocab_size))
    is_cuda = base.device.type == "cuda"
    gc.collect()
    before = torch.cuda.memory_allocated() if is_cuda else live_bytes()
    engine = PackedEngine(base, [_arm(n, r, names) for n, r in enumerate(case.ranks)],
                          gradient_checkpointing=case.gradient_checkpointing)  # fmt: skip
    try:
        ready = torch.cuda.memory_allocated() if is_cuda else live_bytes()
        batches = [assemble(rows, device=base.device)]
        steps = [batches, batches]
        growth = _cuda_growth(engine, steps, device=base.device) if is_cuda else _cpu_growth(engine, steps)
        on_batch = sum(
            tensor.nbytes for tensor in vars(batches[0]).values() if isinstance(tensor, torch.Tensor)
        )
        return Measured(base=before, resident=ready - before, step=growth + (0 if is_cuda else on_batch))
    finally:
        engine.close()


def as_result(case: Case, prediction: Prediction, measured: Measured) -> dict[str, Any]:
    """One line of the result file."""
    terms = dict(prediction.terms.named())
    base = terms["base_weights"] + terms["quantisation_constants"]
    resident = terms["adapters"] + terms["gradients"] + terms["optimizer"]
    total = prediction.terms.total
    return {
        "model": Path(case.model).name,
        "quantization": case.quantization,
        "targets": case.targets,
        "gradient_checkpointing": case.gradient_checkpointing,
        "num_arms": len(case.ranks),
        "ranks": list(case.ranks),
        "row_lengths": list(case.batch.row_lengths),
        "num_labels": case.batch.num_labels,
        "phase": prediction.phase,
        "predicted": {
            "base": base,
            "resident": resident,
            "step": total - base - resident,
            "peak": total,
            "terms": terms,
        },
        "measured": {**vars(measured), "peak": measured.peak},
        "error": total / measured.peak - 1,
    }


def report(results: Sequence[dict[str, Any]], *, device: torch.device) -> dict[str, Any]:
    """The result file."""
    return {
        "made_at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "environment": vars(environment(device)) | {"system": platform.system(), "numpy": version("numpy")},
        "results": list(results),
    }


def _cpu_growth(engine: PackedEngine, steps: Sequence[Sequence[Batch]]) -> int:
    return peak_growth(lambda: engine.train(steps, on_step=lambda _: None))


def _cuda_growth(engine: PackedEngine, steps: Sequence[Sequence[Batch]], *, device: torch.device) -> int:
    ready = torch.cuda.memory_allocated(device)
    with MemoryMeter(device) as meter:
        engine.train(steps, on_step=lambda _: None)
    assert meter.peak_bytes is not None
    return meter.peak_bytes - ready


def _labels(lengths: Sequence[int], share: float) -> int:
    return min(round(sum(lengths) * share), sum(lengths) - len(lengths))


def _arm(number: int, r: int, module_names: tuple[str, ...]) -> TrainingArm:
    return TrainingArm(
        experiment_id=str(number), seed=number, r=r, lora_alpha=float(r), use_rslora=False, scaling=1.0,
        lora_dropout=0.0, module_names=module_names, learning_rate=0.0, lr_scheduler_type="constant",
        num_warmup_steps=0, num_steps=2, weight_decay=0.0, max_grad_norm=1.0, adam_beta1=0.9, adam_beta2=0.999,
        adam_epsilon=1e-8,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
