"""The experiments that a suite asks for, and those that the store has results for.

With `learning_rate: auto` a suite asks for what its results so far imply. `suite.rate_search` chooses the next rates from the
merits of the rates tried. This module gives it the suite's files and the merits in the store.

An experiment is done, pruned by racing, or scored for a search. Numbers depend on library versions, so a result made under
other versions than the installed ones counts as missing.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from lorastudy.data.batches import steps_of
from lorastudy.data.load import train_and_eval
from lorastudy.data.sources import dataset_fingerprint
from lorastudy.planning.suite_facts import data_key
from lorastudy.protocol.records import Environment
from lorastudy.stats.study import CHOOSING_SPLIT
from lorastudy.stats.summary import Metric, primary_metric_of
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult, StoredDecision
from lorastudy.suite.base_model import base_model_fingerprint
from lorastudy.suite.experiment import Experiment, tagged_hash
from lorastudy.suite.finals import Finals
from lorastudy.suite.rate_search import DIVERGED, Design, Merit, NumSteps, design, foreseen
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Fingerprint, Suite
from lorastudy.version import installed_version

#: Libraries whose versions must match the installed ones for a stored result to count.
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def steps_counter() -> Callable[[Settings], int]:
    """A function that counts the optimizer steps of an arm. A search for learning rates starts from that number.

    It reads the rows of each data set once. It uses no tokenizer, because a suite's experiments must follow from its
    files alone. When training is measured in epochs, the count may therefore be off: rows whose answer is cut away
    still count, and a long plain text, which training splits into several rows, counts once. A search may then start
    at the rates for fewer than `SHORT_STEPS` steps.
    """
    num_rows: dict[str, int] = {}

    def count(settings: Settings) -> int:
        if settings.max_steps is not None:
            return settings.max_steps
        key = data_key(settings)
        if key not in num_rows:
            num_rows[key] = len(train_and_eval(settings).train)
        return steps_of(settings, num_rows=num_rows[key])

    return count


@dataclass(frozen=True, kw_only=True)
class Designer:
    """Makes a suite's design. Fingerprints each file and each base model only once."""

    suite: Suite
    registered: tuple[Experiment, ...] | None = None
    """The experiments of a suite that resumes from the store. They are its whole design."""
    fingerprint_dataset: Fingerprint = field(default_factory=lambda: functools.cache(dataset_fingerprint))
    fingerprint_base: Fingerprint = field(default_factory=lambda: functools.cache(base_model_fingerprint))
    num_steps: NumSteps = field(default_factory=steps_counter)

    def design(
        self, merits: Mapping[str, Merit | None] | None = None, *, finals: Finals | None = None
    ) -> Design:
        """The suite's design given these merits, and the finals of a suite with a time budget; without merits, its first round.

        Raises:
            SuiteFileError, StudyError: as `suite.suite.expand`.
        """
        if self.registered is not None:
            return Design(experiments=self.registered, rounds=(self.registered,))
        return design(
            self.suite,
            fingerprint_dataset=self.fingerprint_dataset,
            fingerprint_base=self.fingerprint_base,
            merits=merits,
            num_steps=self.num_steps,
            finals=finals,
        )

    def by_now(self, tracker: ExperimentTracker | None) -> Design:
        """The suite's design given the results in the store; without a store, its first round."""
        finals = None if tracker is None else stored_finals(self.suite, tracker)
        designed = self.design(finals=finals)
        merits: dict[str, Merit | None] = {}
        looked_up: frozenset[str] = frozenset()
        while tracker is not None and (unread := designed.tuning - looked_up):
            merits |= merits_of(unread, tracker=tracker, metric=primary_metric_of(self.suite.question))
            looked_up |= unread
            designed = self.design(merits, finals=finals)
        return designed

    def foreseen(self) -> tuple[Experiment, ...]:
        """The suite's experiments if each search for a learning rate finds the middle of its first grid best."""
        return foreseen(
            self.suite,
            fingerprint_dataset=self.fingerprint_dataset,
            fingerprint_base=self.fingerprint_base,
            num_steps=self.num_steps,
        )


def finals_key(suite: Suite) -> str:
    """The key of the decision on a suite's finals. Other arms, another budget or other libraries need another decision."""
    asked = suite.to_json()
    about = {
        key: asked.get(key)
        for key in ("arms", "tuning_seeds", "time_budget_hours", "primary_metric", "margin")
    }
    return tagged_hash("decision", ["finals", about, libraries_of_now()])


def finals_decision(suite: Suite, tracker: ExperimentTracker) -> StoredDecision | None:
    """The decision on the finals of a suite with a time budget, if it was made."""
    if suite.time_budget_hours is None:
        return None
    key = finals_key(suite)
    return next((one for one in tracker.get_decisions(suite.name) if one.key == key), None)


def stored_finals(suite: Suite, tracker: ExperimentTracker) -> Finals | None:
    """The finals that were decided for a suite with a time budget, if they were."""
    decision = finals_decision(suite, tracker)
    return None if decision is None else Finals.from_json(decision.content)


def is_new(store: str | Path) -> bool:
    """Whether the store does not exist yet. A crash while creating it leaves an empty file, which counts as new."""
    if "://" in str(store):
        return False
    file = Path(store)
    return not file.exists() or file.stat().st_size == 0


def existing_store(store: str | Path) -> AbstractContextManager[ExperimentTracker | None]:
    """The store, opened for reading; None if it does not exist yet."""
    return nullcontext() if is_new(store) else ExperimentTracker(store)


def is_current(environment: Environment | None) -> bool:
    """Whether a run in this environment had the installed versions of all `LIBRARIES`."""
    if environment is None:
        return False
    return all(getattr(environment, name) == installed_version(name) for name in LIBRARIES)


def libraries_of_now() -> list[str]:
    """The installed versions of `LIBRARIES`.

    Raises:
        StudyError: one of them is not installed.
    """
    return [installed_version(name) for name in LIBRARIES]


def not_done(
    experiments: Sequence[Experiment], *, tracker: ExperimentTracker, searching: Collection[str] = ()
) -> list[Experiment]:
    """The experiments without a completed run under the installed libraries.

    An experiment in `searching` counts as done if its newest run has a merit: it completed, or diverged.
    """
    ids = [experiment.id for experiment in experiments]
    completed = tracker.completed([key for key in ids if key not in searching])
    done = {key for key, environment in completed.items() if is_current(environment)}
    done |= {
        key
        for key, result in tracker.get_results([key for key in ids if key in searching]).items()
        if (result.status == "completed" or result.failure_kind == "diverged")
        and is_current(result.environment)
    }
    return [experiment for experiment in experiments if experiment.id not in done]


def missing_of(design: Design, suite: Suite, *, tracker: ExperimentTracker | None) -> Sequence[Experiment]:
    """The experiments of a design without a result that racing did not stop. Without a store, all of them."""
    if tracker is None:
        return design.experiments
    missing = not_done(design.experiments, tracker=tracker, searching=design.tuning)
    stopped = pruned(missing, tracker=tracker) if suite.rungs else frozenset()
    return [experiment for experiment in missing if experiment.id not in stopped]


def pruned(experiments: Sequence[Experiment], *, tracker: ExperimentTracker) -> frozenset[str]:
    """The experiments that a race stopped under the libraries of now, whichever suite raced them."""
    found = tracker.get_results([experiment.id for experiment in experiments]).values()
    return frozenset(
        result.experiment_id for result in found if result.was_pruned and is_current(result.environment)
    )


def current_results(
    experiments: Sequence[Experiment], *, suite_name: str, tracker: ExperimentTracker
) -> list[ExperimentResult]:
    """The results of the experiments, under this suite's names, made under the installed libraries."""
    ids = {experiment.id for experiment in experiments}
    found = tracker.get_all_experiments(suite_name=suite_name)
    return [each for each in found if each.experiment_id in ids and is_current(each.environment)]


def merits_of(
    experiment_ids: Collection[str], *, tracker: ExperimentTracker, metric: Metric
) -> dict[str, Merit | None]:
    """The merits of the experiments that ended under the installed libraries.

    A completed run whose primary metric is yet to be measured has none.
    """
    results = tracker.get_results(sorted(experiment_ids))
    return {
        experiment_id: merit(result, metric)
        for experiment_id, result in results.items()
        if has_ended(result)
        and is_current(result.environment)
        and (result.status != "completed" or _is_measured(result, metric))
    }


def has_ended(result: ExperimentResult) -> bool:
    """Whether the run completed or failed."""
    return result.status in {"completed", "failed"}


def merit(result: ExperimentResult, metric: Metric) -> Merit | None:
    """The merit on the held-out rows, never on the test rows; None if the run failed without diverging.

    A run for which the metric gave no value at all is as bad as one that diverged.
    """
    if result.failure_kind == "diverged":
        return DIVERGED
    if result.status != "completed":
        return None
    key = (CHOOSING_SPLIT, metric.name)
    score, failed = result.scores.get(key), result.failed_rows.get(key)
    if score is None:
        return DIVERGED
    return Merit(
        num_failed=0 if failed is None else len(failed.rows),
        cost=metric.cost_sign * score.value,
        loss=result.scores[CHOOSING_SPLIT, "loss"].value,
    )


def _is_measured(result: ExperimentResult, metric: Metric) -> bool:
    """Whether the metric was measured on the held-out rows, even if it gave no value for any of them."""
    key = (CHOOSING_SPLIT, metric.name)
    return key in result.scores or key in result.failed_rows
