"""How many arms fit into a pack, and what would make a configuration fit that does not."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lorastudy.planning.answers import Answers
from lorastudy.planning.estimate import Estimator, prepare
from lorastudy.planning.packing import PlannedPack, parts
from lorastudy.protocol.records import MemoryPrediction
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.settings import Settings

#: Tokens of a row below which no suggestion goes: shorter rows would cut most answers away.
SHORTEST_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A change and what the pack would take with it. The effective batch is the same throughout."""

    change: str
    num_arms: int
    total_bytes: int
    fits: bool


def arms_per_pack(estimator: Estimator, *, budget_bytes: int | None) -> int:
    """The most arms whose every pack is predicted to fit; of those, the fastest where steps were timed.

    One arm where not even that fits: the run then shows whether it does. Memory grows with the arms, so the size is bisected.
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
    """What is predicted of each experiment of a pack, as it is stored beside what is measured."""
    estimate = estimator.estimate(pack.experiments)
    return [
        MemoryPrediction(
            experiment_id=experiment_id,
            memory_kind="cuda_allocated" if estimator.machine.device == "cuda" else "cpu_tensors",
            num_tokens=estimate.rows.batch.num_tokens,
            num_labels=estimate.rows.batch.num_labels,
            alone_bytes=alone.terms.total,
            pack_bytes=estimate.prediction.terms.total,
            step_seconds=estimate.step_seconds,
            **dict(alone.terms.named()),
        )
        for experiment_id, alone in estimate.alone.items()
    ]


def suggestions(
    experiments: Sequence[Experiment], answers: Answers, *, budget_bytes: int
) -> list[Suggestion]:
    """Changes that make the arms fit, the mildest first; each is tried alone, and then what fits least of all together.

    None changes the effective batch: a smaller micro-batch is accumulated more often.
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
    """The largest pack that fits; None where not even one arm does."""

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
    """The largest number up to `at_most` for which it holds, by bisection; 0 where it does not hold for 1."""
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
    if settings.quantization != "4bit":
        yield "quantization: 4bit", _with(experiments, {"quantization": "4bit"})
    if settings.max_seq_length >= 2 * SHORTEST_ROWS:
        half = settings.max_seq_length // 2
        yield f"max_seq_length: {half}", _with(experiments, {"max_seq_length": half})
    if len(mild) > 1:
        yield "checkpointing and micro-batches of 1 row", _with(experiments, mild)
    everything = mild | {"quantization": "4bit"}
    yield "all of these, one arm per pack, 4bit", _with(experiments[:1], everything)


def _with(experiments: Sequence[Experiment], values: dict[str, object]) -> list[Experiment]:
    def changed(settings: Settings) -> Settings:
        return settings.model_copy(update=values)

    return [replace(each, settings=changed(each.settings)) for each in experiments]
