"""The experiments that a suite asks for: all of them, or, with `learning_rate: auto`, those that results so far imply.

`suite.rate_search` chooses the next rates from the merits of the rates tried. This module gives it the suite's files
and the merits in the store.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lorastudy.data.batches import steps_of
from lorastudy.data.load import train_and_eval
from lorastudy.data.sources import dataset_fingerprint
from lorastudy.planning.done import merits_of
from lorastudy.planning.suite_facts import data_key
from lorastudy.store import ExperimentTracker
from lorastudy.suite.base_model import base_model_fingerprint
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.rate_search import Design, Merit, NumSteps, design, foreseen
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Fingerprint, Suite


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

    def design(self, merits: Mapping[str, Merit | None] | None = None) -> Design:
        """The suite's design given these merits; without merits, its first round.

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
        )

    def by_now(self, tracker: ExperimentTracker | None) -> Design:
        """The suite's design given the results in the store; without a store, its first round."""
        designed = self.design()
        merits: dict[str, Merit | None] = {}
        asked: frozenset[str] = frozenset()
        while tracker is not None and (unread := designed.tuning - asked):
            merits |= merits_of(unread, tracker=tracker, metric=self.suite.primary_metric)
            asked |= unread
            designed = self.design(merits)
        return designed

    def foreseen(self) -> tuple[Experiment, ...]:
        """The suite's experiments if each search for a learning rate finds the middle of its first grid best."""
        return foreseen(
            self.suite,
            fingerprint_dataset=self.fingerprint_dataset,
            fingerprint_base=self.fingerprint_base,
            num_steps=self.num_steps,
        )
