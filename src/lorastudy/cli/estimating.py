"""Predictions for the commands: what is asked of a worker, and how an estimate is shown."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from lorastudy.cli.console import PlainConsole
from lorastudy.cli.terminal import say
from lorastudy.errors import ModelError, StudyError
from lorastudy.executors.job_worker import JobWorker
from lorastudy.jobs import PaceQuestion, PlanningJob, RowsQuestion
from lorastudy.planner.adapted import AdaptedArms, adapted_arms
from lorastudy.planner.answers import Answers, Ask
from lorastudy.planner.disk import adapters_bytes, checkpoint_bytes, records_bytes
from lorastudy.planner.estimate import MARGIN, Estimator, PackEstimate, by_pack, prepare
from lorastudy.planner.fitting import arms_per_pack, predictions_of
from lorastudy.planner.packing import PlannedPack
from lorastudy.planner.rows import RowsChecked, check_rows
from lorastudy.planner.time import Calibration
from lorastudy.records import MemoryPrediction
from lorastudy.report.numbers import count, duration, listing, percent, size
from lorastudy.spec.experiment import Experiment

#: How a term is called where a user reads it.
TERMS = {
    "base_weights": "base weights",
    "quantisation_constants": "quantisation constants",
    "adapters": "adapters",
    "gradients": "gradients",
    "optimizer": "optimizer (AdamW)",
    "activations": "activations",
    "loss": "loss",
    "workspace": "workspace",
    "allocator_slack": "allocator slack",
}


@dataclass(frozen=True, kw_only=True)
class SuitePlan:
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


def checked(experiments: Sequence[Experiment]) -> tuple[RowsChecked, AdaptedArms]:
    """Whether the experiments' rows can be used with their base models and how many of them; and what each arm adapts.

    Raises:
        DataError: rows cannot be used; the very message that a run would end with.
        ModelError: an arm does not fit its base model.
    """
    with JobWorker() as worker:
        answers = Answers(asked_aloud(worker))
        rows, adapted = check_rows(experiments, answers), adapted_arms(experiments, answers)
    if adapted.misfits:
        raise ModelError("\n".join(adapted.misfits.values()))
    return rows, adapted


def plan_of(
    experiments: Sequence[Experiment], missing: Sequence[Experiment], *, num_workers: int
) -> SuitePlan:
    """Predictions for a suite's packs, which so many workers of this machine serve side by side.

    What cannot be predicted is no reason not to run.

    Raises:
        DataError: the rows of what is missing cannot be used with their base model.
    """
    sizes: dict[str, int] = {}
    problems: list[str] = []
    with JobWorker() as worker:
        answers = Answers(asked_aloud(worker))
        rows = check_rows(missing or experiments, answers)
        estimators = {
            each.experiments[0].pack_key: each for each in by_pack(experiments, answers, with_data=True)
        }
        adapted = adapted_arms(experiments, answers)
        try:
            prepare(list(estimators.values()), answers)
        except StudyError as error:  # the worker itself ended
            return SuitePlan(rows=rows, adapted=adapted, problems=(_not_predicted(experiments, error),))
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
    return SuitePlan(
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


def asked_aloud(worker: JobWorker) -> Ask:
    """The worker's answers; it takes seconds to start, and who waits is told what for, once."""
    said: set[str] = set()

    def ask(job: PlanningJob) -> dict[str, Any]:
        doing = _doing(job)
        if doing not in said:
            said.add(doing)
            say(f"planning: {doing} (kept for next time)", file=sys.stderr)
        return worker.do(job)

    return ask


def _doing(job: PlanningJob) -> str:
    kinds = {type(question) for question in job.questions}
    if PaceQuestion in kinds:
        return "loading the model and timing a few steps of it"
    if kinds == {RowsQuestion}:
        return "reading the rows with the base model's tokenizer"
    return "counting what this model holds in memory while it trains"


def say_problem(plan: SuitePlan) -> None:
    """Tell on stderr what is not predicted, and why."""
    for problem in plan.problems:
        say(f"note: {problem}", file=sys.stderr)


def pack_line(estimate: PackEstimate) -> str:
    """One line on what a pack will take."""
    batch = estimate.rows.batch
    parts = [
        str(estimate.engine),
        (
            f"predicted peak {size(estimate.prediction.terms.total)}, in the {estimate.prediction.phase} of its largest "
            f"micro-batch ({batch.num_tokens} tokens an arm)"
        ),
    ]
    if estimate.step_seconds is not None:
        parts.append(f"{duration(estimate.step_seconds)} a step")
    if estimate.train_seconds is not None:
        parts.append(f"{duration(estimate.train_seconds)} of training")
    parts.append(f"{size(disk_bytes(estimate))} of disk")
    return "; ".join(parts)


def disk_bytes(estimate: PackEstimate) -> int:
    """Adapters, checkpoints and records of a pack."""
    adapters = sum(
        adapters_bytes(p, num_modules=estimate.num_modules[key]) for key, p in estimate.num_trainable.items()
    )
    checkpoints = sum(checkpoint_bytes(p) for p in estimate.num_trainable.values())
    steps = estimate.rows.num_steps or 0
    return adapters + checkpoints + records_bytes(num_steps=steps, num_arms=len(estimate.num_trainable))


def show_terms(console: PlainConsole, estimate: PackEstimate) -> None:
    """A table of the terms and their sum."""
    table = Table(box=None, show_header=True, header_style="bold", pad_edge=False)
    table.add_column("held by")
    table.add_column("bytes", justify="right")
    table.add_column("share", justify="right")
    terms = estimate.prediction.terms
    for name, num_bytes in terms.named():
        if num_bytes:
            table.add_row(TERMS[name], size(num_bytes), percent(num_bytes / terms.total))
    table.add_row(
        Text("predicted peak", style="bold"),
        Text(size(terms.total), style="bold"),
        f"in the {estimate.prediction.phase}",
    )
    console.print(table)


def show_time(console: PlainConsole, estimate: PackEstimate, *, calibration: Calibration) -> None:
    """What a step and the whole training take, then what was timed, by the number of arms."""
    assert estimate.step_seconds is not None
    whole = ""
    if estimate.train_seconds is not None:
        whole = f"; {duration(estimate.train_seconds)} for {count(estimate.rows.num_steps or 0)} steps"
    console.print(
        f"\ntime: {duration(estimate.step_seconds)} a step of all arms{whole}, by the steps timed here:"
    )
    table = Table(box=None, show_header=True, header_style="bold", pad_edge=False)
    for title in ("arms together", "a step", "an arm's share", "tokens a second"):
        table.add_column(title, justify="right")
    for point in calibration.points:
        table.add_row(
            count(point.num_arms),
            duration(point.seconds),
            duration(point.seconds / point.num_arms),
            count(point.tokens_per_second),
        )
    console.print(table)


def terms_as_json(estimate: PackEstimate) -> dict[str, Any]:
    """The estimate as plain JSON values."""
    terms = estimate.prediction.terms
    return {
        "num_arms": len(estimate.num_trainable),
        "num_tokens": estimate.rows.batch.num_tokens,
        "engine": estimate.engine.name,
        "engine_reason": estimate.engine.reason,
        "peak_bytes": terms.total,
        "peak_phase": estimate.prediction.phase,
        "terms_bytes": dict(terms.named()),
        "num_trainable_parameters": sum(estimate.num_trainable.values()),
        "step_seconds": estimate.step_seconds,
        "disk_bytes": disk_bytes(estimate),
    }


def margin_words() -> str:
    """The margin as text."""
    return f"{percent(MARGIN, decimals=0)} of the memory is left free"
