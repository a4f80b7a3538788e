"""Estimates of packs before they run: memory term by term, time if steps were timed here, and whether a pack fits.

One worker answers the questions of a whole plan, once. Everything after that is arithmetic on cached answers.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from lorastudy.errors import ModelError, StudyError
from lorastudy.planning.answers import Answers, Calibration, config_digest
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
    saved_bytes,
)
from lorastudy.planning.packing import ForeseenEngine, groups
from lorastudy.planning.rows import Rows, longest_rows, rows_of_answer
from lorastudy.protocol.jobs import (
    CountedArm,
    Footprint,
    FootprintQuestion,
    MachineQuestion,
    ModelQuestion,
    PaceQuestion,
    Precision,
    Question,
    RowsQuestion,
    SizeQuestion,
)
from lorastudy.protocol.records import RowsRead
from lorastudy.report.numbers import percent, size
from lorastudy.suite.experiment import Experiment, canonical_json
from lorastudy.suite.methods import METHOD_KEYS, ON_GPU_ONLY, TRAINING_KEYS, optimizer_problem
from lorastudy.suite.settings import ARM_KEYS, Settings
from lorastudy.suite.targets import CountedSize, targets_of

#: Share of the device's memory that a plan leaves free: for the CUDA context and libraries, for memory lost between
#: tensors, and for the error of the prediction.
MARGIN = 0.10

#: Memory of a worker on a CPU before it holds a tensor: libraries, and the tokenised rows.
PROCESS_BYTES = 600 << 20

#: Bytes of a CPU worker's heap per byte of tensors at their peak. The worker returns no memory to the system, because
#: that costs half of its speed (docs/log.md). Steps of different lengths leave gaps between tensors. 1.5 was measured.
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

    @property
    def as_device(self) -> Device:
        """The device as the memory formulas take it."""
        return Device(kind=self.device)

    def budget_bytes(self, *, num_workers: int) -> int | None:
        """Bytes that a pack's tensors may take at their peak, after the margin; None if the memory is not known.

        On a GPU, each worker has a device of its own. On a CPU, the workers share the machine's memory, and each takes
        more of it than its tensors do.
        """
        if self.device == "cuda":
            return None if self.memory_bytes is None else within_margin(self.memory_bytes)
        memory = physical_memory()
        return None if memory is None else within_cpu_margin(memory / num_workers)


@dataclass(frozen=True, kw_only=True)
class PackEstimate:
    """Memory and time of one pack. Experiments that do not fit the model are left out."""

    prediction: Prediction
    alone: Mapping[str, Prediction]
    """By experiment: the prediction of training it alone, as the profile measures it."""
    rows: Rows
    num_trainable: Mapping[str, int]
    saved_bytes: Mapping[str, int]
    """Bytes of the weights in the adapter's file, or in the model's for full fine-tuning."""
    num_modules: Mapping[str, int]
    step_seconds: float | None
    calibration: Calibration | None
    """The timed steps that `step_seconds` follows from."""
    engine: ForeseenEngine
    problems: Mapping[str, str]
    """By experiment: why it has no prediction. The others are predicted without it."""

    @property
    def train_seconds(self) -> float | None:
        """Seconds of all steps; None if no step was timed or the number of steps is not known."""
        if self.step_seconds is None or self.rows.num_steps is None:
            return None
        return self.step_seconds * self.rows.num_steps


class Estimator:
    """Predictions for experiments that differ only in their arms and orders: they share base, precision, data, batch."""

    def __init__(
        self,
        experiments: Sequence[Experiment],
        answers: Answers,
        *,
        with_data: bool,
        data_seeds: Collection[int] = (),
    ) -> None:
        """`with_data` reads the training rows; without it, every row is assumed to have the maximum length.

        `data_seeds` are further orders of the same rows, which may follow (`by_pack` finds them). One question then
        covers all orders, and its counted steps serve all packs.
        """
        self.experiments = tuple(experiments)
        self._data_seeds = tuple(sorted({*(each.data_seed for each in experiments), *data_seeds}))
        self.settings = experiments[0].settings
        self._answers = answers
        self._with_data = with_data
        self.stored: Calibration | None = None
        """The steps of runs in the store; they count if no steps were timed for the plan."""

    def first_questions(self) -> list[tuple[Question, str]]:
        """The questions on machine, model and rows. Their answers decide which step to count, and on which engine."""
        questions: list[tuple[Question, str]] = [(MachineQuestion(), ""), (self._model_question, self._about)]
        if self._with_data:
            questions.append((self._rows_question, self._about_rows))
        return questions

    def questions(self, *, with_alone: bool = True) -> list[tuple[Question, str]]:
        """The questions that `estimate` needs: a step of all arms together, and a step of each arm alone."""
        sizes, _ = self._sizes(self.experiments)
        packs = [[each] for each in self.experiments if each.id in sizes] if with_alone else []
        return self._questions_of([*packs, self.experiments])

    def count(self, packs: Iterable[Sequence[Experiment]]) -> None:
        """Have the steps of these packs counted, for `estimate` to use."""
        with suppress(StudyError):  # `estimate` raises it
            self._answers.fetch(self._questions_of(packs), base_model=self.settings.base_model)

    def _questions_of(self, packs: Iterable[Sequence[Experiment]]) -> list[tuple[Question, str]]:
        questions: dict[Question, str] = {}
        for pack in packs:
            sizes, _ = self._sizes(pack)
            together = [each for each in pack if each.id in sizes]
            is_packed = self.engine.name == "packed"
            for counted in [together] if is_packed else [[each] for each in together]:
                if counted:
                    questions[self._footprint_question(counted)] = self._about
        return list(questions.items())

    @cached_property
    def machine(self) -> Machine:
        """The device on which a worker of this machine would train."""
        return Machine(**self._one(MachineQuestion(), ""))

    @cached_property
    def shape(self) -> ModelShape:
        """The base model's shape."""
        return ModelShape.from_json(self._one(self._model_question, self._about))

    @cached_property
    def engine(self) -> ForeseenEngine:
        """The engine that will train. With `auto`, the packed engine if it supports the model and the rows.

        Raises:
            ModelError: the settings name the packed engine, and it does not support the model or the rows; or the optimizer
                needs a GPU, and there is none.
        """
        requested, optim = self.settings.engine, self.settings.optim
        if optim in ON_GPU_ONLY and self.machine.device != "cuda":
            raise ModelError(optimizer_problem(optim))
        if requested == "reference":
            return ForeseenEngine(name="reference")
        only = self.settings.arm_method.only_in_reference
        if only is not None:
            return ForeseenEngine(name="reference", reason=only)
        problem = self.shape.packed_problem
        span, longest = self.shape.span_on(self.machine.device, self.settings.quantization), self._longest_row
        if problem is None and span is not None and longest > span:
            problem = f"some of its layers see {span} tokens at once (a sliding window), and the longest row has {longest}"
        if problem is None and requested == "auto":
            problem = self._experts_problem()
        if problem is None:
            return ForeseenEngine(name="packed")
        if requested == "packed":
            raise ModelError(f"engine: packed: {problem}; set `engine: auto` or `engine: reference`")
        return ForeseenEngine(name="reference", reason=problem)

    def _experts_problem(self) -> str | None:
        """Why the packed engine cannot train these arms: one of them adapts weights of experts. None if none does."""
        layers = self.shape.layers_by_name()
        sizes, _ = self._sizes(self.experiments)
        adapted = (name for size in sizes.values() for name in size.module_names)
        parameter = next((name for name in adapted if layers[name].is_parameter), None)
        return None if parameter is None else f"{parameter} holds the weights of experts"

    @cached_property
    def rows(self) -> Rows:
        """The rows. The micro-batch is the largest over all orders, so an arm alone has one prediction for all seeds."""
        if not self._with_data:
            return longest_rows(self.settings)
        answer = self._one(self._rows_question, self._about_rows)
        own = {each.data_seed for each in self.experiments}
        return rows_of_answer(answer, data_seeds=self._data_seeds, own=own)

    @property
    def rows_read(self) -> tuple[RowsRead, ...]:
        """The rows of each split as a worker read them; empty without a data set."""
        if not self._with_data:
            return ()
        answer = self._one(self._rows_question, self._about_rows)
        return tuple(map(RowsRead.from_json, answer["splits"]))

    def calibration(self) -> Calibration | None:
        """The steps timed on this machine; None if none were timed."""
        kept = self._answers.kept(self._pace_question, self._about)
        return None if kept is None else Calibration.from_json(kept)

    def calibrate(self) -> Calibration:
        """Time steps now. This loads the base model.

        Raises:
            StudyError: the base model cannot be loaded.
        """
        return Calibration.from_json(self._one(self._pace_question, self._about))

    def estimate(self, experiments: Sequence[Experiment] | None = None) -> PackEstimate:
        """The estimate of these experiments as one pack.

        If the pack's step was not counted, it gets its share of the step of all arms together (`memory.part_of`).

        Raises:
            ModelError: none of the experiments fits the model.
        """
        chosen = self.experiments if experiments is None else experiments
        alone, sizes, problems = self._alone(chosen)
        if not alone:
            raise next(iter(problems.values()))
        calibration = self.calibration() or self.stored
        tokens = self.rows.tokens_per_step(each for each in chosen if each.id in sizes)
        return PackEstimate(
            prediction=self._together([each for each in chosen if each.id in alone], alone),
            alone=alone,
            rows=self.rows,
            num_trainable={key: num_trainable(self.shape, size) for key, size in sizes.items()},
            saved_bytes={
                key: saved_bytes(self.shape, size, precision=precision_of(self.settings))
                for key, size in sizes.items()
            },
            num_modules={key: len(size.module_names) for key, size in sizes.items()},
            step_seconds=None if calibration is None else calibration.step_seconds(tokens),
            calibration=calibration,
            engine=self.engine,
            problems={key: str(error) for key, error in problems.items()},
        )

    def fits(self, experiments: Sequence[Experiment], *, budget_bytes: int) -> bool:
        """Whether the pack fits the budget. True if nothing can be predicted: the run then shows whether it fits."""
        try:
            return self.total_bytes(experiments) <= budget_bytes
        except ModelError:
            return True

    def total_bytes(self, experiments: Sequence[Experiment] | None = None) -> int:
        """The peak bytes of these experiments as one pack. Has the pack's step counted if it was not.

        Raises:
            ModelError: none of the experiments fits the model.
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
        """By experiment: the prediction of training it alone, its size, or the error that prevents both."""
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
        """Tokens of the longest row that is trained or scored; without a data set, the maximum length."""
        if not self._with_data:
            return self.settings.max_seq_length
        return int(self._one(self._rows_question, self._about_rows)["longest_row"])

    def _sizes(self, experiments: Iterable[Experiment]) -> tuple[dict[str, ArmSize], dict[str, ModelError]]:
        """By experiment: its size, or why it does not fit the model."""
        sizes: dict[str, ArmSize] = {}
        problems: dict[str, ModelError] = {}
        for each in experiments:
            try:
                sizes[each.id] = self.size_of(each.settings)
            except ModelError as error:
                problems[each.id] = error
        return sizes, problems

    def size_of(self, settings: Settings) -> ArmSize:
        """What memory depends on of an arm with these settings.

        Raises:
            ModelError: the arm does not fit the model.
        """
        return ArmSize(
            r=settings.lora_rank,
            module_names=targets_of(settings, self.shape.linear_layers),
            has_dropout=settings.lora_dropout > 0,
            method=settings.arm_method,
            counted=self._counted(settings) if settings.arm_method.is_counted else None,
        )

    def _counted(self, settings: Settings) -> CountedSize:
        question = SizeQuestion(
            folder=self._folder,
            precision=precision_of(settings),
            arms=(CountedArm.of(settings),),
            trust_remote_code=settings.trust_remote_code,
        )
        return CountedSize(**self._one(question, self._about))

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
        """The question on the step of these arms. Arms are sorted, so that equal packs share one answer."""
        settings, batch, experiments = self.settings, self.rows.batch, list(experiments)
        num_arms = Counter(each.data_seed for each in experiments)
        own = self.rows.side_by_side(num_arms) if len(num_arms) > 1 else {}
        arms = [
            CountedArm.of(each.settings, order=list(own).index(each.data_seed) if own else 0)
            for each in experiments
        ]
        return FootprintQuestion(
            engine=self.engine.name,
            device_kind="cuda" if self.machine.device == "cuda" else "cpu",
            folder=self._folder,
            precision=precision_of(settings),
            arms=tuple(sorted(arms, key=lambda arm: canonical_json(asdict(arm)))),
            gradient_checkpointing=settings.gradient_checkpointing,
            row_lengths=batch.row_lengths,
            num_labels=batch.num_labels,
            trust_remote_code=settings.trust_remote_code,
            orders=tuple(own.values()),
        )

    @cached_property
    def _folder(self) -> str:
        """The folder of the base model's configuration. Looked up late, so that a missing model fails alone."""
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
        own = settings.model_dump(mode="json")
        per_row = self.rows.mean_tokens_per_step / (
            settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        )
        lengths = (max(8, round(per_row)),) * settings.per_device_train_batch_size
        return PaceQuestion(
            engine=self.engine.name,
            settings=shared_values(settings)
            | {key: own[key] for key in ("target_modules", *METHOD_KEYS, *TRAINING_KEYS)},
            row_lengths=lengths,
            num_labels=sum(lengths) // 2,
            nums_arms=CALIBRATED_ARMS if self.engine.name == "packed" else (1,),
        )

    def _one(self, question: Question, about: str) -> dict[str, Any]:
        return self._answers.get(question, about, base_model=self.settings.base_model)


def by_pack(
    experiments: Sequence[Experiment],
    answers: Answers,
    *,
    with_data: bool,
    foreseen: Sequence[Experiment] = (),
) -> list[Estimator]:
    """An estimator for each group that may train together. Groups with the same rows share their questions.

    `foreseen` are experiments of the suite that may follow. The question on the rows covers their orders too, so a suite
    asks it once, whatever is known of it.
    """
    data_seeds: dict[str, set[int]] = {}
    for each in [*experiments, *foreseen]:
        data_seeds.setdefault(each.data_key, set()).add(each.data_seed)
    return [
        Estimator(group, answers, with_data=with_data, data_seeds=data_seeds[group[0].data_key])
        for group in groups(experiments)
    ]


def prepare(estimators: Sequence[Estimator], answers: Answers, *, with_alone: bool = True) -> None:
    """Ask a worker for models and rows, and then for everything else that these estimators need.

    If a question cannot be answered, the estimator that needs the answer raises the error.
    """
    first: list[tuple[Question, str]] = []
    for estimator in estimators:
        with suppress(StudyError):  # its `estimate` raises it again
            first += estimator.first_questions()
    if not first:
        return
    base_model = estimators[0].settings.base_model
    answers.fetch(first, base_model=base_model)
    rest: list[tuple[Question, str]] = []
    for estimator in estimators:
        with suppress(StudyError):  # its `estimate` raises it again
            rest += estimator.questions(with_alone=with_alone)
    answers.fetch(rest, base_model=base_model)


def precision_of(settings: Settings) -> Precision:
    """The precision in which the settings hold the base model."""
    if settings.quantization != "4bit":
        return Precision(quantization=settings.quantization)
    return Precision(
        quantization="4bit",
        quant_type=settings.bnb_4bit_quant_type,
        double_quant=settings.bnb_4bit_use_double_quant,
    )


def within_margin(memory_bytes: int) -> int:
    """Bytes of a device's memory that a plan may use."""
    return int(memory_bytes * (1 - MARGIN))


def within_cpu_margin(memory_bytes: float) -> int:
    """Bytes that the tensors of a CPU worker may take, of the memory reserved for that worker."""
    return int((memory_bytes * (1 - MARGIN) - PROCESS_BYTES) / HEAP_SHARE)


def cpu_memory_for(tensor_bytes: float) -> float:
    """Inverse of `within_cpu_margin`: the memory that a CPU worker needs for these tensors."""
    return (tensor_bytes * HEAP_SHARE + PROCESS_BYTES) / (1 - MARGIN)


def physical_memory() -> int | None:
    """Bytes of this machine's memory; None if the system does not say.

    This is the total, not what is free now. Free memory would change the packs from one start of a suite to the next,
    and an arm must resume from its checkpoint in the same pack.
    """
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def shared_values(settings: Settings) -> dict[str, Any]:
    """The settings that all experiments of a pack share, as plain JSON values."""
    values = settings.model_dump(mode="json")
    return {key: value for key, value in values.items() if key not in {*ARM_KEYS, "data_seed"}}


_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """A memory in words, and the bytes of it that tensors may take at their peak."""

    budget_bytes: int
    words: str
    is_of_cpu: bool = False

    def left_free(self) -> str:
        """Why the budget is less than the memory."""
        if self.is_of_cpu:
            return f"{_margin_words()}, and half of the rest for what a worker on a CPU holds besides its tensors"
        return f"{_margin_words()} for the device's context and the prediction's error"

    def needed(self, peak_bytes: float) -> str:
        """The memory that this peak needs, in words."""
        return size(cpu_memory_for(peak_bytes) if self.is_of_cpu else peak_bytes / (1 - MARGIN))


def budget_of(vram: str) -> MemoryBudget:
    """The budget of a device with this much memory.

    Raises:
        StudyError: the text is not a size.
    """
    return MemoryBudget(budget_bytes=within_margin(memory_size(vram)), words=vram)


def budget_here(machine: Machine) -> MemoryBudget:
    """The budget of a single training on this machine.

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
    """Bytes of a text such as `8GB`, `80 GiB` or `512MB`. GB means GiB, as on the boxes of graphics cards.

    Raises:
        StudyError: the text has another form, or is 0.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match["number"]) <= 0:
        raise StudyError(f"--vram: {text}: give a size such as 8GB, 24GiB or 512MB")
    return int(float(match["number"]) * 1024 ** " KMGT".index(match["unit"].upper() or " "))


def _margin_words() -> str:
    """The margin as text."""
    return f"{percent(MARGIN, decimals=0)} of the memory is left free"
