"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Database = Annotated[str, typer.Option(help="Results store: an SQLite file, or a database URL.")]

RunsDir = Annotated[Path, typer.Option(help="Folder of the run folders: records, adapters, logs.")]

OutputDir = Annotated[
    Path,
    typer.Option(
        help="Trained adapters go to <output-dir>/<name>/final_model, or <output-dir>/<suite>/<name>/final_model where that is taken."
    ),
]

Config = Annotated[
    Path | None,
    typer.Option(help="Defaults; without it configs/default_config.yaml of this folder, if there."),
]
