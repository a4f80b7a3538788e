"""The plan of a study: everything that follows from a suite, the store and the machine before anything runs.

A dry run prints it, `check` reads its findings, and `running/study.py` carries it out. Packs are formed and balanced
only here. As results come in, `running/phases.py` says which of the plan's packs run next.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

from lorastudy.data.load import StudyData
from lorastudy.data.sources import dataset_fingerprint
from lorastudy.errors import ModelError
from lorastudy.executors import Executor, local_executor
from lorastudy.lint.case import Case, LintFinding
from lorastudy.lint.lint import lint
from lorastudy.planning.answers import Answers
from lorastudy.planning.design import Designer, missing_of
from lorastudy.planning.missing_scores import MissingScores, missing_scores
from lorastudy.planning.packing import Balance, PlannedPack, balance_packs, remaining_packs
from lorastudy.planning.plan_summary import plan_html
from lorastudy.planning.predictions import (
    OnWait,
    Predictions,
    print_nothing,
    use_stored_times,
    with_memory,
    without_data,
    without_memory,
    worker_answers,
)
from lorastudy.planning.suite_facts import (
    AdaptedArms,
    data_notes,
    layout_notes,
    margin_notes,
    read_data,
    suite_case,
)
from lorastudy.report.numbers import plural
from lorastudy.store import ExperimentTracker
from lorastudy.suite.base_model import base_model_fingerprint, check_base_model
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.experiment_types import EXPERIMENT_TYPES
from lorastudy.suite.labels import experiment_labels, labels_of
from lorastudy.suite.rate_search import Design
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Suite, sources_reader


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The plan of a suite on this machine, given the store's results. It does not change while the suite runs.

    A search for learning rates adds experiments as results come in. `design` has those that are known so far.
    """

    suite: Suite
    designer: Designer
    design: Design
    missing: tuple[Experiment, ...]
    """Experiments of the design without a result. Those that racing stopped are not among them."""
    predicted: Predictions = field(default_factory=Predictions)
    num_packs_at_once: int = 1
    hands_over: bool = False
    """Whether the executor's workers can pass arms to each other. Only then can packs of unequal size be balanced."""
    notes: tuple[str, ...] = ()
    """Notes for the user before the suite runs."""
    missing_scores: tuple[MissingScores, ...] = ()
    """Stored adapters that lack a metric of the suite. They are scored again, and nothing is trained for it."""
    data: Mapping[str, StudyData] = field(default_factory=dict)
    """The rows of every arm, by `data_key`."""

    @property
    def packs(self) -> tuple[PlannedPack, ...]:
        """The packs of the missing experiments, round by round."""
        missing = {experiment.id for experiment in self.missing}
        packs = (self.packs_of(of_round, only=missing) for of_round in self.design.rounds)
        return tuple(pack for of_round in packs for pack in of_round)

    def packs_of(self, of_round: Sequence[Experiment], *, only: Collection[str]) -> list[PlannedPack]:
        """The packs of a round, reduced to the experiments whose ids are in `only`.

        Packs are always formed from the whole round, even if part of it is done. An arm's bits depend on the other arms
        of its pack, so this makes a resumed study match an uninterrupted one bit for bit.
        """
        return remaining_packs(
            of_round, only, arms_per_pack=self.predicted.arms_per_pack, num_at_once=self.num_packs_at_once
        )

    @property
    def balance(self) -> Balance | None:
        """The balance of the first round that has missing experiments; None if there is none."""
        missing = {experiment.id for experiment in self.missing}
        rounds = (of_round for of_round in self.design.rounds if any(e.id in missing for e in of_round))
        of_round = next(rounds, None)
        return None if of_round is None else self.balance_of(of_round)

    def balance_of(self, of_round: Sequence[Experiment]) -> Balance | None:
        """The balance of a round's packs. None if they need none, cannot be balanced, or if the suite races."""
        if self.suite.rungs or not self.hands_over:
            return None
        return balance_packs(
            self.packs_of(of_round, only={experiment.id for experiment in of_round}),
            num_at_once=self.num_packs_at_once,
            work_of=self.predicted.work,
        )

    @cached_property
    def case(self) -> Case | None:
        """The suite as the linter judges it; None for a suite resumed from the store, whose arms are not known."""
        if self.designer.registered is not None:
            return None
        return suite_case(
            self.designer.foreseen(),
            suite_name=self.suite.name,
            data=self.data,
            rows=self.predicted.rows.read,
            question=self.suite.question,
            adapted=self.predicted.adapted,
        )

    @property
    def num_arms(self) -> int:
        """The number of arms that the linter judges together."""
        return 0 if self.case is None else len(self.case.arms)

    def check_layers(self) -> None:
        """Refuse a plan with arms that do not fit the layers of their base model.

        Raises:
            ModelError: names the arms, the reason and the fix.
        """
        lines = misfit_lines(self.suite, self.predicted.adapted)
        if lines:
            raise ModelError("\n".join(lines))

    def check_can_run(self) -> None:
        """Refuse a plan with a base model that is not available, or with arms that do not fit their base model.

        Raises:
            ModelError: names the model or the arms, the reason and the fix.
        """
        self.check_layers()
        to_run = (*self.missing, *self.design.waiting)
        for base_model in sorted({experiment.settings.base_model for experiment in to_run}):
            check_base_model(base_model)

    @cached_property
    def findings(self) -> Sequence[LintFinding]:
        """The linter's findings: what would make the comparison unfair."""
        return () if self.case is None else lint(self.case)

    @cached_property
    def findings_shown(self) -> Sequence[LintFinding]:
        """The same findings with the labels of the arms, for a reader."""
        return () if self.case is None else lint(self.case.labelled())

    @cached_property
    def labels(self) -> Mapping[str, str]:
        """The label of each arm, by its name."""
        found = {} if self.case is None else dict(self.case.study.labels)
        return {**found, **labels_of(self.design.of_every_arm, tuning=self.design.tuning)}

    @cached_property
    def experiment_labels(self) -> Mapping[str, str]:
        """The label and the seed of each experiment, by its id."""
        return experiment_labels(self.design.of_every_arm, tuning=self.design.tuning)

    def __repr__(self) -> str:
        num_known, num_missing = len(self.design.experiments), len(self.missing)
        return (
            f"<StudyPlan of {self.suite.name}: {plural(num_known, 'experiment')}, {num_known - num_missing} done, "
            f"{num_missing} to run in {plural(len(self.packs), 'pack')}>"
        )

    def _repr_html_(self) -> str:
        return plan_html(self)


def plan_study(
    suite: Suite,
    *,
    tracker: ExperimentTracker | None = None,
    executor: Executor | None = None,
    registered: Sequence[Experiment] | None = None,
    answers: Answers | None = None,
    on_wait: OnWait = print_nothing,
) -> StudyPlan:
    """The plan of a suite. If an answer is not cached, a worker counts rows and memory, which takes seconds.

    Without `tracker`, no experiment counts as done. Without `executor`, workers run on this machine. `registered` are
    the experiments of a suite that resumes from the store. Without `answers`, the plan starts a worker and ends it.
    To ask more questions afterwards, pass your own `answers`. `on_wait` also gets a line for each piece of foreign code
    before it runs, because the counting worker loads the model's tokenizer.

    Raises:
        DataError: the rows cannot be used with their base model.
        StudyError: what the suite names does not exist or cannot be read.
    """
    designer = Designer(suite=suite, registered=None if registered is None else tuple(registered))
    designed = designer.by_now(tracker)
    missing = missing_of(designed, suite, tracker=tracker)
    of_every_arm = designed.of_every_arm
    _announce_foreign_code(suite, of_every_arm, on_wait=on_wait)
    workers = executor or local_executor(of_every_arm)
    data = read_data(of_every_arm)
    with worker_answers(on_wait) if answers is None else nullcontext(answers) as answered:
        predicted = with_memory(
            of_every_arm,
            [*missing, *designed.waiting],
            foreseen=designer.foreseen() if designed.tuning else (),
            rounds=designed.rounds,
            num_workers=workers.num_packs_at_once,
            answers=answered,
        )
    if tracker is not None:
        use_stored_times(predicted, tracker.get_all_experiments(), num_threads=workers.num_threads)
    return StudyPlan(
        suite=suite,
        designer=designer,
        design=designed,
        missing=tuple(missing),
        predicted=predicted,
        num_packs_at_once=workers.num_packs_at_once,
        hands_over=workers.hands_over,
        missing_scores=missing_scores(designed.experiments, suite.metrics, tracker=tracker),
        notes=_notes(suite, predicted=predicted, data_notes=data_notes(of_every_arm, data)),
        data=data,
    )


def judge_suite(suite: Suite, *, on_wait: OnWait = print_nothing) -> StudyPlan:
    """The plan of a suite for `check`: rows, layers and findings. Counts no memory and forms no packs.

    Raises:
        DataError, StudyError: as `plan_study`.
    """
    designer = Designer(suite=suite)
    designed = designer.design()
    experiments = designer.foreseen()
    _announce_foreign_code(suite, experiments, on_wait=on_wait)
    data = read_data(experiments)
    with worker_answers(on_wait) as answers:
        predicted = without_memory(experiments, answers)
    return StudyPlan(
        suite=suite,
        designer=designer,
        design=designed,
        missing=designed.experiments,
        predicted=predicted,
        notes=_notes(suite, predicted=predicted, data_notes=data_notes(experiments, data)),
        data=data,
    )


def plan_configurations(experiments: Sequence[Experiment], answers: Answers) -> StudyPlan:
    """The plan of configurations without a data set: all rows have the maximum length, and nothing is done before."""
    registered = tuple(experiments)
    suite = Suite(name="configurations", description="", experiment_type="custom", path=None, arms=())
    designer = Designer(suite=suite, registered=registered)
    return StudyPlan(
        suite=suite,
        designer=designer,
        design=designer.design(),
        missing=registered,
        predicted=without_data(registered, answers),
    )


def sources_of() -> Callable[[Settings], Sources]:
    """A function that fingerprints the files and the model of given settings, each of them once."""
    return sources_reader(dataset_fingerprint, base_model_fingerprint)


def _announce_foreign_code(suite: Suite, experiments: Sequence[Experiment], *, on_wait: OnWait) -> None:
    """Announce each piece of foreign Python code that a suite runs, since it runs with the user's rights."""
    models = {e.settings.base_model for e in experiments if e.settings.trust_remote_code}
    types = {e.experiment_type for e in experiments} - set(EXPERIMENT_TYPES)
    for model in sorted(models):
        on_wait(f"note: trust_remote_code: {model} runs its own Python code, with your rights")
    for name in sorted(types):
        on_wait(f"note: experiment_type: {name} is run, with your rights")
    for file in sorted({metric.file for metric in suite.metrics if metric.file is not None}):
        on_wait(f"note: metrics: {file} is run, with your rights")


def _notes(suite: Suite, *, predicted: Predictions, data_notes: Sequence[str]) -> tuple[str, ...]:
    return (
        *suite.notes,
        *margin_notes(suite.question),
        *data_notes,
        *layout_notes(predicted.rows.read),
        *predicted.problems,
        *predicted.adapted.unknown,
        *misfit_lines(suite, predicted.adapted),
    )


def misfit_lines(suite: Suite, adapted: AdaptedArms) -> list[str]:
    """Why arms do not fit their base model, one line for each value in the file: `file:line:col: path: cause`.

    Without such a place, as for a default, the line begins with the arm's label and the key.
    """
    lines = []
    for misfit in adapted.misfits.values():
        place = suite.place_of(misfit.key, misfit.settings)
        lines.append(str(misfit) if place is None else f"{place}: {misfit.cause}")
    return list(dict.fromkeys(lines))
