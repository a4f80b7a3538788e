"""Predictions for a suite's packs: rows, adapted layers, memory, time, arms per pack, and changes that would fit.

A worker does the counting.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from lorastudy.errors import ModelError, StudyError
from lorastudy.executors.process import JobWorker
from lorastudy.planning.answers import Answers, Ask, Calibration, PacePoint
from lorastudy.planning.design import is_current, libraries_of_now
from lorastudy.planning.estimate import Estimator, Machine, PackEstimate, by_pack, prepare
from lorastudy.planning.packing import ArmWork, PlannedPack, parts, remaining_packs
from lorastudy.planning.suite_facts import AdaptedArms, RowsChecked, adapted_arms, check_rows
from lorastudy.protocol.jobs import PaceQuestion, PlanningJob, RowsQuestion
from lorastudy.protocol.records import MemoryPrediction
from lorastudy.report.numbers import names
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.labels import labels_of
from lorastudy.suite.methods import METHOD_KEYS, TRAINING_KEYS
from lorastudy.suite.settings import Settings

OnWait = Callable[[str], None]
"""Gets a line for the user before a wait of seconds."""


def print_nothing(_: str) -> None:
    """An `OnWait` that ignores its line."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions for the packs of a suite. `problems` say what is not predicted, and why."""

    estimators: Mapping[str, Estimator] = field(default_factory=dict)
    arms_per_pack: Mapping[str, int] = field(default_factory=dict)
    rows: RowsChecked = field(default_factory=RowsChecked)
    adapted: AdaptedArms = field(default_factory=AdaptedArms)
    problems: tuple[str, ...] = ()

    def predictions(self, pack: PlannedPack) -> Sequence[MemoryPrediction]:
        """The predictions for a pack's experiments."""
        estimator = self.estimator(pack)
        try:
            return [] if estimator is None else predictions_of(pack, estimator)
        except ModelError:  # none of its experiments can be predicted; `problems` say why
            return []

    def estimate(self, pack: PlannedPack) -> PackEstimate | None:
        """The estimate of a pack; None if none of its experiments can be predicted."""
        estimator = self.estimator(pack)
        try:
            return None if estimator is None else estimator.estimate(pack.experiments)
        except ModelError:  # none of its experiments can be predicted; `problems` say why
            return None

    def work(self, experiments: Sequence[Experiment]) -> Mapping[str, ArmWork]:
        """By experiment, the work of measuring, training and scoring it; empty if it is not known of all of them."""
        found: dict[str, ArmWork] = {}
        for experiment in experiments:
            estimator = self.estimators.get(experiment.pack_key)
            try:
                work = None if estimator is None else work_of(experiment, estimator)
            except ModelError:  # it cannot be predicted; `problems` say why
                work = None
            if work is None:
                return {}
            found[experiment.id] = work
        return found

    def estimator(self, pack: PlannedPack) -> Estimator | None:
        """The estimator of a pack; None if its memory is not predicted."""
        return self.estimators.get(pack.experiments[0].pack_key)


def num_scored_tokens(estimator: Estimator) -> int:
    """Tokens of the rows that are scored after a training."""
    return sum(read.summary.num_tokens for read in estimator.rows_read if read.summary.split != "train")


def work_of(experiment: Experiment, estimator: Estimator) -> ArmWork | None:
    """Multiplications of an arm's largest step, of its training and of its scoring; None if its steps are not known.

    For a token, a forward pass multiplies once with each of the P frozen weights that are no embedding, and with each of
    the L weights of the adapter. The backward pass does so once more with P, for the gradient of the inputs, and twice
    with L. So training takes 2 P + 3 L a token, and scoring P + L. In full fine-tuning all weights train, and none is frozen.
    Attention and generated answers are left out.
    """
    estimate, shape = estimator.estimate([experiment]), estimator.shape
    rows, accumulation = estimate.rows, estimator.settings.gradient_accumulation_steps
    adapter = estimate.num_trainable[experiment.id]
    if rows.num_steps is None:
        return None
    is_full = experiment.settings.arm_method.is_full
    frozen = 0 if is_full else shape.num_parameters - (shape.vocab_size or 0) * (shape.hidden_size or 0)
    a_token = 2 * frozen + 3 * adapter
    return ArmWork(
        measuring=accumulation * rows.batch.num_tokens * a_token,
        training=round(rows.num_steps * rows.mean_tokens_per_step) * a_token,
        scoring=num_scored_tokens(estimator) * (frozen + adapter),
    )


@contextmanager
def worker_answers(on_wait: OnWait = print_nothing) -> Iterator[Answers]:
    """Answers from the cache, else from a worker. It starts with the first question that is not cached.

    `on_wait` gets a line once for each kind of work.

    Raises:
        StudyError: a library that training needs is not installed.
    """
    libraries_of_now()
    with JobWorker() as worker:
        yield Answers(_announced(worker, on_wait))


def without_memory(experiments: Sequence[Experiment], answers: Answers) -> Predictions:
    """The experiments' rows as a worker reads them, and the layers that each arm adapts. Counts no memory.

    Raises:
        DataError: rows cannot be used. The message is the one that a run would end with.
    """
    return Predictions(rows=check_rows(experiments, answers), adapted=adapted_arms(experiments, answers))


def without_data(experiments: Sequence[Experiment], answers: Answers) -> Predictions:
    """Predictions for experiments whose rows all have the maximum length.

    All experiments that share a base model train in one pack. A worker counts when an estimate is first read.
    """
    estimators = by_pack(experiments, answers, with_data=False)
    return Predictions(
        estimators={each.experiments[0].pack_key: each for each in estimators},
        arms_per_pack={each.experiments[0].pack_key: len(each.experiments) for each in estimators},
    )


def with_memory(
    experiments: Sequence[Experiment],
    missing: Sequence[Experiment],
    *,
    foreseen: Sequence[Experiment],
    rounds: Sequence[Sequence[Experiment]],
    num_workers: int,
    answers: Answers,
) -> Predictions:
    """Predictions for a suite's packs if `num_workers` workers of this machine train side by side.

    The packs of each of the `rounds` are counted as they will run. `foreseen` are as in `by_pack`. A memory prediction that fails does not prevent the
    run: its reason becomes one of the `problems`.

    Raises:
        DataError: rows of the experiments cannot be used with their base model.
    """
    sizes: dict[str, int] = {}
    problems: list[str] = []
    rows = check_rows(experiments, answers, foreseen=foreseen)
    estimators = {
        each.experiments[0].pack_key: each
        for each in by_pack(experiments, answers, with_data=True, foreseen=foreseen)
    }
    adapted = adapted_arms(experiments, answers)
    try:
        prepare(list(estimators.values()), answers)
    except StudyError as error:  # the worker itself died
        return Predictions(rows=rows, adapted=adapted, problems=(_not_predicted(experiments, error),))
    for key, each in list(estimators.items()):
        try:
            estimate = each.estimate()
            budget = each.machine.budget_bytes(num_workers=num_workers)
            sizes[key] = arms_per_pack(each, budget_bytes=budget)
        except StudyError as error:
            del estimators[key]
            problems.append(_not_predicted(each.experiments, error))
        else:
            problems += _left_out(each, estimate, labels=labels_of(experiments))
    ids = {experiment.id for experiment in missing}
    for of_round in rounds:
        for pack in remaining_packs(of_round, ids, arms_per_pack=sizes, num_at_once=num_workers):
            key = pack.experiments[0].pack_key
            if key in estimators:
                estimators[key].count([pack.experiments])
    return Predictions(
        estimators=estimators,
        arms_per_pack=sizes,
        rows=rows,
        adapted=adapted,
        problems=tuple(dict.fromkeys(problems)),
    )


#: Settings that decide the time of a step, besides its tokens and the number of arms.
_PACE_SETTINGS = (
    "base_model", "quantization", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "target_modules",
    "layers_to_transform", "exclude_modules", "gradient_checkpointing", "deterministic", *METHOD_KEYS,
    *TRAINING_KEYS,
)  # fmt: skip


def use_stored_times(
    predicted: Predictions, results: Sequence[ExperimentResult], *, num_threads: int | None = None
) -> None:
    """Predict times from the packs of these results, where no steps were timed for the plan.

    `num_threads` is the executor's. If it is None, a worker has as many as the worker that plans.
    The number of arms in a pack does not follow from them: a resumed suite forms the packs that it began with.
    """
    for estimator in predicted.estimators.values():
        with suppress(StudyError):  # without a prediction of memory there is none of time
            machine = estimator.machine
            estimator.stored = stored_calibration(
                results,
                settings=estimator.settings,
                machine=machine if num_threads is None else replace(machine, num_threads=num_threads),
                engine=estimator.engine.name,
            )


def stored_calibration(
    results: Sequence[ExperimentResult], *, settings: Settings, machine: Machine, engine: str
) -> Calibration | None:
    """The median steps of stored packs with these settings, on this machine and the installed libraries.

    None if there are none. A pack's tokens in a step are its tokens a second times the seconds of its median step.
    """
    wanted = settings.model_dump(mode="json")
    points: dict[tuple[str | None, int | None], PacePoint] = {}
    for result in results:
        pack, here = result.pack_profile, result.environment
        if pack is None or here is None or pack.median_step_seconds is None or pack.tokens_per_second is None:
            continue
        is_here = (here.device, here.device_name, here.num_threads) == (
            machine.device, machine.device_name, machine.num_threads,
        )  # fmt: skip
        # Runs from before there were these keys trained plain LoRA with AdamW.
        settled = {**METHOD_KEYS, **TRAINING_KEYS, **result.settings}
        is_alike = all(settled.get(key) == wanted[key] for key in _PACE_SETTINGS)
        if pack.engine == engine and is_here and is_alike and is_current(here):
            points[result.pack_id, result.attempt] = PacePoint(
                num_arms=pack.num_arms,
                num_tokens=round(pack.tokens_per_second * pack.median_step_seconds),
                seconds=pack.median_step_seconds,
            )
    if not points:
        return None
    return Calibration(points=tuple(points.values()), source="stored runs of this machine")


def _not_predicted(group: Sequence[Experiment], error: StudyError) -> str:
    settings = group[0].settings
    return (
        f"memory was not predicted for {settings.base_model} in {settings.quantization}, so its packs are bounded by their "
        f"tokens: {error}"
    )


def _left_out(estimator: Estimator, estimate: PackEstimate, *, labels: Mapping[str, str]) -> list[str]:
    """One line for each reason why some arms have no prediction while the others have one."""
    arms: dict[str, dict[str, None]] = {}
    for experiment in estimator.experiments:
        if (problem := estimate.problems.get(experiment.id)) is not None:
            arms.setdefault(problem, {})[labels[experiment.arm]] = None
    return [f"memory was not predicted for {names(left)}: {problem}" for problem, left in arms.items()]


def _announced(worker: JobWorker, on_wait: OnWait) -> Ask:
    """The worker's answers, announced. A worker needs seconds, so `on_wait` gets a line once for each kind of work."""
    announced: set[str] = set()

    def ask(job: PlanningJob) -> dict[str, Any]:
        doing = _doing(job)
        if doing not in announced:
            announced.add(doing)
            on_wait(f"planning: {doing} (kept for next time)")
        return worker.do(job)

    return ask


def _doing(job: PlanningJob) -> str:
    kinds = {type(question) for question in job.questions}
    if PaceQuestion in kinds:
        return "loading the model and timing a few steps of it"
    if kinds == {RowsQuestion}:
        return "reading the rows with the base model's tokenizer"
    return "counting what this model holds in memory while it trains"


#: No suggestion shortens rows below this number of tokens: shorter rows would lose most answers.
SHORTEST_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A change of settings, and the pack's peak memory with it. No change alters the effective batch."""

    change: str
    num_arms: int
    total_bytes: int
    fits: bool


def arms_per_pack(estimator: Estimator, *, budget_bytes: int | None) -> int:
    """The largest number of arms per pack with which all packs are predicted to fit.

    If steps were timed, it is the fastest timed number of arms up to that one. It is 1 if not even one arm is predicted
    to fit: the run then shows whether it does. Memory grows with the number of arms, so bisection finds the number.
    """
    experiments = estimator.experiments

    def all_fit(size: int) -> bool:
        return budget_bytes is None or all(
            estimator.fits(part, budget_bytes=budget_bytes) for part in parts(experiments, size=size)
        )

    fitting = _most(all_fit, at_most=len(experiments)) or 1
    calibration = estimator.calibration()
    return fitting if calibration is None else calibration.best_num_arms(at_most=fitting)


def predictions_of(pack: PlannedPack, estimator: Estimator) -> list[MemoryPrediction]:
    """The prediction for each experiment of a pack, as the store keeps it beside the measurement."""
    estimate = estimator.estimate(pack.experiments)
    # Times from stored runs are left out, so that a resumed suite stores what an uninterrupted one does.
    step_seconds = None if estimate.calibration is estimator.stored else estimate.step_seconds
    return [
        MemoryPrediction(
            experiment_id=experiment_id,
            memory_kind="cuda_allocated" if estimator.machine.device == "cuda" else "cpu_tensors",
            num_tokens=estimate.rows.batch.num_tokens,
            num_labels=estimate.rows.batch.num_labels,
            alone_bytes=alone.terms.total,
            pack_bytes=estimate.prediction.terms.total,
            step_seconds=step_seconds,
            **dict(alone.terms.named()),
        )
        for experiment_id, alone in estimate.alone.items()
    ]


def suggestions(
    experiments: Sequence[Experiment], answers: Answers, *, budget_bytes: int
) -> list[Suggestion]:
    """Changes that may make the arms fit: first single ones, the mildest first, then combinations.

    No change alters the effective batch: a smaller micro-batch is accumulated more often.
    """
    tried = [(change, Estimator(arms, answers, with_data=False)) for change, arms in _changes(experiments)]
    prepare([estimator for _, estimator in tried], answers, with_alone=False)
    return [
        Suggestion(
            change=change,
            num_arms=len(estimator.experiments),
            total_bytes=estimator.total_bytes(),
            fits=estimator.total_bytes() <= budget_bytes,
        )
        for change, estimator in tried
    ]


def fewer_arms(estimator: Estimator, *, budget_bytes: int) -> Suggestion | None:
    """The largest pack that fits and has fewer arms than now; None if not even one arm fits."""

    def total_bytes(num_arms: int) -> int:
        return estimator.total_bytes(estimator.experiments[:num_arms])

    num_arms = _most(
        lambda number: total_bytes(number) <= budget_bytes, at_most=len(estimator.experiments) - 1
    )
    if not num_arms:
        return None
    packs = -(-len(estimator.experiments) // num_arms)
    return Suggestion(
        change=f"{num_arms} arm{'s' * (num_arms > 1)} per pack ({packs} packs, one after another)",
        num_arms=num_arms,
        total_bytes=total_bytes(num_arms),
        fits=True,
    )


def _most(holds: Callable[[int], bool], *, at_most: int) -> int:
    """The largest number up to `at_most` for which `holds` is true, by bisection; 0 if it is false for 1."""
    if at_most < 1 or holds(at_most):
        return max(0, at_most)
    most, too_many = 0, at_most
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if holds(middle) else (most, middle)
    return most


def _changes(experiments: Sequence[Experiment]) -> Iterator[tuple[str, list[Experiment]]]:
    settings = experiments[0].settings
    mild: dict[str, object] = {}
    if not settings.gradient_checkpointing:
        mild["gradient_checkpointing"] = True
        yield "gradient_checkpointing: true", _with(experiments, mild)
    rows, accumulation = settings.per_device_train_batch_size, settings.gradient_accumulation_steps
    if rows > 1:
        one_row: dict[str, object] = {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": accumulation * rows,
        }
        name = f"per_device_train_batch_size: 1 with gradient_accumulation_steps: {accumulation * rows}"
        yield name, _with(experiments, one_row)
        mild |= one_row
    is_full = settings.arm_method.is_full
    if settings.quantization != "4bit" and settings.arm_method.has_lora:
        yield "quantization: 4bit", _with(experiments, {"quantization": "4bit"})
    if settings.max_seq_length >= 2 * SHORTEST_ROWS:
        half = settings.max_seq_length // 2
        yield f"max_seq_length: {half}", _with(experiments, {"max_seq_length": half})
    if len(mild) > 1:
        yield "checkpointing and micro-batches of 1 row", _with(experiments, mild)
    if is_full:
        yield "an adapter of rank 16 on qkvo, in place of method: full", _with(experiments, {"method": None})
        return
    if not settings.arm_method.has_lora:
        return
    everything = mild | {"quantization": "4bit"}
    yield "all of these, one arm per pack, 4bit", _with(experiments[:1], everything)


def _with(experiments: Sequence[Experiment], values: dict[str, object]) -> list[Experiment]:
    def changed(settings: Settings) -> Settings:
        return settings.model_copy(update=values)

    return [replace(each, settings=changed(each.settings)) for each in experiments]
