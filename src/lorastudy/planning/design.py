"""The experiments that a suite asks for by now: all of them, or, with `learning_rate: auto`, as far as results tell.

`suite.rate_search` says what comes next from the merits of what was tried. Here a suite meets the files that it reads and
the store that holds those merits.
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
from lorastudy.suite.expansion import Fingerprint
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.rate_search import Design, Merit, NumSteps, design, foreseen
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Suite


def steps_counter() -> Callable[[Settings], int]:
    """A function that counts the optimizer steps of an arm, by which a search for learning rates begins.

    It reads the rows of each data set once. Steps are counted without the base model's tokenizer, since a suite's
    experiments follow from its files alone. Of a training by epochs, rows of which the cut leaves no answer are therefore
    still counted, and a long plain text, which training takes as several rows, counts once: such a search may begin at the
    rates for fewer than `SHORT_STEPS` steps.
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
    """Makes a suite's design. Each file and each base model is fingerprinted once, however often it is asked."""

    suite: Suite
    registered: tuple[Experiment, ...] | None = None
    """The experiments of a suite that is taken up from the store: its design, whatever its arms were."""
    fingerprint_dataset: Fingerprint = field(default_factory=lambda: functools.cache(dataset_fingerprint))
    fingerprint_base: Fingerprint = field(default_factory=lambda: functools.cache(base_model_fingerprint))
    num_steps: NumSteps = field(default_factory=steps_counter)

    def design(self, merits: Mapping[str, Merit | None] | None = None) -> Design:
        """What the suite asks for by these merits; without any, its first round.

        Raises:
            SuiteFileError, StudyError: as `suite.expansion.expand`.
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
        """What the suite asks for by the results that the store holds; without a store, its first round."""
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
