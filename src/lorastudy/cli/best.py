"""`lorastudy best`: the adapter to use, the code that loads it, and its configuration for other trainers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorastudy.cli.options import AsJson, Database, OutputDir
from lorastudy.cli.terminal import say
from lorastudy.errors import StudyError
from lorastudy.places import DATABASE, OUTPUT_DIR

if TYPE_CHECKING:
    from lorastudy.report.handover import TrainedArm
    from lorastudy.report.read import Studied
    from lorastudy.report.sections.front import StudySummary
    from lorastudy.running.adapters import ChosenAdapter
    from lorastudy.store import ExperimentTracker


class TrainerName(StrEnum):
    """The program to write a configuration for."""

    trl = "trl"
    axolotl = "axolotl"
    llamafactory = "llamafactory"


def best(
    suite_name: Annotated[
        str | None, typer.Argument(help="Suite of the store; by default the one that ran last.")
    ] = None,
    trainer: Annotated[
        TrainerName | None,
        typer.Option("--for", help="Print only the configuration for this trainer, to write into a file."),
    ] = None,
    database: Database = DATABASE,
    output_dir: OutputDir = OUTPUT_DIR,
    as_json: AsJson = False,
) -> None:
    """Print the adapter to use of each study of a finished suite: its path, its configuration, and code that loads it."""
    from lorastudy.report import read_report
    from lorastudy.store import ExperimentTracker

    if as_json and trainer is not None:
        raise StudyError("--json and --for are both given; keep one")
    with ExperimentTracker(database) as tracker:
        report = read_report(tracker, suite_name=suite_name)
        if not report.studies:
            raise StudyError(f"{suite_name}: holds imported results, which have no adapter")
        last = report.studies[0].suite.suite_name
        found = [
            _found(studied, summary, tracker=tracker, output=output_dir)
            for studied, summary in zip(report.studies, report.summaries, strict=True)
            if studied.suite.suite_name == last
        ]
    if not any(one.arm for one in found):
        raise StudyError("\n".join(one.problem for one in found))
    if as_json:
        say(json.dumps([_as_json(one) for one in found], indent=2))
    elif trainer is None:
        for one in found:
            _say(one)
        say("\nTo train it elsewhere: lorastudy best --for trl (or axolotl, llamafactory)")
    else:
        _say_configurations(found, trainer=trainer)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The adapter to use of one study, or why there is none."""

    summary: "StudySummary"
    arm: "TrainedArm | None" = None
    choice: str = ""
    """Which of the arm's adapters it is, in words."""
    problem: str = ""


def _found(
    studied: "Studied", summary: "StudySummary", *, tracker: "ExperimentTracker", output: Path
) -> _Found:
    from lorastudy.running.adapters import chosen_adapter

    if summary.arm is None:
        problem = f"{summary.title}: no arm is named to use. {summary.answer}"
        return _Found(summary=summary, problem=problem)
    chosen = chosen_adapter(studied.analysis, summary.arm, tracker=tracker, output=output)
    if chosen is None or chosen.folder is None:
        problem = f"{summary.title}: the adapter of {summary.arm} is gone; restore its run folder or {output}, or run the suite again"
        return _Found(summary=summary, problem=problem)
    arm = _trained(chosen, chosen.folder, tracker=tracker)
    return _Found(summary=summary, arm=arm, choice=chosen.choice.words)


def _say(found: _Found) -> None:
    from lorastudy.cli.report import say_summary
    from lorastudy.report.handover import loading_code

    if found.arm is None:
        say(f"\n{found.problem}")
        return
    say_summary(found.summary)
    say(f"\nAdapter: {found.arm.folder}\n  {found.choice}")
    say("\nConfiguration:")
    for key, value in _configuration(found.arm).items():
        say(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
    for title, code in loading_code(found.arm).items():
        say(f"\n{title[0].upper()}{title[1:]}:")
        for line in code.splitlines():
            say(f"  {line}")


def _as_json(found: _Found) -> dict[str, object]:
    """A study as JSON: without an adapter to use, the reason stands in its place."""
    study = {"study": found.summary.title, "answer": found.summary.answer}
    if found.arm is None:
        return {**study, "problem": found.problem}
    return {
        **study,
        "arm": found.summary.arm,
        "adapter": str(found.arm.folder),
        "choice": found.choice,
        "base_model": found.arm.base_model,
        "configuration": _configuration(found.arm),
    }


def _say_configurations(found: Sequence[_Found], *, trainer: TrainerName) -> None:
    """Print a configuration for each study, under the study's name if there are several.

    In YAML a line of `---` parts them, so that no program reads them as one.
    """
    from lorastudy.report.handover import training_configuration

    if len(found) == 1 and found[0].arm is not None:
        say(training_configuration(found[0].arm, trainer.value).rstrip())
        return
    for number, one in enumerate(found):
        if number:
            say("" if trainer is TrainerName.trl else "---")
        if one.arm is None:
            say("\n".join(f"# {line}" for line in one.problem.splitlines()))
        else:
            say(f"# {one.summary.title}\n{training_configuration(one.arm, trainer.value).rstrip()}")


def _trained(chosen: "ChosenAdapter", folder: Path, *, tracker: "ExperimentTracker") -> "TrainedArm":
    from lorastudy.lab import base_folder
    from lorastudy.report.handover import TrainedArm, base_model_of, targets_of
    from lorastudy.suite.experiment import canonical_json
    from lorastudy.suite.settings import Settings

    result = tracker.get_experiment(chosen.choice.experiment_id)
    settings = Settings.model_validate_json(canonical_json(dict(result.settings)))
    target_modules, target_parameters = targets_of(folder)
    return TrainedArm(
        settings=settings,
        folder=folder,
        seed=result.seed,
        num_steps=result.num_planned_steps or result.num_steps or 0,
        target_modules=target_modules,
        target_parameters=target_parameters,
        base_model=base_model_of(settings, lab_folder=base_folder()),
    )


def _configuration(arm: "TrainedArm") -> "dict[str, object]":
    """The settings that make the arm: those of its method, and what a reader looks for first."""
    from lorastudy.planning.recommendation_request import shown_settings

    return {**shown_settings(arm.settings), "seed": arm.seed}
