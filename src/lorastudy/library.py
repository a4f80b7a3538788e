"""The Python interface: load, plan, run, analyse and report a suite without the command line.

Nothing here prints or exits. Errors are raised as `lorastudy.errors.StudyError`.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorastudy.errors import StudyError
from lorastudy.executors import Executor
from lorastudy.places import DATABASE, OUTPUT_DIR, REPORT, RUNS_DIR
from lorastudy.planning.design import existing_store
from lorastudy.planning.predictions import print_nothing
from lorastudy.planning.study_plan import StudyPlan, plan_study
from lorastudy.running.phase_runner import Callbacks, OnEvent, RunOptions
from lorastudy.running.study import StudyOutcome, run_plan
from lorastudy.stats.study import labels_by_experiment
from lorastudy.store import ExperimentTracker
from lorastudy.store.export import row_of
from lorastudy.suite.suite import Suite
from lorastudy.suite.suite_file import load_suite as load_suite_file
from lorastudy.suite.suite_file import suite_from_values

if TYPE_CHECKING:
    from pandas import DataFrame

    from lorastudy.analysis.overview import Analysis
    from lorastudy.running.tuned import TunedAnswer


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """The results of a suite, read from its store."""

    suite_name: str
    store: str
    """The database: a path, or a URL."""
    outcome: StudyOutcome
    """The ids of the experiments that completed, failed, were done before or did not run."""

    def frame(self, *, full: bool = False) -> "DataFrame":
        """A data frame with one row per experiment: `label`, `arm`, `seed`, `status`, settings, scores and costs.

        `label` is what the report calls the arm, `arm` is its name in the suite. The settings are the rank, the learning
        rate and those that differ between arms. `full` gives every column of `lorastudy export --format csv`: all
        settings, predictions, data and environments. Columns have the same names either way: `settings.lora_rank`,
        `scores.eval.loss` (nats per completion token), `profile.peak_memory_bytes`, `train_seconds`. A value that was
        not measured is NaN or None.
        """
        from pandas import DataFrame

        with ExperimentTracker(self.store) as tracker:
            results = tracker.get_all_experiments(suite_name=self.suite_name)
            labels = labels_by_experiment(results, tracker.get_suites())
        rows = [{"label": labels[result.experiment_id], **row_of(result)} for result in results]
        return DataFrame(rows) if full else DataFrame(rows, columns=_first_columns(rows))

    def items(self, *, split: str = "eval", metric: str = "loss") -> "DataFrame":
        """A data frame with one row per scored item of each experiment: `label`, `arm`, `seed`, `item`, `value`, `weight`.

        `item` counts from 0 and means the same data row for all arms. `weight` is the number of completion tokens for
        a loss, and 1 for other metrics. Rows are sorted by arm, seed and item. `metric` is the name of a metric; for one of
        your own, the version that the suite measured last. A row for which it failed has no value (NaN).

        Raises:
            StudyError: no experiment has this score; the message lists the scores that exist.
        """
        from pandas import DataFrame

        with ExperimentTracker(self.store) as tracker:
            results = {
                each.experiment_id: each for each in tracker.get_all_experiments(suite_name=self.suite_name)
            }
            suites = tracker.get_suites()
            questions = next(suite.questions for suite in suites if suite.suite_name == self.suite_name)
            added = questions[-1].question.metrics if questions else ()
            key = next((each.key for each in added if each.name == metric), metric)
            stored = tracker.get_all_items(list(results), split=split, metric=key)
            labels = labels_by_experiment(list(results.values()), suites)
        if not stored:
            there = sorted({"/".join(key) for result in results.values() for key in result.scores})
            raise StudyError(
                f"no experiment has a score {split}/{metric}; there are: {', '.join(there) or 'none'}"
            )
        rows = [
            {
                "label": labels[key],
                "arm": results[key].arm,
                "seed": results[key].seed,
                "item": item,
                "value": value,
                "weight": weight,
            }
            for key, (values, weights) in stored.items()
            for item, (value, weight) in enumerate(zip(values, weights or [1] * len(values), strict=True))
        ]
        return DataFrame(rows).sort_values(["arm", "seed", "item"], ignore_index=True)

    @cached_property
    def summary(self) -> str:
        """The verdict and the recommendation, as on the first page of the report."""
        from lorastudy.report.read import read_report

        if not (self.outcome.completed or self.outcome.done_before):
            reasons = dict.fromkeys(end.message or end.failure_kind or "" for end in self.outcome.failed)
            ended = f"{len(self.outcome.failed)} failed, {len(self.outcome.not_run)} not run"
            return "\n".join([f"{self.suite_name}: no experiment has completed; {ended}", *reasons])
        with ExperimentTracker(self.store) as tracker:
            report = read_report(tracker, suite_name=self.suite_name)
        return "\n".join(line for summary in report.summaries for line in (summary.title, *summary.lines()))

    def __repr__(self) -> str:
        ended = self.outcome
        return (
            f"<StudyResult of {self.suite_name}: {len(ended.completed)} completed, {len(ended.failed)} failed, "
            f"{len(ended.done_before)} done before, {len(ended.not_run)} not run>"
        )

    def __str__(self) -> str:
        return self.summary

    def _repr_html_(self) -> str:
        first, *rest = self.summary.splitlines()
        paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in rest)
        return f"<h4>{html.escape(first)}</h4>{paragraphs}"


#: The costs that `StudyResult.frame` shows first, and what identifies a run.
_COST_COLUMNS = (
    "num_steps",
    "train_seconds",
    "profile.num_trainable_parameters",
    "profile.adapter_bytes",
    "profile.peak_memory_bytes",
    "profile.step_seconds",
    "failure_kind",
    "experiment_id",
)
_ALWAYS_SHOWN = frozenset({"settings.lora_rank", "settings.learning_rate"})


def _first_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that a user works with first."""
    every = dict.fromkeys(column for row in rows for column in row)
    settings = [
        column
        for column in every
        if column.startswith("settings.")
        and (column in _ALWAYS_SHOWN or len({str(row.get(column)) for row in rows}) > 1)
    ]
    scores = [column for column in every if column.startswith("scores.")]
    costs = [column for column in _COST_COLUMNS if column in every]
    return ["label", "arm", "seed", "status", *settings, *scores, *costs] if rows else []


def load_suite(source: str | Path | Mapping[str, Any] | None = None, /, **values: Any) -> Suite:
    """A checked suite, from a YAML file, a dict with the same keys, or keyword arguments.

        load_suite("suite.yaml")
        load_suite(base_model="lab", dataset_path="lab:facts", factors={"lora_rank": [1, 4]}, seeds=[0, 1])

    Keyword arguments may be added to a dict, but not to a file: a file is the whole suite.

    Raises:
        SuiteFileError: lists every problem with its place and fix.
        TypeError: you gave both a file and keyword arguments, or an argument of another type.
    """
    if isinstance(source, str | Path):
        if values:
            raise TypeError("load_suite: a file is the whole suite; change the file, or give a dict")
        return load_suite_file(Path(source))
    if not isinstance(source, Mapping | None):
        raise TypeError(f"load_suite: takes a file, a dict or keyword arguments, not {source!r}")
    given = {**(source or {}), **values}
    return suite_from_values(given, where="load_suite", flags={key: key for key in given})


def plan(
    suite: Suite,
    *,
    folder: str | Path = ".",
    store: str | Path | None = None,
    executor: Executor | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> StudyPlan:
    """The plan of the suite on this machine: experiments, packs, predicted memory, notes and findings.

    Writes nothing into the store. Experiments with a result in the store are not run again. The store is
    `results/experiments.db` in `folder`, or the path or database URL that you give as `store`. `on_wait` gets a line
    before each wait of seconds.

    Raises:
        DataError: the rows cannot be used with their base model.
        StudyError: what the suite names does not exist or cannot be read.
    """
    if not isinstance(suite, Suite):
        raise TypeError(f"plan: takes what load_suite returns, not {type(suite).__name__}")
    with existing_store(_store(folder, store)) as tracker:
        return plan_study(suite, tracker=tracker, executor=executor, on_wait=on_wait or print_nothing)


def run(
    plan: StudyPlan,
    *,
    folder: str | Path = ".",
    store: str | Path | None = None,
    continue_on_error: bool = False,
    executor: Executor | None = None,
    progress: OnEvent | None = None,
) -> StudyResult:
    """Train and score the plan's missing experiments, and return the results.

    Results, run folders and adapters go into `folder`, as with the command line: `results/experiments.db` (or `store`),
    `results/runs` and `output/<name>/final_model`.

    If the run is killed, call it again: it resumes from the newest checkpoint. `progress(pack, event)` is called for
    every record as it is stored: a `PackStep` for each optimizer step, a `Score`, an `Outcome`. `pack` has the
    experiments that train together.

    An experiment that fails raises nothing: `result.outcome.failed` lists it with its message. Without
    `continue_on_error`, nothing else starts after a failure.

    An executor that you pass stays open.

    Raises:
        ModelError: a base model is not available, or an arm does not fit it. Nothing was written.
        StoreError: another process writes this store.
        StudyError: a worker cannot write its files, or the plan was made for another executor.
    """
    if not isinstance(plan, StudyPlan):
        raise TypeError(f"run: takes what plan returns, not {type(plan).__name__}")
    database = _store(folder, store)
    outcome = run_plan(
        plan,
        database=database,
        executor=executor,
        options=RunOptions(
            runs=Path(folder, RUNS_DIR),
            output=Path(folder, OUTPUT_DIR),
            continue_on_error=continue_on_error,
        ),
        callbacks=Callbacks(on_event=progress or (lambda *_: None)),
    )
    return StudyResult(suite_name=plan.suite.name, store=database, outcome=outcome)


@dataclass(frozen=True, kw_only=True)
class TuneResult(StudyResult):
    """The results of `tune`, and the adapter to use."""

    answer: "TunedAnswer | None"
    """The arm to use and why, whether that is preliminary, and what another hour would buy; None if no run has a score."""
    adapter: Path | None
    """The folder of the adapter to use; None if no adapter is shown to help."""


#: Keyword arguments of `tune` that are no settings.
_TUNE_OPTIONS = frozenset({"vram", "margin", "metric", "name"})


def tune(
    base_model: str,
    dataset: str,
    *,
    hours: float = 1.0,
    folder: str | Path = ".",
    progress: OnEvent | None = None,
    **options: Any,
) -> TuneResult:
    """Find the rank, the modules and the learning rate to use within a time budget, and return the adapter's folder.

        ls.tune("lab", "lab:facts", hours=0.2, margin="5%", vram="8GB")

    `options` are `vram`, `margin`, `metric` and `name`, as with `lorastudy tune`, and settings that all arms share, such
    as `max_seq_length`. The same call goes on where an earlier one was stopped. Results go into `folder`, the adapter to
    use into `output/best`, and the suite, which repeats it all, into `output/<name>/suite.yaml`.

    Raises:
        DataError: the rows cannot be used with the base model.
        StudyError: nothing fits the memory, or no answer can come out in the time.
    """
    from lorastudy.planning.tuning import kept_or_new, tune_request
    from lorastudy.running.tuned import publish_best, tuned_answer

    settings = {key: value for key, value in options.items() if key not in _TUNE_OPTIONS}
    request = tune_request(
        {"base_model": base_model, "dataset_path": dataset, **settings},
        hours=hours,
        **{key: value for key, value in options.items() if key in _TUNE_OPTIONS},
    )
    output = Path(folder, OUTPUT_DIR)
    suite, _ = kept_or_new(request, output / request.suite_name / "suite.yaml")
    result = run(plan(suite, folder=folder), folder=folder, progress=progress)
    with ExperimentTracker(result.store) as tracker:
        answer = tuned_answer(suite, tracker=tracker)
    place = None if answer is None else publish_best(answer, output=output)
    return TuneResult(**vars(result), answer=answer, adapter=place)


def _store(folder: str | Path, store: str | Path | None) -> str:
    return str(Path(folder, DATABASE) if store is None else store)


def analyse(result: StudyResult) -> "Sequence[Analysis]":
    """The verdicts as values: one `Analysis` for each question of the suite (most suites have one).

    `analysis.primary_comparisons` compares each arm with the reference on the primary metric: `arm`, `reference`,
    `mean` (arm minus reference), `interval`, `verdict`. `analysis.comparisons` has the same by (split, metric).

    Raises:
        StudyError: no experiment has completed.
    """
    from lorastudy.report.read import read_report

    with ExperimentTracker(result.store) as tracker:
        report = read_report(tracker, suite_name=result.suite_name)
    return tuple(studied.analysis for studied in report.studies)


def write_report(
    result: StudyResult, output: str | Path = str(REPORT), *, with_answers: bool = False
) -> list[Path]:
    """Write the report and return its files: Markdown, the HTML page next to it, then the plots.

    `with_answers` adds some prompts with their references and each arm's answers. They are rows of your data.

    Raises:
        StudyError: no experiment has completed.
    """
    from lorastudy.report import read_report, save_report

    with ExperimentTracker(result.store) as tracker:
        found = read_report(tracker, suite_name=result.suite_name)
        return save_report(found, tracker, output=Path(output), with_answers=with_answers)
