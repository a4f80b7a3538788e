"""The plan of a study: everything that follows from a suite, the store and the machine before anything runs.

It is computed before anything runs. A dry run prints it, `check` reads its findings, and a run begins from it. What is
missing and which packs that makes is asked again, by the same functions, as results come in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lorastudy.data.batches import steps_of
from lorastudy.data.fingerprint import dataset_fingerprint
from lorastudy.data.load import StudyData, train_and_eval
from lorastudy.executors import Executor, local_executor
from lorastudy.lint.case import Case
from lorastudy.lint.finding import LintFinding
from lorastudy.lint.lint import lint
from lorastudy.planning.done import merits_in, not_done, outraced
from lorastudy.planning.handover import Handover, handover_of
from lorastudy.planning.packing import PlannedPack, remaining_packs
from lorastudy.planning.predictions import OnWait, Predictions, print_nothing, with_memory, without_memory
from lorastudy.planning.suite_facts import data_notes, layout_notes, margin_notes, read_data, suite_case
from lorastudy.store import ExperimentTracker
from lorastudy.suite.expansion import sources_reader
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.hub import check_base_model
from lorastudy.suite.identity import base_model_fingerprint
from lorastudy.suite.rate_search import Design, MeritsOf, design, foreseen
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import EXPERIMENT_TYPES, Suite

#: The suite's design by the results that are there.
DesignBy = Callable[[MeritsOf], Design]


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What a suite comes to on this machine with what the store holds. Nothing in it changes while the suite runs.

    A search for learning rates asks for more experiments as results come in: `design` has those that are known by now.
    """

    suite: Suite
    design: Design
    missing: tuple[Experiment, ...]
    """Experiments of the design that have no result yet; without those that racing stopped."""
    packs: tuple[PlannedPack, ...]
    """The packs of what is missing."""
    predicted: Predictions = field(default_factory=Predictions)
    num_packs_at_once: int = 1
    balance: Handover | None = None
    """How packs become equally long on the way; None where they are, or where racing decides who goes on."""
    notes: tuple[str, ...] = ()
    """What the user should know before it runs."""
    data: Mapping[str, StudyData] = field(default_factory=dict)
    """The rows of every arm, by `data_key`."""
    registered: tuple[Experiment, ...] | None = None
    """The experiments of a suite that is taken up from the store."""

    def design_by(self, merits_of: MeritsOf) -> Design:
        """What the suite asks for by the results that are there."""
        return _design(self.suite, merits_of, registered=self.registered)

    @cached_property
    def case(self) -> Case | None:
        """The suite as the linter judges it; None of a suite that is taken up from the store, whose arms are not known."""
        if self.registered is not None:
            return None
        return suite_case(
            foreseen_of(self.suite),
            suite_name=self.suite.name,
            data=self.data,
            rows=self.predicted.rows.read,
            question=self.suite.question,
            adapted=self.predicted.adapted,
        )

    @property
    def num_arms(self) -> int:
        """The arms that are judged together."""
        return 0 if self.case is None else len(self.case.arms)

    def check_base_models(self) -> None:
        """See that the base models of what is still to run can be had.

        Raises:
            ModelError: one cannot; says why and what to do.
        """
        to_run = (*self.missing, *self.design.waiting)
        for base_model in sorted({experiment.settings.base_model for experiment in to_run}):
            check_base_model(base_model)

    @cached_property
    def findings(self) -> Sequence[LintFinding]:
        """What would make the comparison unfair."""
        return () if self.case is None else lint(self.case)


def plan_study(
    suite: Suite,
    *,
    tracker: ExperimentTracker | None = None,
    executor: Executor | None = None,
    registered: Sequence[Experiment] | None = None,
    on_wait: OnWait = print_nothing,
) -> StudyPlan:
    """The plan of a suite. A worker counts rows and memory where no earlier answer is kept, which takes seconds.

    Without `tracker` nothing is done yet; without `executor` workers run on this machine. `registered` are the
    experiments of a suite that is taken up from the store. `on_wait` also gets a line for each piece of foreign code
    before it runs: a worker that counts loads the model's tokenizer.

    Raises:
        DataError: the rows cannot be used with their base model.
        StudyError: what the suite names does not exist or cannot be read.
    """
    known = None if registered is None else tuple(registered)
    designed, missing = _by_now(suite, tracker, registered=known)
    of_every_arm = designed.of_every_arm
    _announce_foreign_code(of_every_arm, on_wait)
    workers = executor or local_executor(of_every_arm)
    num_at_once = workers.num_packs_at_once
    data = read_data(of_every_arm)
    predicted = with_memory(
        of_every_arm, [*missing, *designed.waiting], num_workers=num_at_once, on_wait=on_wait
    )
    packs = _packs(designed, missing, arms_per_pack=predicted.arms_per_pack, num_at_once=num_at_once)
    return StudyPlan(
        suite=suite,
        design=designed,
        missing=tuple(missing),
        packs=tuple(packs),
        predicted=predicted,
        num_packs_at_once=num_at_once,
        balance=_balance(designed, missing, executor=workers, predicted=predicted)
        if not suite.rungs
        else None,
        notes=_notes(suite, predicted=predicted, data_notes=data_notes(of_every_arm, data)),
        data=data,
        registered=known,
    )


def judge_suite(suite: Suite, *, on_wait: OnWait = print_nothing) -> StudyPlan:
    """The plan of a suite for `check`: rows, layers and findings. No memory is counted and no pack is formed.

    Raises:
        DataError, StudyError: as `plan_study`.
    """
    designed = _design(suite, lambda _: {}, registered=None)
    experiments = foreseen_of(suite)
    _announce_foreign_code(experiments, on_wait)
    data = read_data(experiments)
    predicted = without_memory(experiments, on_wait=on_wait)
    return StudyPlan(
        suite=suite,
        design=designed,
        missing=designed.experiments,
        packs=(),
        predicted=predicted,
        notes=_notes(suite, predicted=predicted, data_notes=data_notes(experiments, data)),
        data=data,
    )


def design_of(suite: Suite, merits_of: MeritsOf = lambda _: {}) -> Design:
    """The suite's experiments as far as results tell by now, with what they read fingerprinted."""
    return design(
        suite,
        fingerprint_dataset=dataset_fingerprint,
        fingerprint_base=base_model_fingerprint,
        merits_of=merits_of,
        num_steps=num_steps,
    )


def foreseen_of(suite: Suite) -> tuple[Experiment, ...]:
    """The suite's experiments if each search for a learning rate finds the middle of its first grid best."""
    return foreseen(
        suite,
        fingerprint_dataset=dataset_fingerprint,
        fingerprint_base=base_model_fingerprint,
        num_steps=num_steps,
    )


def num_steps(settings: Settings) -> int:
    """Optimizer steps of an arm, by which a search for learning rates begins.

    They are counted without the base model's tokenizer, since a suite's experiments follow from its files alone. Of a
    training by epochs, rows of which the cut leaves no answer are therefore still counted, and a long plain text, which
    training takes as several rows, counts once: such a search may begin at the rates for fewer than `SHORT_STEPS` steps.
    """
    if settings.max_steps is not None:
        return settings.max_steps
    return steps_of(settings, num_rows=len(train_and_eval(settings).train))


def sources_of() -> Callable[[Settings], Sources]:
    """A function that fingerprints what settings read, each file and model once."""
    return sources_reader(dataset_fingerprint, base_model_fingerprint)


def _announce_foreign_code(experiments: Sequence[Experiment], on_wait: OnWait) -> None:
    """A line for each piece of foreign Python code that a suite runs, with the rights of who runs it."""
    models = {e.settings.base_model for e in experiments if e.settings.trust_remote_code}
    types = {e.experiment_type for e in experiments} - set(EXPERIMENT_TYPES)
    for model in sorted(models):
        on_wait(f"note: trust_remote_code: {model} runs its own Python code, with your rights")
    for name in sorted(types):
        on_wait(f"note: experiment_type: {name} is run, with your rights")


def _design(suite: Suite, merits_of: MeritsOf, *, registered: tuple[Experiment, ...] | None) -> Design:
    if registered is None:
        return design_of(suite, merits_of)
    return Design(experiments=registered, rounds=(registered,))


def _by_now(
    suite: Suite, tracker: ExperimentTracker | None, *, registered: tuple[Experiment, ...] | None
) -> tuple[Design, list[Experiment]]:
    """The design by now and what is missing of it; without a store all of its first round."""
    if tracker is None:
        designed = _design(suite, lambda _: {}, registered=registered)
        return designed, list(designed.experiments)
    designed = _design(suite, merits_in(tracker, suite.primary_metric), registered=registered)
    missing = not_done(designed.experiments, tracker=tracker, searching=designed.tuning)
    stopped = outraced(missing, suite_name=suite.name, tracker=tracker) if suite.rungs else frozenset()
    return designed, [each for each in missing if each.id not in stopped]


def _packs(
    designed: Design,
    missing: Sequence[Experiment],
    *,
    arms_per_pack: Mapping[str, int],
    num_at_once: int,
) -> list[PlannedPack]:
    return [
        pack
        for of_round in designed.rounds
        for pack in remaining_packs(of_round, missing, arms_per_pack=arms_per_pack, num_at_once=num_at_once)
    ]


def _balance(
    designed: Design, missing: Sequence[Experiment], *, executor: Executor, predicted: Predictions
) -> Handover | None:
    """Of the first round that has something missing, where the executor's packs can hand arms over."""
    wanted = {each.id for each in missing}
    of_round = next((r for r in designed.rounds if any(each.id in wanted for each in r)), None)
    if of_round is None or not executor.hands_over:
        return None
    return handover_of(
        of_round, arms_per_pack=predicted.arms_per_pack, num_at_once=executor.num_packs_at_once
    )


def _notes(suite: Suite, *, predicted: Predictions, data_notes: Sequence[str]) -> tuple[str, ...]:
    return (
        *suite.notes,
        *margin_notes(suite.question),
        *data_notes,
        *layout_notes(predicted.rows.read),
        *predicted.problems,
        *predicted.adapted.unknown,
        *predicted.adapted.misfits.values(),
    )
