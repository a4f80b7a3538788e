"""The work that both sides are given, as one JSON file: rows as tokens, in the order of training, and the runs.

Giving out tokens spares the baseline its tokenizer, which is in its favour. Nothing of the product is imported
here, so that reading a job costs the baseline nothing of ours.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

DTYPES: dict[str, str] = {"fp32": "float32", "bf16": "bfloat16", "4bit": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One configuration."""

    name: str
    rank: int
    alpha: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as the model sees it; labels are -100 where nothing is trained."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that makes the numbers. `train` is in the order of training, `batch_size` rows a step.

    `scored` are sets whose loss is measured after training, by name; `prompts` are answered greedily.
    """

    model: str
    random_weights: bool
    device: str
    quantization: Literal["fp32", "bf16", "4bit"]
    targets: tuple[str, ...]
    batch_size: int
    learning_rate: float
    lr_scheduler_type: Literal["linear", "cosine", "constant"]
    warmup_ratio: float
    runs: tuple[Run, ...]
    train: tuple[Row, ...]
    scored: dict[str, tuple[Row, ...]]
    prompts: tuple[tuple[int, ...], ...] = ()
    max_new_tokens: int = 0

    @property
    def dtype(self) -> str:
        """The name that torch has for the precision in which the frozen weights are multiplied."""
        return DTYPES[self.quantization]

    @property
    def num_steps(self) -> int:
        """Optimizer steps; every row is seen once."""
        return len(self.train) // self.batch_size

    @property
    def num_tokens(self) -> int:
        """Real tokens that one configuration trains on."""
        return sum(len(row.input_ids) for row in self.train)

    def batches(self) -> list[tuple[Row, ...]]:
        """The rows of each step."""
        size = self.batch_size
        return [self.train[start : start + size] for start in range(0, self.num_steps * size, size)]

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """The job that `write` wrote."""
        body = json.loads(path.read_text(encoding="utf-8"))
        body["runs"] = tuple(Run(**run) for run in body["runs"])
        body["train"] = _rows(body["train"])
        body["scored"] = {name: _rows(rows) for name, rows in body["scored"].items()}
        body["prompts"] = tuple(tuple(prompt) for prompt in body["prompts"])
        body["targets"] = tuple(body["targets"])
        return cls(**body)


@dataclass(frozen=True, kw_only=True)
class AlpacaRequest:
    """Which rows, and what is trained on them: the options of a sequential baseline, under its names."""

    model: str
    data: str
    num_train: int
    num_eval: int
    ranks: tuple[int, ...]
    alpha: float
    targets: tuple[str, ...]
    steps: int
    batch_size: int
    max_length: int
    learning_rate: float
    seed: int
    quantization: Literal["fp32", "bf16"]

    def write(self, path: Path) -> Path:
        """Write the file and return its path."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def _rows(values: Sequence[dict[str, Any]]) -> tuple[Row, ...]:
    return tuple(Row(input_ids=tuple(v["input_ids"]), labels=tuple(v["labels"])) for v in values)


@dataclass(frozen=True, kw_only=True)
class GpuRequest:
    """One row of the GPU table: how many arms, in which precision, how many rows in a forward pass."""

    id: str
    num_arms: int
    batch_size: int
    quantization: str = "bf16"

    @property
    def weight(self) -> int:
        """The relative cost of a step, in rows."""
        return self.num_arms * (self.batch_size + 4)  # a step has a fixed cost of about four rows


#: Seconds of the budget that are reserved for writing results.
RESERVE_SECONDS = 15.0


@dataclass(kw_only=True)
class Budget:
    """Seconds that a benchmark may spend."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        self._start = self.clock()

    @property
    def left(self) -> float:
        """Seconds left, without the reserve for writing results."""
        return self.seconds - RESERVE_SECONDS - (self.clock() - self._start)
