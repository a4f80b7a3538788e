"""Commands on data: `prepare` makes a data set ready for a study, and `data preview` shows how a suite's rows are read."""

import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from lorastudy.cli.options import AsJson, Config, SuiteFile
from lorastudy.cli.terminal import say, shown
from lorastudy.errors import StudyError
from lorastudy.places import DATA_DIR

if TYPE_CHECKING:
    from lorastudy.cli.console import PlainConsole
    from lorastudy.data.prepare import Prepared, Wanted
    from lorastudy.data.prompts import Example


_NUM_CHARACTERS_SHOWN = 1500


_NUM_ROWS_SHOWN = 3


def prepare(
    dataset: Annotated[
        str,
        typer.Option(
            help="`alpaca`, a data set of the Hugging Face hub (org/name), or a JSON, JSONL, CSV, Parquet or text file "
            "(also .gz, and a pattern such as 'data/*.jsonl')."
        ),
    ] = "alpaca",
    further: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATASET]...", help="Further data sets of the same columns, read after the first."
        ),
    ] = None,
    num_samples: Annotated[int, typer.Option(help="Rows to take; -1 takes all.")] = -1,
    train_test_split: Annotated[
        float | None,
        typer.Option(
            help="Share of the rows for training: also writes <name>_train.jsonl and <name>_test.jsonl, split by prompt."
        ),
    ] = None,
    validation_split: Annotated[
        float | None,
        typer.Option(
            help="With --train-test-split: this share also goes to <name>_validation.jsonl, and the rest to the test."
        ),
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Folder to write into.")] = DATA_DIR,
    seed: Annotated[int, typer.Option(help="Another seed takes another sample.")] = 0,
    prompt_column: Annotated[
        str | None, typer.Option(help="Column of the prompts, where it is not recognised.")
    ] = None,
    completion_column: Annotated[
        str | None, typer.Option(help="Column of the answers, where it is not recognised.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column to train on as plain text; the other columns are left out.")
    ] = None,
    separator: Annotated[
        str,
        typer.Option(
            help=r"Text between each prompt and its answer, such as '\n' or ' '; \n is a line break, \t a tab."
        ),
    ] = "",
    base_model: Annotated[
        str | None,
        typer.Option(help="Show rows as this model will see them: a folder, a model of the hub, or `lab`."),
    ] = None,
    max_seq_length: Annotated[
        int, typer.Option(help="With --base-model: tokens at which rows are cut.", min=8)
    ] = 512,
) -> None:
    """Download or read a data set, and write it as JSON lines in a form that every study reads."""
    from lorastudy.cli.console import PlainConsole, reading_shown
    from lorastudy.data import prepare as preparing
    from lorastudy.data.formats import format_of
    from lorastudy.data.prepare import fetched, hub_dataset
    from lorastudy.suite.base_model import check_base_model

    datasets = (dataset, *(further or ()))
    wanted = preparing.Wanted(
        datasets=datasets,
        output_dir=output_dir,
        num_samples=num_samples,
        train_share=train_test_split,
        validation_share=validation_split,
        seed=seed,
    )
    if base_model is not None:
        check_base_model(base_model)
    for hub_id in filter(None, map(hub_dataset, datasets)):
        say(f"looking for {hub_id} on the Hugging Face hub ...", file=sys.stderr)
    named = partial(
        format_of,
        prompt_column=prompt_column,
        completion_column=completion_column,
        text_column=text_column,
        separator=_unescaped(separator),
    )
    with reading_shown(), fetched(*datasets) as rows:
        prepared = preparing.prepare(rows, wanted=wanted, format_of=named)
    console = PlainConsole()
    _print_counts(console, prepared, wanted=wanted)
    if base_model is None:
        _print_example(console, prepared.example)
    else:
        _preview(console, prepared.files[0].path, base_model=base_model, max_seq_length=max_seq_length)


def _preview(console: "PlainConsole", file: Path, *, base_model: str, max_seq_length: int) -> None:
    """Print the first rows of a written file as a suite with this base model would read them."""
    from lorastudy.cli.previewing import previewed, show_preview
    from lorastudy.planning.preview import question_of_file
    from lorastudy.suite.settings import Settings

    settings = Settings(base_model=base_model, dataset_path=str(file), max_seq_length=max_seq_length)
    found = previewed(question_of_file(settings, num_rows=_NUM_ROWS_SHOWN))
    console.print()
    show_preview(console, found, of=f"the first rows of {file} with {base_model}")


def _unescaped(text: str) -> str:
    r"""The text with `\n`, `\t` and `\\` replaced by their characters: a shell passes them on as typed."""
    meant = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda found: meant[found[1]], text)


def _print_counts(console: "PlainConsole", prepared: "Prepared", *, wanted: "Wanted") -> None:
    fmt = prepared.format
    columns = ", ".join(
        part if part == column else f"{part} = {column}" for part, column in fmt.columns.items()
    )
    console.print(f"Format: {fmt.name} ({columns})")
    for note in fmt.notes:
        console.print(f"Note: {note}")
    console.print(f"Rows: {prepared.num_rows} read, {prepared.num_taken} taken")
    if prepared.num_empty_answers:
        console.print(f"Left out: {prepared.num_empty_answers} with an empty answer")
    if prepared.num_taken < wanted.num_samples:
        console.print(f"Note: fewer rows than --num-samples {wanted.num_samples}: there are no more")
    if prepared.num_empty_prompts:
        console.print(f"Empty prompts: {prepared.num_empty_prompts} (kept)")
    console.print(
        f"Duplicates: {prepared.num_duplicates} (kept; a row and its duplicates are on one side of a split)"
    )
    if prepared.split_by == "row":
        console.print(
            "Note: there are fewer than ten prompts, so rows of one prompt are on both sides of the split"
        )
    for written in prepared.files:
        console.print(f"Wrote {written.path}: {written.num_rows} rows")


def _print_example(console: "PlainConsole", example: "Example") -> None:
    """Print one rendered row. Marks surround the trained part besides its colour, for pipes and the colour-blind."""
    from rich.text import Text

    from lorastudy.cli.console import BEGIN, END

    console.print(f"\nOne example ({example.row.where}); the part between {BEGIN} and {END} is trained:\n")
    text = Text()
    for segment in example.segments:
        if segment.trained:
            text.append(f"{BEGIN}{_shortened(segment.text)}{END}", style="bold green")
        else:
            text.append(_shortened(segment.text), style="dim")
    console.print(text)
    before, answer = example.segments[0].text, example.segments[-1].text
    if example.format.name == "prompt_completion" and not (before[-1:].isspace() or answer[:1].isspace()):
        console.print(
            "\nNote: nothing separates prompt and answer; --separator ' ' or --separator '\\n' adds a separator."
        )
    if example.format.name in ("messages", "sharegpt"):
        console.print(
            "\nA model with a chat template renders conversations by that instead; --base-model MODEL shows it."
        )


def _shortened(text: str) -> str:
    if len(text) <= _NUM_CHARACTERS_SHOWN:
        return shown(text)
    return f"{shown(text[:_NUM_CHARACTERS_SHOWN])} [... {len(text) - _NUM_CHARACTERS_SHOWN} more characters]"


class _PreviewByDefault(TyperGroup):
    """`lorastudy data FILE` is `lorastudy data preview FILE`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of the first word, or `preview` for a word that ends as a suite file does."""
        is_file = Path(args[0]).suffix in {".yaml", ".yml"}
        return super().resolve_command(ctx, ["preview", *args] if is_file else args)


data = typer.Typer(
    cls=_PreviewByDefault,
    name="data",
    help="Show a suite's rows as the base model will see them.",
    no_args_is_help=True,
)


class SplitName(StrEnum):
    """The parts of a suite's rows."""

    train = "train"
    eval = "eval"
    test = "test"
    forgetting = "forgetting"


@data.callback()
def _verbs() -> None:
    """Keep `preview` a verb of its own, though it is the only one."""


@data.command()
def preview(
    file: SuiteFile,
    rows: Annotated[int, typer.Option(help="Rows to show.", min=1)] = 3,
    split: Annotated[
        SplitName,
        typer.Option(
            help="Which rows. Training rows are in the order in which the first seed trains on them."
        ),
    ] = SplitName.train,
    arm: Annotated[
        str | None, typer.Option(help="Which arm, where arms read rows differently; by default the first.")
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Show rows as the base model will see them: their text, the trained part, their length and their layout."""
    from lorastudy.cli.console import PlainConsole
    from lorastudy.cli.previewing import preview_as_json, previewed, show_preview
    from lorastudy.planning.design import Designer
    from lorastudy.planning.preview import arms_by_rows, question_of_arm
    from lorastudy.suite.suite_file import load_suite

    suite = load_suite(file, defaults=config)
    experiments = Designer(suite=suite).foreseen()
    kinds = arms_by_rows(experiments)
    chosen = _chosen(arm, kinds)
    if arm is None and len(kinds) > 1:
        others = ", ".join(kind[0] for kind in kinds[1:])
        say(
            f"note: these are the rows of {chosen}; other arms read rows differently: --arm {others}",
            file=sys.stderr,
        )
    found = previewed(question_of_arm(experiments, arm=chosen, split=split.value, num_rows=rows))
    if as_json:
        say(preview_as_json(found))
    else:
        show_preview(PlainConsole(), found, of=split.value)


def _chosen(arm: str | None, kinds: Sequence[Sequence[str]]) -> str:
    from lorastudy.suite.wording import did_you_mean

    names = [name for kind in kinds for name in kind]
    if arm is None:
        return names[0]
    if arm not in names:
        raise StudyError(f"--arm {arm}: no such arm{did_you_mean(arm, names)}; arms are {', '.join(names)}")
    return arm
