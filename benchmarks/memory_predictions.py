"""Peak memory as the planner predicts it, of the cases that the memory benchmarks measure.

    python -m benchmarks.memory_predictions

writes what is predicted of the README's two tables, on a GPU, into `benchmarks/results/memory-predicted.json`. No weights
are made for it, and no GPU is needed: a `config.json` and one step of the engine on tensors without content suffice.
`docs/memory_tables.py` shows these rows as predicted for as long as `benchmarks.gpu --memory` has not measured them.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu_memory import Case as GpuCase
from benchmarks.gpu_memory import rows_of, table_cases
from benchmarks.random_base import SHAPES, config_of
from lorastudy.engine.planning import answer
from lorastudy.planning.memory import ArmSize, Device, ModelShape, Prediction, config_folder, predict
from lorastudy.protocol.jobs import (
    CountedArm,
    Footprint,
    FootprintQuestion,
    MicroBatch,
    ModelQuestion,
    Precision,
    as_json,
)
from lorastudy.suite.settings import Quantization
from lorastudy.suite.targets import resolve_targets

RESULTS = Path(__file__).parent / "results" / "memory-predicted.json"
CUDA = Device(kind="cuda")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration. `model` is `lab`, a folder with a `config.json`, or a name under `shapes/`."""

    model: str
    quantization: Quantization
    targets: str | tuple[str, ...]
    gradient_checkpointing: bool
    ranks: tuple[int, ...]
    batch: MicroBatch

    @property
    def folder(self) -> str:
        """Where its `config.json` lies."""
        shape = SHAPES / self.model
        return str(shape if shape.is_dir() else config_folder(self.model))

    @classmethod
    def of(cls, case: GpuCase) -> "Case":
        """The same as a case of the GPU's."""
        rows = rows_of(case, vocabulary=int(config_of(case.shape).vocab_size))
        trained = [sum(label != -100 for label in row.labels[1:]) for row in rows]
        return cls(
            model=case.shape,
            quantization=case.quantization,
            targets=case.targets,
            gradient_checkpointing=case.gradient_checkpointing,
            ranks=case.ranks,
            batch=MicroBatch(row_lengths=tuple(len(row.input_ids) for row in rows), num_labels=sum(trained)),
        )


class Predictor:
    """Predicts cases on one device. Owns what was counted: cases often share a step."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._answers: dict[str, Mapping[str, Any]] = {}

    def predict(self, case: Case) -> Prediction:
        """From the configuration and the lengths of the rows alone."""
        shape = ModelShape.from_json(self._ask(ModelQuestion(folder=case.folder)))
        question = FootprintQuestion(
            engine="packed",
            device_kind="cuda" if self._device.kind == "cuda" else "cpu",
            folder=case.folder,
            precision=Precision(quantization=case.quantization),
            arms=tuple(CountedArm(r=r, targets=(case.targets, None)) for r in case.ranks),
            gradient_checkpointing=case.gradient_checkpointing,
            row_lengths=case.batch.row_lengths,
            num_labels=case.batch.num_labels,
        )
        names = resolve_targets(shape.linear_layers, target_modules=case.targets, layers_to_transform=None)
        return predict(
            shape,
            [ArmSize(r=r, module_names=names) for r in case.ranks],
            precision=Precision(quantization=case.quantization),
            footprint=Footprint.from_json(self._ask(question)),
            device=self._device,
        )

    def _ask(self, question: ModelQuestion | FootprintQuestion) -> Mapping[str, Any]:
        asked = as_json(question)
        key = json.dumps(asked)
        if key not in self._answers:
            (self._answers[key],) = answer([asked])["answers"]
        return self._answers[key]


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict the rows of the tables and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_predictions")
    parser.add_argument("--into", type=Path, default=RESULTS, help="the file to write")
    chosen = parser.parse_args(arguments)
    predictor = Predictor(CUDA)
    rows = []
    for case in table_cases():
        terms = predictor.predict(Case.of(case)).terms
        rows.append({"id": case.id, "case": asdict(case), "terms": dict(terms.named())})
        print(f"{case.id}: {terms.total:,} bytes", flush=True)
    libraries = {name: version(name) for name in ("torch", "transformers")}
    body = {"device": "a GPU", "versions": libraries, "memory": rows}
    chosen.into.parent.mkdir(parents=True, exist_ok=True)
    chosen.into.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {chosen.into}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
