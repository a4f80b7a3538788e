"""A study, carried out: phase after phase, until its results ask for nothing more.

    plan -> results -> next phase -> workers -> store -> results -> ...

Between phases the loop keeps only what this call did: how runs ended, the design it last wrote, and which adapters it
published. What failed is not tried again in this call. All else is read from the store, so a study that was killed at any
moment goes on where it was. Each pass ends a run, stores a decision or enlarges the design, so the loop ends.
"""

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorastudy.errors import StudyError
from lorastudy.executors import Executor, local_executor
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.protocol.records import Outcome
from lorastudy.running import finals, racing
from lorastudy.running.adapters import AdapterPublisher
from lorastudy.running.phase_runner import Callbacks, PhaseRunner, RunOptions, failures, is_too_high
from lorastudy.running.phases import next_phase
from lorastudy.running.results import Results, read_results, release_checkpoints, seconds_before
from lorastudy.running.scoring import take_scores_left
from lorastudy.store import ExperimentTracker, rebuilding
from lorastudy.suite.question import subject
from lorastudy.suite.rate_search import Design


@dataclass(frozen=True, kw_only=True)
class StudyOutcome:
    """What became of a study's experiments, by id."""

    design: Design = field(repr=False)
    """The final design."""
    done_before: tuple[str, ...] = ()
    completed: tuple[str, ...] = ()
    failed: tuple[Outcome, ...] = ()
    not_run: tuple[str, ...] = ()
    diverged_in_search: tuple[Outcome, ...] = ()
    """Runs of a search that diverged. They show that their rate is too high, so they are no failures."""
    pruned: tuple[str, ...] = ()
    """Stopped by racing, in this call or an earlier one: nothing is left to run of them."""
    unpublished: tuple[str, ...] = ()
    """Done before, and their adapters are neither at their place nor in a run folder any more."""
    scored: tuple[str, ...] = ()
    """Experiments whose stored adapters this call scored."""
    not_scored: tuple[Outcome, ...] = ()
    """Failures to score an adapter. The experiment itself is done."""
    left_to_score: tuple[str, ...] = ()
    """Experiments whose stored adapters still lack a metric of the suite, since this call was stopped."""
    adapters_gone: tuple[str, ...] = ()
    """Experiments that lack a metric of the suite and whose adapter no longer exists, so they cannot be scored."""
    damaged_scores: tuple[str, ...] = ()
    """Files of an earlier scoring that could not be read to their end, each with its reason. What they lack is scored anew."""
    replaced: tuple[tuple[Path, str], ...] = ()
    """Where an adapter lay that no suite asks for any more, and whose: the suite's own has that place now."""


def run_plan(
    plan: StudyPlan,
    *,
    database: str,
    tracker: ExperimentTracker | None = None,
    executor: Executor | None = None,
    options: RunOptions | None = None,
    callbacks: Callbacks | None = None,
) -> StudyOutcome:
    """Run what is missing of a plan, with the store at `database` and workers on this machine.

    `tracker` is that store if it is open for writing already. An `executor` that is given stays open.

    Raises:
        ModelError: a base model is not available, or an arm does not fit it. Nothing was written.
        StoreError: another process writes this store.
        StudyError: as `run_study`.
    """
    plan.check_can_run()
    callbacks = callbacks or Callbacks()
    with contextlib.ExitStack() as opened:
        workers = executor or opened.enter_context(
            contextlib.closing(local_executor(plan.design.of_every_arm))
        )
        store = tracker
        if store is None:
            store = opened.enter_context(ExperimentTracker(database, writable=True))
            callbacks.on_open(store)
        callbacks.on_start(workers)
        return run_study(plan, tracker=store, executor=workers, options=options, callbacks=callbacks)


def run_study(
    plan: StudyPlan,
    *,
    tracker: ExperimentTracker,
    executor: Executor,
    options: RunOptions | None = None,
    callbacks: Callbacks | None = None,
) -> StudyOutcome:
    """Run what is missing of a planned suite. Nothing is printed.

    What fails is not tried again in this call. Without `continue_on_error` a failure ends it.

    Raises:
        StudyError: the plan was made for another number of packs at once than the executor runs, or a worker could not
            write its files.
    """
    _check_executor(plan, executor)
    options, callbacks = options or RunOptions(), callbacks or Callbacks()
    publisher = AdapterPublisher(suite_name=plan.suite.name, tracker=tracker, output=options.output)
    runner = PhaseRunner(
        tracker=tracker,
        executor=executor,
        options=options,
        predicted=plan.predicted,
        publisher=publisher,
        callbacks=callbacks,
    )
    ended: dict[str, Outcome] = {}
    scored: dict[str, Outcome] = {}
    damaged = take_scores_left(tracker, runs=options.runs) if plan.suite.metrics else []
    registered: Design | None = None
    before, begun = seconds_before(plan, tracker=tracker), callbacks.clock()
    while True:
        results = read_results(
            plan, tracker=tracker, ended=ended, scored=scored, output=options.output,
            elapsed_seconds=before + callbacks.clock() - begun,
        )  # fmt: skip
        if results.design != registered:
            _register(plan, results, publisher=publisher, tracker=tracker, is_first=registered is None)
            rebuilding.keep_note(tracker, plan.suite.name, runs=options.runs)
            registered = results.design
            continue  # read again: results of the experiments just added were not visible before
        release_checkpoints(results.design.experiments, tracker=tracker, pruned=results.pruned)
        if callbacks.is_leaving() or (not options.continue_on_error and _must_end(results)):
            break
        phase = next_phase(plan, results)
        if phase is None:
            break
        for decision in phase.decisions:
            racing.put_on_record(decision, suite_name=plan.suite.name, tracker=tracker, runs=options.runs)
        if phase.finals is not None:
            finals.put_on_record(phase.finals, suite_name=plan.suite.name, tracker=tracker, runs=options.runs)
        if phase.packs:
            callbacks.on_phase(phase)
            ends = scored if phase.is_scoring else ended
            ends |= runner.run(phase)
    return replace(_outcome(results, publisher=publisher), damaged_scores=tuple(damaged))


def _must_end(results: Results) -> bool:
    """Whether a run of this call failed, or was stopped from outside. Runs that racing stopped are in `results.pruned`."""
    was_stopped = any(end.status == "stopped" for end in (*results.ended.values(), *results.scored.values()))
    failed = failures(results.ended, searching=results.design.tuning)
    return was_stopped or bool(failed) or any(end.status == "failed" for end in results.scored.values())


def _check_executor(plan: StudyPlan, executor: Executor) -> None:
    if executor.num_packs_at_once != plan.num_packs_at_once:
        raise StudyError(
            f"the plan is for {plan.num_packs_at_once} packs at once and the executor runs {executor.num_packs_at_once}, so its "
            "packs may not fit; plan again with `executor=` the one that runs it"
        )
    if executor.hands_over != plan.hands_over:
        raise StudyError(
            "the plan balances its packs for another kind of executor; plan again with `executor=` the one that runs it"
        )


def _register(
    plan: StudyPlan,
    results: Results,
    *,
    publisher: AdapterPublisher,
    tracker: ExperimentTracker,
    is_first: bool,
) -> None:
    """Write the suite as it is by now, and publish what was done before.

    The suite's question is written only in the first call, before any result exists.
    """
    suite, design = plan.suite, results.design
    publisher.choose_places(design.experiments)
    members = (*design.experiments, *design.passed)
    tracker.register(suite.name, members, description=suite.description)
    # A suite that is resumed from the store has no arms. It keeps its stated question.
    if is_first and suite.arms:
        about = subject(experiment.sources for experiment in design.experiments)
        tracker.state_question(suite.name, replace(suite.question, subject=about))
        tracker.keep_design(suite.name, suite.to_json())
    if suite.path is not None:
        # A suite is what its file says now: an attempt with a mistake since mended is not in its report.
        tracker.keep_only(suite.name, members)
    publisher.publish_done([e.id for e in design.experiments if e.id in results.done])


def left_to_score(results: Results) -> tuple[str, ...]:
    """Experiments whose adapters this call was stopped from scoring."""
    stopped = [key for key, end in results.scored.items() if end.status == "stopped"]
    waiting = [experiment.id for pack in results.to_score for experiment in pack.experiments]
    return (*stopped, *waiting)


def _outcome(results: Results, *, publisher: AdapterPublisher) -> StudyOutcome:
    design, ended = results.design, results.ended
    ids = [experiment.id for experiment in design.experiments]
    failed = failures(ended, searching=design.tuning)
    completed = {key for key, end in ended.items() if end.status == "completed"}
    over = {*completed, *results.done, *results.pruned, *(end.experiment_id for end in failed)}
    return StudyOutcome(
        design=design,
        done_before=tuple(key for key in ids if key in results.done and key not in ended),
        completed=tuple(key for key in ids if key in completed),
        failed=tuple(failed),
        not_run=tuple(key for key in ids if key not in over),
        diverged_in_search=tuple(end for end in ended.values() if is_too_high(end, searching=design.tuning)),
        pruned=tuple(key for key in ids if key in results.pruned),
        unpublished=tuple(publisher.lost),
        scored=tuple(key for key, end in results.scored.items() if end.status == "completed"),
        not_scored=tuple(end for end in results.scored.values() if end.status == "failed"),
        left_to_score=left_to_score(results),
        adapters_gone=results.adapters_gone,
        replaced=tuple(publisher.replaced.items()),
    )
