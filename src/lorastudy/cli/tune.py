"""`lorastudy tune`: from a base model and rows to the adapter to use, within a time budget."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorastudy.cli.options import (
    MEMORY_TO_FIT,
    QUANTIZATIONS,
    Database,
    OutputDir,
    RunsDir,
    TrustRemoteCode,
)
from lorastudy.cli.report import say_summary
from lorastudy.cli.terminal import say
from lorastudy.places import DATABASE, OUTPUT_DIR, RUNS_DIR

if TYPE_CHECKING:
    from lorastudy.suite.suite import Suite


def tune(
    base_model: Annotated[str, typer.Option(help="Folder, hub id, or `lab`.")],
    dataset: Annotated[str, typer.Option(help="Training rows: a file, or lab:<name>.")],
    hours: Annotated[
        float, typer.Option(help="Time budget in hours, such as 0.5: of work, pauses do not count.")
    ] = 1.0,
    vram: Annotated[str | None, typer.Option(help=f"{MEMORY_TO_FIT}; by default this machine's.")] = None,
    margin: Annotated[
        str,
        typer.Option(
            help="How much worse than the best still counts as good: a share of what training gains, such as 5%, or a number in the metric's unit."
        ),
    ] = "5%",
    metric: Annotated[str, typer.Option(help="What decides: loss, token_accuracy or exact_match.")] = "loss",
    name: Annotated[
        str | None, typer.Option(help="Names the suite; by default tune_ and the data set's name.")
    ] = None,
    eval_dataset: Annotated[
        str | None, typer.Option(help="Validation rows; by default a tenth of the training rows.")
    ] = None,
    test_dataset: Annotated[
        str | None, typer.Option(help="Test rows; by default a tenth of the training rows.")
    ] = None,
    num_epochs: Annotated[
        float | None, typer.Option(help="Passes over the training rows in a whole training; by default 1.")
    ] = None,
    max_seq_length: Annotated[int | None, typer.Option(help="Tokens per row; by default 512.")] = None,
    quantization: Annotated[
        str | None, typer.Option(help=f"{QUANTIZATIONS}; by default bf16 if that fits, else 4bit.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    database: Database = DATABASE,
    runs_dir: RunsDir = RUNS_DIR,
    output_dir: OutputDir = OUTPUT_DIR,
) -> None:
    """Find the rank, the modules and the learning rate to use, and put the adapter into <output-dir>/best.

    The same command goes on where it was stopped.
    """
    from lorastudy.cli.running import run_experiments
    from lorastudy.planning.tuning import kept_or_new, tune_request
    from lorastudy.running.phase_runner import RunOptions

    request = tune_request(
        {
            "base_model": base_model, "dataset_path": dataset, "eval_dataset_path": eval_dataset,
            "test_dataset_path": test_dataset, "num_train_epochs": num_epochs, "max_seq_length": max_seq_length,
            "quantization": quantization, "trust_remote_code": trust_remote_code or None,
        },
        hours=hours, vram=vram, margin=margin, metric=metric, name=name,
    )  # fmt: skip
    file = output_dir / request.suite_name / "suite.yaml"
    suite, lines = kept_or_new(request, file, on_wait=_note)
    for line in lines or [f"{file} goes on; delete it to plan anew"]:
        _note(f"plan: {line}")
    try:
        run_experiments(
            suite,
            database=database,
            options=RunOptions(runs=runs_dir, output=output_dir),
            command=shlex.split(request.command),
        )
    except typer.Exit:  # The run was stopped, or a run failed. The answer is what is known by now.
        _say_answer(suite, database=database, output_dir=output_dir)
        raise
    _say_answer(suite, database=database, output_dir=output_dir)


def _say_answer(suite: "Suite", *, database: str, output_dir: Path) -> None:
    """Print the answer by now, put its adapter into the output folder, and say what another hour would buy."""
    from lorastudy.planning.design import existing_store
    from lorastudy.report.numbers import names, plural
    from lorastudy.running.tuned import publish_best, tuned_answer

    with existing_store(database) as tracker:
        answer = None if tracker is None else tuned_answer(suite, tracker=tracker)
    if answer is None:
        say("no answer yet: no run has a score", file=sys.stderr)
        return
    if answer.summary is not None:
        say_summary(answer.summary)
    else:
        say(f"\n{suite.name}")
    place = publish_best(answer, output=output_dir)
    if answer.is_preliminary:
        say(
            "Preliminary. "
            + (f"Use {answer.label} so far." if answer.label else "No arm is shown to help so far.")
        )
    if place is not None and answer.taken is not None:
        say(f"Adapter. {place} ({answer.label}, seed {answer.taken.seed}: {answer.why})")
    if answer.left_out:
        say(f"Left out. {names(answer.left_out)}: clearly behind on the validation rows.")
    if answer.num_untried:
        say(f"Not tried. {plural(answer.num_untried, 'arm')}, for which the time did not suffice.")
    if answer.next_hour:
        say(f"Another hour would buy {answer.next_hour}.")
    given = [] if database == DATABASE else ["--database", database]
    say(f"suite: {suite.path} repeats it")
    say(f"next: {shlex.join(['lorastudy', 'report', '--suite-name', suite.name, *given])}")


def _note(line: str) -> None:
    say(line, file=sys.stderr)
