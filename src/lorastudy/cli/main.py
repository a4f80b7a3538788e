"""`lorastudy`: the commands. Each lives in a file of its own and imports what it needs when it is called."""

import sys
from collections.abc import Sequence

import typer

from lorastudy.cli.demo import demo
from lorastudy.cli.estimate import estimate
from lorastudy.cli.evaluate import evaluate
from lorastudy.cli.prepare import prepare
from lorastudy.cli.report import report
from lorastudy.cli.resume import resume
from lorastudy.cli.run import run
from lorastudy.cli.status import status
from lorastudy.cli.suite import suite
from lorastudy.errors import StudyError

app = typer.Typer(
    name="lorastudy",
    help="Which LoRA configuration to use for a given model, data set and memory: measured and compared fairly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (demo, prepare, estimate, run, suite, resume, status, report, evaluate):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """The program's entry point; a mistake of the user's is one message and exit code 2."""
    try:
        app(args=None if arguments is None else list(arguments))
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
