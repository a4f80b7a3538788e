"""Options that several commands share."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorastudy.places import DATABASE

if TYPE_CHECKING:
    from lorastudy.store import ExperimentTracker

Database = Annotated[str, typer.Option(help="Results store: an SQLite file, or a database URL.")]


def readable_store(database: str) -> "AbstractContextManager[ExperimentTracker | None]":
    """The store that `--database` names, opened for reading. The default store may not exist yet: then None."""
    from lorastudy.planning.design import existing_store
    from lorastudy.store import ExperimentTracker

    return existing_store(database) if database == DATABASE else ExperimentTracker(database)


RunsDir = Annotated[Path, typer.Option(help="Folder of the run folders: records, adapters, logs.")]

OutputDir = Annotated[
    Path,
    typer.Option(
        help="Trained adapters go to <output-dir>/<name>/final_model, or <output-dir>/<suite>/<name>/final_model if another adapter is there."
    ),
]

ReportFile = Annotated[Path, typer.Option(help="The Markdown report; the HTML page lies beside it.")]

SuiteFile = Annotated[Path, typer.Argument(help="Suite file (YAML).")]

Config = Annotated[
    Path | None,
    typer.Option(help="Defaults file; if omitted, configs/default_config.yaml in this folder, if it exists."),
]

ContinueOnError = Annotated[
    bool, typer.Option("--continue-on-error", help="Continue with the other experiments after a failure.")
]

TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Let the base model's folder run its own Python code."),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: Parts of help texts of options whose defaults differ from command to command.
QUANTIZATIONS = "4bit, 8bit, fp16, bf16 or fp32"
PLANNED_MODEL = "Folder with a config.json, a model fetched from the hub before, or `lab`."
MEMORY_TO_FIT = "Memory it has to fit, such as 8GB or 80GiB"
TARGET_MODULES = "A preset (q, v, qv, qkvo, mlp, all), or module names with commas between."


def target_modules_of(text: str) -> str | list[str]:
    """The value of `--target-modules` as a suite file has it: a preset, or a list of names."""
    from lorastudy.suite.settings import TARGET_PRESETS

    return text if text in TARGET_PRESETS else [name.strip() for name in text.split(",") if name.strip()]
