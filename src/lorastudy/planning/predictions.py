"""Predictions for a suite's packs: rows, adapted layers, memory, time, and how many arms a pack holds. A worker counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorastudy.errors import ModelError, StudyError
from lorastudy.executors.process import JobWorker
from lorastudy.planning.adapted import AdaptedArms, adapted_arms
from lorastudy.planning.answers import Answers, Ask
from lorastudy.planning.estimate import Estimator, PackEstimate, by_pack, prepare
from lorastudy.planning.fitting import arms_per_pack, predictions_of
from lorastudy.planning.packing import PlannedPack, remaining_packs
from lorastudy.planning.rows import RowsChecked, check_rows
from lorastudy.protocol.jobs import PaceQuestion, PlanningJob, RowsQuestion
from lorastudy.protocol.records import MemoryPrediction
from lorastudy.report.numbers import listing
from lorastudy.suite.experiment import Experiment

OnWait = Callable[[str], None]
"""Gets a line for the user before a wait of seconds."""


def print_nothing(_: str) -> None:
    """For callers whose user needs no word of a wait."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions for the packs of a suite, as far as there are any; `problems` say what is not predicted, and why."""

    estimators: Mapping[str, Estimator] = field(default_factory=dict)
    arms_per_pack: Mapping[str, int] = field(default_factory=dict)
    rows: RowsChecked = field(default_factory=RowsChecked)
    adapted: AdaptedArms = field(default_factory=AdaptedArms)
    problems: tuple[str, ...] = ()

    def predictions(self, pack: PlannedPack) -> Sequence[MemoryPrediction]:
        """What is predicted of a pack's experiments."""
        estimator = self._of(pack)
        try:
            return [] if estimator is None else predictions_of(pack, estimator)
        except ModelError:  # of none of its experiments; `problems` say why
            return []

    def estimate(self, pack: PlannedPack) -> PackEstimate | None:
        """What a pack will take."""
        estimator = self._of(pack)
        try:
            return None if estimator is None else estimator.estimate(pack.experiments)
        except ModelError:  # of none of its experiments; `problems` say why
            return None

    def _of(self, pack: PlannedPack) -> Estimator | None:
        return self.estimators.get(pack.experiments[0].pack_key)


def without_memory(experiments: Sequence[Experiment], *, on_wait: OnWait = print_nothing) -> Predictions:
    """What becomes of the experiments' rows and what each arm adapts. Memory is not counted, which takes longer.

    Raises:
        DataError: rows cannot be used; the very message that a run would end with.
    """
    with JobWorker() as worker:
        answers = Answers(announced(worker, on_wait))
        return Predictions(rows=check_rows(experiments, answers), adapted=adapted_arms(experiments, answers))


def with_memory(
    experiments: Sequence[Experiment],
    missing: Sequence[Experiment],
    *,
    num_workers: int,
    on_wait: OnWait = print_nothing,
) -> Predictions:
    """Predictions for a suite's packs, which so many workers of this machine serve side by side.

    What cannot be predicted is no reason not to run.

    Raises:
        DataError: the rows of what is missing cannot be used with their base model.
    """
    sizes: dict[str, int] = {}
    problems: list[str] = []
    with JobWorker() as worker:
        answers = Answers(announced(worker, on_wait))
        rows = check_rows(missing or experiments, answers)
        estimators = {
            each.experiments[0].pack_key: each for each in by_pack(experiments, answers, with_data=True)
        }
        adapted = adapted_arms(experiments, answers)
        try:
            prepare(list(estimators.values()), answers)
        except StudyError as error:  # the worker itself ended
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
                problems += _left_out(each, estimate)
        ids = {experiment.id for experiment in missing}
        for pack in remaining_packs(experiments, ids, arms_per_pack=sizes, num_at_once=num_workers):
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


def _not_predicted(group: Sequence[Experiment], error: StudyError) -> str:
    settings = group[0].settings
    return (
        f"memory was not predicted for {settings.base_model} in {settings.quantization}, so its packs are bounded by their "
        f"tokens: {error}"
    )


def _left_out(estimator: Estimator, estimate: PackEstimate) -> list[str]:
    """The arms of which nothing is predicted while the others are, by the reason."""
    arms: dict[str, dict[str, None]] = {}
    for experiment in estimator.experiments:
        if (problem := estimate.problems.get(experiment.id)) is not None:
            arms.setdefault(problem, {})[experiment.arm] = None
    return [f"memory was not predicted for {listing(names)}: {problem}" for problem, names in arms.items()]


def announced(worker: JobWorker, on_wait: OnWait) -> Ask:
    """The worker's answers. It takes seconds to start, so `on_wait` gets a line that says what for, once for each kind."""
    said: set[str] = set()

    def ask(job: PlanningJob) -> dict[str, Any]:
        doing = _doing(job)
        if doing not in said:
            said.add(doing)
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
