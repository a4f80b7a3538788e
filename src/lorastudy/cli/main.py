"""`lorastudy`: the commands. Each has its own file and imports what it needs when it is called."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from lorastudy.cli.best import best
from lorastudy.cli.check import check
from lorastudy.cli.data import data, prepare
from lorastudy.cli.estimate import estimate
from lorastudy.cli.evaluate import evaluate
from lorastudy.cli.recommend import recommend
from lorastudy.cli.report import report
from lorastudy.cli.resume import resume
from lorastudy.cli.rows import rows
from lorastudy.cli.run import run
from lorastudy.cli.store import db, doctor, export, import_results, status
from lorastudy.cli.suite import demo, suite
from lorastudy.cli.terminal import error_shown, say
from lorastudy.cli.tune import tune
from lorastudy.errors import StudyError
from lorastudy.protocol.files import disk_fault_message, is_disk_fault
from lorastudy.version import __version__

app = typer.Typer(
    name="lorastudy",
    help="Which LoRA configuration to use for a given model, data set and memory: measured and compared fairly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    demo, prepare, tune, check, estimate, recommend, run, suite, resume, status, report, best, rows, export, evaluate, doctor,
):  # fmt: skip
    app.command()(command)
app.command("import")(import_results)
app.add_typer(data)
app.add_typer(db)


@app.callback(invoke_without_command=True)
def _options(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        say(f"lorastudy {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """The program's entry point. A mistake of the user gives one message and exit code 2."""
    try:
        app(args=None if arguments is None else list(arguments))
    except StudyError as error:
        say(f"error: {error_shown(str(error))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if not is_disk_fault(error):
            raise
        say(f"error: {error_shown(disk_fault_message(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
