"""`lorastudy data`: show how a suite's rows are read."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from lorastudy.cli.options import AsJson, Config, SuiteFile
from lorastudy.cli.terminal import say
from lorastudy.errors import StudyError

data = typer.Typer(
    name="data", help="Show a suite's rows as the base model will see them.", no_args_is_help=True
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
