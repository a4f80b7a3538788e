"""What packs of experiments will take, before they run: memory by term, time where it was calibrated, and what fits.

The questions of a whole plan go to one worker, once; afterwards everything here is arithmetic on kept answers.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorastudy.errors import ModelError, StudyError
from lorastudy.planning.answers import Answers, config_digest
from lorastudy.planning.memory import (
    ArmSize,
    Device,
    ModelShape,
    Prediction,
    config_folder,
    in_turn,
    num_trainable,
    part_of,
    predict,
)
from lorastudy.planning.packing import groups
from lorastudy.planning.time import Calibration
from lorastudy.protocol.footprint import Footprint, MicroBatch
from lorastudy.protocol.jobs import (
    CountedArm,
    EngineName,
    FootprintQuestion,
    MachineQuestion,
    ModelQuestion,
    PaceQuestion,
    Precision,
    Question,
    RowsQuestion,
)
from lorastudy.protocol.records import RowsRead
from lorastudy.report.numbers import percent, size
from lorastudy.suite.experiment import Experiment, canonical_json
from lorastudy.suite.settings import ARM_KEYS, Settings
from lorastudy.suite.targets import targets_of

#: Share of the device's memory that a plan leaves free: for the CUDA context and libraries, for memory lost between
#: tensors, and for the error of the prediction.
MARGIN = 0.10

#: What a worker on a CPU takes before it holds a tensor: libraries, and the tokenised rows.
PROCESS_BYTES = 600 << 20

#: How large its heap becomes for each byte of tensors at their peak. The worker gives nothing back to the system, which would
#: cost half of its speed (docs/log.md), and between tensors of steps of other lengths there are gaps: 1.5 were seen.
HEAP_SHARE = 2.0

#: Numbers of arms that a calibration times.
CALIBRATED_ARMS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device that would train."""

    device: str
    device_name: str
    num_threads: int
    memory_bytes: int | None
    compute_capability: int | None

    @property
    def as_device(self) -> Device:
        """As far as memory goes."""
        return Device(kind=self.device, compute_capability=self.compute_capability)

    def budget_bytes(self, *, num_workers: int) -> int | None:
        """What tensors of a pack may take at their peak, less the margin; None where no memory is known.

        On a GPU that of the worker's own device. On a CPU the workers share the machine's, and each takes more of it than
        its tensors do.
        """
        if self.device == "cuda":
            return None if self.memory_bytes is None else within_margin(self.memory_bytes)
        memory = physical_memory()
        return None if memory is None else within_cpu_margin(memory / num_workers)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What the training rows of a pack are like; without a data set, all rows have the greatest length."""

    batch: MicroBatch
    num_steps: int | None
    mean_tokens_per_step: float


@dataclass(frozen=True, kw_only=True)
class ForeseenEngine:
    """The engine that will train a pack, as far as its model's configuration and its rows tell."""

    name: EngineName
    reason: str | None = None
    """Why it is not the packed one, where `engine: auto` left the choice."""

    def __str__(self) -> str:
        return f"engine: {self.name}{f', since {self.reason}' if self.reason else ''}"


@dataclass(frozen=True, kw_only=True)
class PackEstimate:
    """What one pack will take; an experiment that does not fit the model has no part in it."""

    prediction: Prediction
    alone: Mapping[str, Prediction]
    """By experiment: trained alone, as every arm is profiled."""
    rows: Rows
    num_trainable: Mapping[str, int]
    num_modules: Mapping[str, int]
    step_seconds: float | None
    engine: "ForeseenEngine"
    problems: Mapping[str, str]
    """By experiment: why nothing is predicted of it. The others are predicted without it."""

    @property
    def train_seconds(self) -> float | None:
        """Of all steps; None where none was timed, or where nobody knows how many there are."""
        if self.step_seconds is None or self.rows.num_steps is None:
            return None
        return self.step_seconds * self.rows.num_steps


class Estimator:
    """Predictions for experiments that share everything but their arms: one base, precision, data and batch."""

    def __init__(
        self,
        experiments: Sequence[Experiment],
        answers: Answers,
        *,
        with_data: bool,
        data_seeds: Collection[int] = (),
    ) -> None:
        """`with_data` reads the training rows; without, all rows are taken to have the greatest length.

        `data_seeds` are those of the other packs that read the same rows (`by_pack` finds them): one question then
        answers for all orders, and the counted steps serve all of them.
        """
        self.experiments = tuple(experiments)
        self._data_seeds = tuple(sorted({experiments[0].data_seed, *data_seeds}))
        self.settings = experiments[0].settings
        self._answers = answers
        self._with_data = with_data

    def first_questions(self) -> list[tuple[Question, str]]:
        """What must be known before it is clear which step to count, and of which engine: the model, and the rows, if any."""
        asked: list[tuple[Question, str]] = [(MachineQuestion(), ""), (self._model_question, self._about)]
        if self._with_data:
            asked.append((self._rows_question, self._about_rows))
        return asked

    def questions(self, *, with_alone: bool = True) -> list[tuple[Question, str]]:
        """The steps to count before `estimate` can answer: all arms together, and each arm alone."""
        sizes, _ = self._sizes(self.experiments)
        packs = [[each] for each in self.experiments if each.id in sizes] if with_alone else []
        return self._questions_of([*packs, self.experiments])

    def count(self, packs: Iterable[Sequence[Experiment]]) -> None:
        """Have the steps of these packs counted, so that `estimate` knows them."""
        with suppress(StudyError):  # `estimate` tells
            self._answers.fetch(self._questions_of(packs), base_model=self.settings.base_model)

    def _questions_of(self, packs: Iterable[Sequence[Experiment]]) -> list[tuple[Question, str]]:
        asked: dict[Question, str] = {}
        for pack in packs:
            sizes, _ = self._sizes(pack)
            together = [each for each in pack if each.id in sizes]
            is_packed = self.engine.name == "packed"
            for counted in [together] if is_packed else [[each] for each in together]:
                if counted:
                    asked[self._footprint_question(counted)] = self._about
        return list(asked.items())

    @cached_property
    def machine(self) -> Machine:
        """Where a worker of this machine would train."""
        return Machine(**self._one(MachineQuestion(), ""))

    @cached_property
    def shape(self) -> ModelShape:
        """The base model's."""
        return ModelShape.from_json(self._one(self._model_question, self._about))

    @cached_property
    def engine(self) -> ForeseenEngine:
        """Which engine will train: the one asked for, and with `auto` the packed one wherever it can serve model and rows.

        Raises:
            ModelError: the packed engine was asked for by name, and cannot.
        """
        asked = self.settings.engine
        if asked == "reference":
            return ForeseenEngine(name="reference")
        problem = self.shape.packed_problem
        span, longest = self.shape.attention_span, self._longest_row
        if problem is None and span is not None and longest > span:
            problem = f"some of its layers see {span} tokens at once (a sliding window), and the longest row has {longest}"
        if problem is None and asked == "auto":
            problem = self._experts_problem()
        if problem is None:
            return ForeseenEngine(name="packed")
        if asked == "packed":
            raise ModelError(f"engine: packed: {problem}; set `engine: auto` or `engine: reference`")
        return ForeseenEngine(name="reference", reason=problem)

    def _experts_problem(self) -> str | None:
        """Why the packed engine will not serve these arms: one of them adapts the weights of experts."""
        layers = self.shape.layers_by_name()
        sizes, _ = self._sizes(self.experiments)
        adapted = (name for size in sizes.values() for name in size.module_names)
        parameter = next((name for name in adapted if layers[name].is_parameter), None)
        return None if parameter is None else f"{parameter} holds the weights of experts"

    @cached_property
    def rows(self) -> Rows:
        """The rows of a pack. Its micro-batch is the largest one of all orders, so packs of all seeds are predicted alike."""
        if not self._with_data:
            return longest_rows(self.settings)
        answer = self._one(self._rows_question, self._about_rows)
        orders = dict(zip(self._data_seeds, answer["orders"], strict=True))
        largest = max(orders.values(), key=lambda order: sum(order["row_lengths"]))
        return Rows(
            batch=MicroBatch(
                row_lengths=tuple(sorted(largest["row_lengths"])), num_labels=largest["num_labels"]
            ),
            num_steps=answer["num_steps"],
            mean_tokens_per_step=orders[self.experiments[0].data_seed]["mean_tokens_per_step"],
        )

    @property
    def rows_read(self) -> tuple[RowsRead, ...]:
        """What becomes of the rows of each split, as the worker reads them; nothing without a data set."""
        if not self._with_data:
            return ()
        answer = self._one(self._rows_question, self._about_rows)
        return tuple(map(RowsRead.from_json, answer["splits"]))

    def calibration(self) -> Calibration | None:
        """The timed steps of this machine, if it was calibrated."""
        kept = self._answers.kept(self._pace_question, self._about)
        return None if kept is None else Calibration.from_json(kept)

    def calibrate(self) -> Calibration:
        """Time steps now. The base model is loaded.

        Raises:
            StudyError: it cannot be.
        """
        return Calibration.from_json(self._one(self._pace_question, self._about))

    def estimate(self, experiments: Sequence[Experiment] | None = None) -> PackEstimate:
        """What these of the experiments take as one pack. A pack that was not counted gets its share of all arms together.

        Raises:
            ModelError: none of them fits the model.
        """
        chosen = self.experiments if experiments is None else experiments
        alone, sizes, problems = self._alone(chosen)
        if not alone:
            raise next(iter(problems.values()))
        calibration = self.calibration() if self.engine.name == "packed" else None
        tokens = self.rows.mean_tokens_per_step * len(sizes)
        return PackEstimate(
            prediction=self._together([each for each in chosen if each.id in alone], alone),
            alone=alone,
            rows=self.rows,
            num_trainable={key: num_trainable(self.shape, size) for key, size in sizes.items()},
            num_modules={key: len(size.module_names) for key, size in sizes.items()},
            step_seconds=None if calibration is None else calibration.step_seconds(tokens),
            engine=self.engine,
            problems={key: str(error) for key, error in problems.items()},
        )

    def fits(self, experiments: Sequence[Experiment], *, budget_bytes: int) -> bool:
        """Whether these train together within the budget. An arm that cannot be predicted is tried when it runs."""
        try:
            return self.total_bytes(experiments) <= budget_bytes
        except ModelError:
            return True

    def total_bytes(self, experiments: Sequence[Experiment] | None = None) -> int:
        """The peak of these as one pack, which is counted now if it was not before.

        Raises:
            ModelError: none of them fits the model.
        """
        chosen = self.experiments if experiments is None else experiments
        self.count([chosen])
        sizes, problems = self._sizes(chosen)
        if not sizes:
            raise next(iter(problems.values()))
        together = [each for each in chosen if each.id in sizes]
        if self.engine.name == "packed":
            return self._predict(together).terms.total
        return in_turn([self._predict([each]) for each in together]).terms.total

    def _alone(
        self, experiments: Sequence[Experiment]
    ) -> tuple[dict[str, Prediction], dict[str, ArmSize], dict[str, ModelError]]:
        """By experiment: the prediction of training it alone, what of it takes memory, or why neither is known."""
        sizes, problems = self._sizes(experiments)
        alone: dict[str, Prediction] = {}
        for each in experiments:
            if each.id in sizes:
                try:
                    alone[each.id] = self._predict([each])
                except ModelError as error:
                    problems[each.id] = error
                    del sizes[each.id]
        return alone, sizes, problems

    def _together(self, experiments: Sequence[Experiment], alone: Mapping[str, Prediction]) -> Prediction:
        in_part = [alone[each.id] for each in experiments]
        if len(experiments) == 1:
            return in_part[0]
        if self.engine.name == "reference":
            return in_turn(in_part)
        if self._is_counted(experiments):
            return self._predict(experiments)
        in_whole, _, _ = self._alone(self.experiments)
        whole = [each for each in self.experiments if each.id in in_whole]
        return part_of(self._predict(whole), alone_in_whole=list(in_whole.values()), alone_in_part=in_part)

    def _is_counted(self, experiments: Sequence[Experiment]) -> bool:
        question = self._footprint_question(experiments)
        return self._answers.kept(question, self._about) is not None

    @property
    def _longest_row(self) -> int:
        """Tokens of the longest row that is trained or scored; without a data set, the greatest length."""
        if not self._with_data:
            return self.settings.max_seq_length
        return int(self._one(self._rows_question, self._about_rows)["longest_row"])

    def _sizes(self, experiments: Iterable[Experiment]) -> tuple[dict[str, ArmSize], dict[str, ModelError]]:
        """By experiment: what of it takes memory, or why it does not fit the model."""
        layers = self.shape.linear_layers
        sizes: dict[str, ArmSize] = {}
        problems: dict[str, ModelError] = {}
        for each in experiments:
            try:
                names = targets_of(each.settings, layers)
            except ModelError as error:
                problems[each.id] = error
                continue
            sizes[each.id] = ArmSize(
                r=each.settings.lora_rank, module_names=names, has_dropout=each.settings.lora_dropout > 0
            )
        return sizes, problems

    def _predict(self, experiments: Sequence[Experiment]) -> Prediction:
        sizes, _ = self._sizes(experiments)
        return predict(
            self.shape,
            list(sizes.values()),
            precision=precision_of(self.settings),
            footprint=Footprint.from_json(self._one(self._footprint_question(experiments), self._about)),
            device=self.machine.as_device,
        )

    def _footprint_question(self, experiments: Iterable[Experiment]) -> FootprintQuestion:
        """About the step of these arms, in an order of their own, so that equal packs share their answer."""
        settings, batch = self.settings, self.rows.batch
        arms = [
            CountedArm(
                r=each.settings.lora_rank,
                targets=(each.settings.target_modules, each.settings.layers_to_transform),
                has_dropout=each.settings.lora_dropout > 0,
            )
            for each in experiments
        ]
        return FootprintQuestion(
            engine=self.engine.name,
            device_kind="cuda" if self.machine.device == "cuda" else "cpu",
            folder=self._folder,
            precision=precision_of(settings),
            arms=tuple(sorted(arms, key=lambda arm: canonical_json(vars(arm)))),
            gradient_checkpointing=settings.gradient_checkpointing,
            row_lengths=batch.row_lengths,
            num_labels=batch.num_labels,
            trust_remote_code=settings.trust_remote_code,
        )

    @cached_property
    def _folder(self) -> str:
        """Where the base model's configuration lies. Asked late: a model that is not here keeps nobody from the others."""
        return str(config_folder(self.settings.base_model).resolve())

    @cached_property
    def _about(self) -> str:
        return config_digest(self.settings.base_model)

    @property
    def _model_question(self) -> ModelQuestion:
        return ModelQuestion(folder=self._folder, trust_remote_code=self.settings.trust_remote_code)

    @cached_property
    def _rows_question(self) -> RowsQuestion:
        lengths = {(e.settings.max_steps, e.settings.num_train_epochs) for e in self.experiments}
        return RowsQuestion(
            settings=shared_values(self.settings),
            lengths=tuple(sorted(lengths, key=canonical_json)),
            data_seeds=self._data_seeds,
        )

    @property
    def _about_rows(self) -> str:
        return canonical_json(vars(self.experiments[0].sources))

    @property
    def _pace_question(self) -> PaceQuestion:
        settings = self.settings
        per_row = self.rows.mean_tokens_per_step / (
            settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        )
        lengths = (max(8, round(per_row)),) * settings.per_device_train_batch_size
        return PaceQuestion(
            settings=shared_values(settings)
            | {"target_modules": settings.model_dump(mode="json")["target_modules"]},
            row_lengths=lengths,
            num_labels=sum(lengths) // 2,
            nums_arms=CALIBRATED_ARMS,
        )

    def _one(self, question: Question, about: str) -> dict[str, Any]:
        return self._answers.get(question, about, base_model=self.settings.base_model)


def by_pack(experiments: Iterable[Experiment], answers: Answers, *, with_data: bool) -> list[Estimator]:
    """An estimator for each group that may train together; those that read the same rows share their questions."""
    found = groups(experiments)
    data_seeds: dict[str, set[int]] = {}
    for group in found:
        data_seeds.setdefault(group[0].data_key, set()).add(group[0].data_seed)
    return [
        Estimator(group, answers, with_data=with_data, data_seeds=data_seeds[group[0].data_key])
        for group in found
    ]


def prepare(estimators: Sequence[Estimator], answers: Answers, *, with_alone: bool = True) -> None:
    """Ask a worker for models and rows, and then for everything else that these estimators will need.

    What cannot be answered is told by the estimator that needs it.
    """
    first: list[tuple[Question, str]] = []
    for estimator in estimators:
        with suppress(StudyError):  # its `estimate` tells, too
            first += estimator.first_questions()
    if not first:
        return
    base_model = estimators[0].settings.base_model
    answers.fetch(first, base_model=base_model)
    rest: list[tuple[Question, str]] = []
    for estimator in estimators:
        with suppress(StudyError):  # its `estimate` tells, too
            rest += estimator.questions(with_alone=with_alone)
    answers.fetch(rest, base_model=base_model)


def longest_rows(settings: Settings) -> Rows:
    """A micro-batch of rows of the greatest length, of which all but the first token of each row are trained."""
    num_rows, length = settings.per_device_train_batch_size, settings.max_seq_length
    return Rows(
        batch=MicroBatch(row_lengths=(length,) * num_rows, num_labels=num_rows * (length - 1)),
        num_steps=settings.max_steps,
        mean_tokens_per_step=float(num_rows * length * settings.gradient_accumulation_steps),
    )


def precision_of(settings: Settings) -> Precision:
    """How the settings hold the base."""
    if settings.quantization != "4bit":
        return Precision(quantization=settings.quantization)
    return Precision(
        quantization="4bit",
        quant_type=settings.bnb_4bit_quant_type,
        double_quant=settings.bnb_4bit_use_double_quant,
    )


def within_margin(memory_bytes: int) -> int:
    """What a plan may use of a device's memory."""
    return int(memory_bytes * (1 - MARGIN))


def within_cpu_margin(memory_bytes: float) -> int:
    """What tensors of a worker on a CPU may take of the memory that is its own."""
    return int((memory_bytes * (1 - MARGIN) - PROCESS_BYTES) / HEAP_SHARE)


def cpu_memory_for(tensor_bytes: float) -> float:
    """The memory of which `within_cpu_margin` leaves so much."""
    return (tensor_bytes * HEAP_SHARE + PROCESS_BYTES) / (1 - MARGIN)


def physical_memory() -> int | None:
    """Memory of this machine; None where the system does not say.

    Not what is free at the moment: packs would then differ from one start of a suite to the next, and what goes on
    from a checkpoint must have the company that it began in.
    """
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shared_values(settings: Settings) -> dict[str, Any]:
    """What the experiments of a pack have in common, as plain JSON values."""
    values = settings.model_dump(mode="json")
    return {key: value for key, value in values.items() if key not in ARM_KEYS}


_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """A memory, and what of it tensors may take at their peak."""

    budget_bytes: int
    words: str
    is_of_cpu: bool = False

    def left_free(self) -> str:
        """Why the budget is less than the memory."""
        if self.is_of_cpu:
            return (
                f"{margin_words()}, and half of the rest for what a worker on a CPU holds besides its tensors"
            )
        return f"{margin_words()} for the device's context and the prediction's error"

    def needed(self, peak_bytes: float) -> str:
        """The memory in which a peak would fit, in words."""
        return size(cpu_memory_for(peak_bytes) if self.is_of_cpu else peak_bytes / (1 - MARGIN))


def budget_of(vram: str) -> MemoryBudget:
    """A device with so much memory.

    Raises:
        StudyError: it is no size.
    """
    return MemoryBudget(budget_bytes=within_margin(memory_size(vram)), words=vram)


def budget_here(machine: Machine) -> MemoryBudget:
    """For one training on this machine.

    Raises:
        StudyError: the system does not say how much memory it has.
    """
    budget, memory = machine.budget_bytes(num_workers=1), machine.memory_bytes or physical_memory()
    if budget is None or memory is None:
        raise StudyError("--vram: this system does not say how much memory it has; give a size such as 8GB")
    return MemoryBudget(
        budget_bytes=budget, words=f"this machine's {size(memory)}", is_of_cpu=machine.device != "cuda"
    )


def memory_size(text: str) -> int:
    """Bytes of `8GB`, `80 GiB` or `512MB`. GB is read as GiB, as the makers of graphics cards write it.

    Raises:
        StudyError: it is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match["number"]) <= 0:
        raise StudyError(f"--vram: {text}: give a size such as 8GB, 24GiB or 512MB")
    return int(float(match["number"]) * 1024 ** " KMGT".index(match["unit"].upper() or " "))


def margin_words() -> str:
    """The margin as text."""
    return f"{percent(MARGIN, decimals=0)} of the memory is left free"
