"""`lorastudy best`: the adapter to use, the code that loads it, and its configuration for other trainers."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorastudy.cli.options import Database, OutputDir
from lorastudy.cli.terminal import say
from lorastudy.errors import StudyError
from lorastudy.places import DATABASE, OUTPUT_DIR

if TYPE_CHECKING:
    from lorastudy.report.handover import TrainedArm
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
) -> None:
    """Print the adapter to use of a finished suite: its path, its configuration, and code that loads it."""
    from lorastudy.cli.report import say_summary
    from lorastudy.report import read_report
    from lorastudy.report.handover import loading_code, training_configuration
    from lorastudy.running.adapters import chosen_adapter
    from lorastudy.store import ExperimentTracker

    with ExperimentTracker(database) as tracker:
        report = read_report(tracker, suite_name=suite_name)
        if not report.studies:
            raise StudyError(f"{suite_name}: holds imported results, which have no adapter")
        studied, summary = report.studies[0], report.summaries[0]
        if summary.arm is None:
            raise StudyError(f"{summary.title}: no arm is named to use. {summary.answer}")
        chosen = chosen_adapter(studied.analysis, summary.arm, tracker=tracker, output=output_dir)
        if chosen is None or chosen.folder is None:
            raise StudyError(
                f"{summary.title}: the adapter of {summary.arm} is gone; restore its run folder or {output_dir}, or run the suite again"
            )
        arm = _trained(chosen, chosen.folder, tracker=tracker)
    if trainer is not None:
        say(training_configuration(arm, trainer.value).rstrip())
        return
    say_summary(summary)
    say(f"\nAdapter: {chosen.folder}\n  {chosen.choice.words}")
    say("\nConfiguration:")
    for key, value in _configuration(arm).items():
        say(f"  {key}: {value if isinstance(value, str) else json.dumps(value)}")
    for title, code in loading_code(arm).items():
        say(f"\n{title[0].upper()}{title[1:]}:")
        for line in code.splitlines():
            say(f"  {line}")
    say("\nTo train it elsewhere: lorastudy best --for trl (or axolotl, llamafactory)")


def _trained(chosen: "ChosenAdapter", folder: Path, *, tracker: "ExperimentTracker") -> "TrainedArm":
    from lorastudy.lab import base_folder
    from lorastudy.report.handover import TrainedArm, base_model_of, target_modules_of
    from lorastudy.suite.experiment import canonical_json
    from lorastudy.suite.settings import Settings

    result = tracker.get_experiment(chosen.choice.experiment_id)
    settings = Settings.model_validate_json(canonical_json(dict(result.settings)))
    return TrainedArm(
        settings=settings,
        folder=folder,
        seed=result.seed,
        num_steps=result.num_planned_steps or result.num_steps or 0,
        target_modules=target_modules_of(folder),
        base_model=base_model_of(settings, lab_folder=base_folder()),
    )


def _configuration(arm: "TrainedArm") -> "dict[str, object]":
    """The settings that make the arm: those of its method, and what a reader looks for first."""
    from lorastudy.planning.recommendation_request import shown_settings

    return {**shown_settings(arm.settings), "seed": arm.seed}
