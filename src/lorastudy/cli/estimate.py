"""`lorastudy estimate`: memory, time and disk of a configuration or a suite, before anything runs."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from lorastudy.cli.options import (
    MEMORY_TO_FIT,
    PLANNED_MODEL,
    QUANTIZATIONS,
    TARGET_MODULES,
    AsJson,
    Database,
    TrustRemoteCode,
    readable_store,
    target_modules_of,
)
from lorastudy.cli.terminal import say
from lorastudy.errors import StoreError, StudyError
from lorastudy.places import DATABASE

if TYPE_CHECKING:
    from lorastudy.planning.answers import Answers
    from lorastudy.store import ExperimentTracker
    from lorastudy.store.views import ExperimentResult
    from lorastudy.suite.experiment import Experiment
    from lorastudy.suite.settings import Settings


def estimate(
    base_model: Annotated[str, typer.Option(help=PLANNED_MODEL)] = "lab",
    suite: Annotated[Path | None, typer.Option(help="Estimate the packs of a suite file instead.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Method of the arms, such as dora; full for full fine-tuning.")
    ] = None,
    rank: Annotated[list[int] | None, typer.Option(help="Rank of the arms; give it several times.")] = None,
    target_modules: Annotated[str, typer.Option(help=TARGET_MODULES)] = "qkvo",
    max_seq_length: Annotated[
        int, typer.Option(help="Tokens per row; every row is assumed to have that many.")
    ] = 512,
    batch_size: Annotated[int, typer.Option(help="Rows per forward pass, for each arm.")] = 4,
    accumulation: Annotated[int, typer.Option(help="Forward passes per optimizer step.")] = 1,
    quantization: Annotated[str, typer.Option(help=f"{QUANTIZATIONS}.")] = "bf16",
    arms: Annotated[int, typer.Option(help="Arms of each rank, trained together.", min=1)] = 1,
    lora_dropout: Annotated[float, typer.Option(help="Dropout before lora_A.")] = 0.0,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute activations.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    vram: Annotated[str | None, typer.Option(help=f"{MEMORY_TO_FIT}.")] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Time a few real steps first; loads the model.")
    ] = False,
    database: Database = DATABASE,
    as_json: AsJson = False,
) -> None:
    """Predict peak memory term by term, time and disk space. Show what fits, and which changes would make it fit."""
    from lorastudy.cli.console import PlainConsole
    from lorastudy.cli.plan_output import show_pack_report
    from lorastudy.planning.estimate import budget_of
    from lorastudy.planning.pack_report import pack_reports, time_steps
    from lorastudy.planning.predictions import OnWait, print_nothing, use_stored_times, worker_answers
    from lorastudy.planning.study_plan import StudyPlan, plan_configurations, plan_study
    from lorastudy.suite.suite_file import load_suite

    loaded = None if suite is None else load_suite(suite)
    budget = None if vram is None else budget_of(vram)

    def planned(answers: "Answers", tracker: "ExperimentTracker | None", *, on_wait: OnWait) -> StudyPlan:
        if loaded is not None:
            return plan_study(loaded, tracker=tracker, answers=answers, on_wait=on_wait)
        asked = {
            "base_model": base_model, "max_seq_length": max_seq_length, "quantization": quantization,
            "per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation,
            "lora_dropout": lora_dropout, "gradient_checkpointing": gradient_checkpointing,
            "trust_remote_code": trust_remote_code, "target_modules": target_modules_of(target_modules),
        }  # fmt: skip
        settings = _settings(asked, method=method)
        if rank and settings.arm_method.is_full:
            raise StudyError("--rank: full fine-tuning has no adapter and no rank; leave it out")
        return plan_configurations(_arms(settings, ranks=rank or [16], copies=arms), answers)

    with worker_answers(_note) as answers, _store(database) as (tracker, results):
        plan = planned(answers, tracker, on_wait=_note)
        is_done = budget is None and not plan.missing
        if calibrate and not is_done:
            time_steps(plan)
            plan = planned(answers, tracker, on_wait=print_nothing)
        if loaded is None:
            use_stored_times(plan.predicted, results)
        reports = [] if is_done else pack_reports(plan, answers, budget=budget)
    for problem in plan.predicted.problems:
        _note(f"note: {problem}")
    if as_json:
        say(json.dumps({"packs": [report.to_json() for report in reports]}, indent=1))
        return
    if is_done:
        say(f"{plan.suite.name}: no experiment is left to run; `--vram` estimates all of them")
    console = PlainConsole()
    for report in reports:
        show_pack_report(console, report, of_suite=suite is not None)


def _settings(asked: Mapping[str, object], *, method: str | None) -> "Settings":
    """The settings that the options ask for.

    Raises:
        StudyError: there is no such method, or it cannot train as the other options say.
    """
    from lorastudy.suite.methods import Method, method_problem, written_out
    from lorastudy.suite.settings import settings_from_options
    from lorastudy.suite.wording import did_you_mean

    if method is not None and method not in get_args(Method):
        near = did_you_mean(method, get_args(Method)) or f"; one of {', '.join(get_args(Method))}"
        raise StudyError(f"--method: {method}: unknown{near}")
    values = {**asked, "method": method}
    problem = method_problem(values)
    if problem is not None:
        raise StudyError(f"--{problem[0].replace('_', '-')}: {problem[1]}")
    return settings_from_options(**written_out(values))


@contextmanager
def _store(database: str) -> "Iterator[tuple[ExperimentTracker | None, Sequence[ExperimentResult]]]":
    """The store and its results. An estimate needs neither, so a default store that cannot be read is only noted."""
    with ExitStack() as opened:
        tracker: ExperimentTracker | None = None
        results: Sequence[ExperimentResult] = ()
        try:
            tracker = opened.enter_context(readable_store(database))
            results = () if tracker is None else tracker.get_all_experiments()
        except StoreError as error:
            if database != DATABASE:
                raise
            _note(f"note: nothing counts as done, and times of stored runs are not known: {error}")
            tracker = None
        yield tracker, results


def _note(line: str) -> None:
    say(line, file=sys.stderr)


def _arms(settings: "Settings", *, ranks: Sequence[int], copies: int) -> "list[Experiment]":
    """Arms of these ranks or one of full fine-tuning, each `copies` times, on one order of the rows and so in one pack."""
    from lorastudy.suite.experiment import Experiment, Sources

    if min(ranks) < 1:
        raise StudyError(f"--rank: {min(ranks)}: at least 1")
    return [
        Experiment(
            name=f"r{rank}_{copy}", arm=f"r{rank}", experiment_type="custom", seed=copy,
            settings=settings.model_copy(update={"lora_rank": rank, "data_seed": 0}),
            sources=Sources(base_model=settings.base_model, dataset=""),
        )
        for rank in ranks
        for copy in range(copies)
    ]  # fmt: skip
