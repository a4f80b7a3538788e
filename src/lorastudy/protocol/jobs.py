"""The jobs of a worker besides training: evaluate adapters, and answer the questions of a plan.

Also the arguments of a worker, the note on its origin that is stored beside every adapter, and the answer to a
question of memory: the footprint of one step, counted on tensors without content.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, get_args

from lorastudy.suite.experiment import Experiment
from lorastudy.suite.methods import PLAIN, ArmMethod
from lorastudy.suite.settings import PromptFormat, Quantization, Settings

ORIGIN_NAME = "lorastudy.json"
RESULT_NAME = "result.json"
"""A worker writes a job's result into its folder under this name."""

#: Set for a worker that must train on a GPU. It then refuses to train on the CPU.
NEEDS_GPU_VARIABLE = "LORASTUDY_NEEDS_GPU"

Phase = Literal["forward", "loss", "backward", "optimizer"]

FROM_INPUT = "-"
"""A worker with this as its only argument reads folders from its standard input, one JSON string a line."""

LOG_NAME = "worker.log"
"""A worker's log, in the first folder that it serves."""

OWN_LOG_VARIABLE = "LORASTUDY_OWN_LOG"
"""Set for a worker that starts before its first folder is known. It opens the log there itself."""

SERVING = "serving "
"""A worker's log marks the beginning of an attempt with a line that starts with this word."""


def folders_to_serve(arguments: Sequence[str]) -> Iterator[Path]:
    """The folders that a worker must serve, as they arrive. A worker that started early opens the first one's log."""
    is_from_input = list(arguments) == [FROM_INPUT]
    for text in map(json.loads, sys.stdin) if is_from_input else arguments:
        folder = Path(text)
        if os.environ.pop(OWN_LOG_VARIABLE, None):
            _log_into(folder)
        yield folder


def _log_into(folder: Path) -> None:
    """Write all further output, also that of libraries, to the end of the folder's log."""
    with (folder / LOG_NAME).open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """A job that scores and times trained adapters, and generates with them, one after another on one base."""

    checkpoints: tuple[str, ...]
    base_model: str
    quantization: Quantization
    dataset: str | None
    benchmark: bool
    profile_inference: bool
    max_seq_length: int
    max_samples: int | None
    max_generation_samples: int
    max_new_tokens: int
    exact_match_pattern: str | None = None
    prompt_format: PromptFormat = "auto"
    trust_remote_code: bool = False
    """Never copied from the adapter: the user decides for every evaluation."""

    def write(self, folder: Path) -> None:
        """Write `job.json` into the folder."""
        (folder / "job.json").write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


class Job(Protocol):
    """Work for a worker. It writes itself into a folder as `job.json`."""

    @property
    def base_model(self) -> str:
        """The base model. It decides whether the worker may need the hub."""
        ...

    def write(self, folder: Path) -> None:
        """Write `job.json` into the folder."""
        ...


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The precision of the frozen base."""

    quantization: Quantization
    quant_type: str = "nf4"
    double_quant: bool = True


Targets = tuple[str | tuple[str, ...], tuple[int, ...] | None]
"""`target_modules` and `layers_to_transform` of an arm."""


@dataclass(frozen=True, kw_only=True)
class MachineQuestion:
    """Which device would train, with how much memory and how many threads?"""

    kind: ClassVar[str] = "machine"


@dataclass(frozen=True, kw_only=True)
class ModelQuestion:
    """What is the shape of the model that a folder's `config.json` describes? Reads no weights."""

    kind: ClassVar[str] = "model"
    folder: str
    trust_remote_code: bool = False


EngineName = Literal["packed", "reference"]


DeviceKind = Literal["cpu", "cuda"]
"""The kinds of device for which the engine's code differs."""


def attends_in_one_call(device_kind: str, *, is_half: bool) -> bool:
    """Whether attention is one call for all rows, which may then be longer than a sliding window.

    So on a GPU in half precision. The plan asks this before a run, and the engine within it.
    """
    return device_kind == "cuda" and is_half


@dataclass(frozen=True, kw_only=True)
class CountedArm:
    """The properties of an arm on which its memory depends."""

    r: int
    targets: Targets
    exclude_modules: tuple[str, ...] = ()
    has_dropout: bool = False
    method: ArmMethod = PLAIN
    order: int = 0
    """The arm's order of the rows, as a place in `FootprintQuestion.orders`."""

    @classmethod
    def of(cls, settings: Settings, *, order: int = 0) -> Self:
        """The arm of these settings."""
        return cls(
            r=settings.lora_rank,
            targets=(settings.target_modules, settings.layers_to_transform),
            exclude_modules=settings.exclude_modules or (),
            has_dropout=settings.lora_dropout > 0,
            method=settings.arm_method,
            order=order,
        )


@dataclass(frozen=True, kw_only=True)
class SizeQuestion:
    """How many parameters does an arm train, and how many bytes are they? PEFT counts them on the model."""

    kind: ClassVar[str] = "size"
    folder: str
    precision: Precision
    arms: tuple[CountedArm, ...]
    """One arm."""
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class FootprintQuestion:
    """How much memory does one training step of a pack need?

    The reference engine trains one arm at a time, so its question is about one arm.
    """

    kind: ClassVar[str] = "footprint"
    engine: EngineName
    device_kind: DeviceKind
    folder: str
    precision: Precision
    arms: tuple[CountedArm, ...]
    gradient_checkpointing: bool
    row_lengths: tuple[int, ...]
    """Lengths of the rows of the micro-batch, in any order."""
    num_labels: int
    trust_remote_code: bool = False
    orders: "tuple[MicroBatch, ...]" = ()
    """The micro-batch of each order of the rows, if arms have rows of their own. Empty if all arms see the same rows."""


@dataclass(frozen=True, kw_only=True)
class RowsQuestion:
    """What is the largest micro-batch of experiments with these settings, for every order of the rows?

    And which micro-batches are the largest if several orders train side by side?
    """

    kind: ClassVar[str] = "rows"
    settings: dict[str, Any]
    lengths: tuple[tuple[int | None, float | None], ...]
    """(max_steps, num_train_epochs) of the experiments that share the rest of the settings."""
    data_seeds: tuple[int, ...]
    """The seeds of the orders of the rows."""


@dataclass(frozen=True, kw_only=True)
class PreviewQuestion:
    """How does a run with these settings read the rows of a split? The answer has the text of their tokens.

    Training rows come in training order, other rows in the order of their file. Without a split the rows are the first
    rows of `dataset_path`, whether or not a run would train on them.
    """

    kind: ClassVar[str] = "preview"
    settings: dict[str, Any]
    num_rows: int
    split: str | None = None
    lengths: tuple[tuple[int | None, float | None], ...] = ((None, None),)
    """As in `RowsQuestion`."""
    data_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PaceQuestion:
    """How long does a step take with these numbers of arms, over rows of these lengths? Loads the model.

    The reference engine trains one arm at a time, so its question is about one arm.
    """

    kind: ClassVar[str] = "pace"
    engine: EngineName
    settings: dict[str, Any]
    row_lengths: tuple[int, ...]
    num_labels: int
    nums_arms: tuple[int, ...]


Question = (
    MachineQuestion
    | ModelQuestion
    | SizeQuestion
    | FootprintQuestion
    | RowsQuestion
    | PreviewQuestion
    | PaceQuestion
)


@dataclass(frozen=True, kw_only=True)
class PlanningJob:
    """A job that answers a plan's questions, in their order. The answers need torch."""

    questions: tuple[Question, ...]
    base_model: str

    def write(self, folder: Path) -> None:
        """Write `job.json` into the folder."""
        questions = [as_json(question) for question in self.questions]
        (folder / "job.json").write_text(json.dumps({"questions": questions}), encoding="utf-8")


def as_json(question: Question) -> dict[str, Any]:
    """A question as plain JSON values, with its kind."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(question)))
    return {"kind": question.kind, **values}


def read_questions(values: Sequence[dict[str, Any]]) -> list[Question]:
    """The questions that `as_json` wrote."""
    kinds: dict[str, Any] = {question.kind: question for question in get_args(Question)}
    return [kinds[value["kind"]](**_arguments(value)) for value in values]


def _arguments(value: dict[str, Any]) -> dict[str, Any]:
    arguments = {key: _with_tuples(content) for key, content in value.items() if key != "kind"}
    if isinstance(arguments.get("method"), dict):
        arguments["method"] = ArmMethod(
            **{key: _with_tuples(content) for key, content in arguments["method"].items()}
        )
    if "precision" in arguments:
        arguments["precision"] = Precision(**arguments["precision"])
    if "arms" in arguments:
        arguments["arms"] = tuple(CountedArm(**_arguments(arm)) for arm in arguments["arms"])
    if "orders" in arguments:
        arguments["orders"] = tuple(MicroBatch(**_arguments(order)) for order in arguments["orders"])
    return arguments


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


@dataclass(frozen=True, kw_only=True)
class AdapterOrigin:
    """The origin of an adapter, stored beside its weights as `lorastudy.json`, which PEFT ignores."""

    experiment_id: str
    base_model_fingerprint: str
    quantization: Quantization
    max_seq_length: int
    exact_match_pattern: str | None
    prompt_format: PromptFormat = "auto"

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """The origin of an experiment's adapter."""
        return cls(
            experiment_id=experiment.id,
            base_model_fingerprint=experiment.sources.base_model,
            quantization=experiment.settings.quantization,
            max_seq_length=experiment.settings.max_seq_length,
            exact_match_pattern=experiment.settings.exact_match_pattern,
            prompt_format=experiment.settings.prompt_format,
        )

    def write(self, folder: Path) -> None:
        """Write it into the adapter's folder."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        (folder / ORIGIN_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The origin in a folder; None if the folder has none, or one from another program."""
        path = folder / ORIGIN_NAME
        if not path.is_file():
            return None
        try:
            origin = cls(**json.loads(path.read_text(encoding="utf-8")))
            Settings(
                quantization=origin.quantization,
                max_seq_length=origin.max_seq_length,
                exact_match_pattern=origin.exact_match_pattern,
                prompt_format=origin.prompt_format,
            )
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return origin if isinstance(origin.base_model_fingerprint, str) else None


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The lengths of the rows of one forward pass, and the number of tokens that carry a loss."""

    row_lengths: tuple[int, ...]
    num_labels: int

    @property
    def num_tokens(self) -> int:
        """Real tokens; there is no padding."""
        return sum(self.row_lengths)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The peak memory of one step in bytes, without base model, adapters, gradients and optimizer state.

    `held_bytes` is the memory that the forward pass keeps for the backward pass. `loss_bytes` is the memory that the
    loss adds to it, or 0 if the peak is in another phase.
    """

    phase: Phase
    """The phase with the peak."""
    total_bytes: int
    held_bytes: int
    loss_bytes: int
    num_tensors: int
    """Tensors alive at the peak."""
    resident_bytes_per_parameter: float
    """Bytes of the adapters' weights, gradients and moments, divided by the number of trainable parameters."""

    def to_json(self) -> dict[str, Any]:
        """The footprint as plain JSON values; `from_json` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The footprint that `to_json` wrote."""
        return cls(**values)
