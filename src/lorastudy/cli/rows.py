"""`lorastudy rows`: prompts, references and every arm's answers or losses, row by row."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lorastudy.cli.options import AsJson, Database
from lorastudy.cli.terminal import say
from lorastudy.errors import StudyError
from lorastudy.places import DATABASE

if TYPE_CHECKING:
    from lorastudy.report.side_by_side import Order, RowOfArms, SideBySide

_WIDTH = 100
_MOST_CHARACTERS = 600


class SplitChoice(StrEnum):
    """The rows to show."""

    eval = "eval"
    test = "test"


def _arms_of_the_latest_study(context: typer.Context, incomplete: str) -> Iterator[str]:
    """The arms that begin so, for the shell's completion."""
    from lorastudy.report import read_report
    from lorastudy.store import ExperimentTracker

    given = context.params
    try:
        with ExperimentTracker(given.get("database") or DATABASE) as tracker:
            report = read_report(tracker, suite_name=given.get("suite_name"))
    except StudyError:
        return
    for studied in report.studies[:1]:
        labels = [summary.arm.name for summary in studied.analysis.completed]
        yield from (label for label in labels if label.startswith(incomplete))


def rows(
    *,
    suite_name: Annotated[
        str | None,
        typer.Option("--suite-name", "--suite", help="Suite of the store; by default the one that ran last."),
    ] = None,
    arm: Annotated[
        str | None,
        typer.Option(
            help="The arm that orders the rows, such as r=16; by default the one that the study names.",
            autocompletion=_arms_of_the_latest_study,
        ),
    ] = None,
    split: Annotated[
        SplitChoice | None,
        typer.Option(help="Test rows or held-out rows (eval); by default those that the study reports on."),
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(min=1, help="This many rows on which the arm has the highest loss (the default: 5)."),
    ] = None,
    best: Annotated[
        int | None, typer.Option(min=1, help="This many rows on which it has the lowest loss.")
    ] = None,
    differ: Annotated[
        int | None,
        typer.Option(min=1, help="This many rows on which it differs most from the arm it is compared with."),
    ] = None,
    database: Database = DATABASE,
    as_json: AsJson = False,
) -> None:
    """Show rows of your data with their references and what every arm answers, the worst rows first."""
    from lorastudy.report import read_report
    from lorastudy.report.sections.versus import two_arms
    from lorastudy.report.side_by_side import arm_called, side_by_side
    from lorastudy.store import ExperimentTracker

    order, num_rows = _order(worst=worst, best=best, differ=differ)
    with ExperimentTracker(database) as tracker:
        report = read_report(tracker, suite_name=suite_name)
        if not report.studies:
            raise StudyError(f"{suite_name}: holds imported results, which have no rows")
        studied = report.studies[0]
        named = None if arm is None else arm_called(studied.analysis, arm)
        found = side_by_side(
            tracker,
            studied.analysis,
            arms=two_arms(studied.analysis, named),
            split=None if split is None else split.value,
            order=order,
            num_rows=num_rows,
        )
    if as_json:
        say(
            json.dumps(
                {"suite": studied.analysis.study.suite_name, "order": order, **asdict(found)}, indent=1
            )
        )
        return
    say(f"{studied.title}: {_in_words(found, order=order)}")
    for note in found.notes:
        say(f"note: {note}")
    for row in found.rows:
        _say_row(row, found)


def _order(*, worst: int | None, best: int | None, differ: int | None) -> "tuple[Order, int]":
    given: list[tuple[Order, int | None]] = [("worst", worst), ("best", best), ("differ", differ)]
    chosen = [(order, number) for order, number in given if number is not None]
    if len(chosen) > 1:
        raise StudyError("--worst, --best and --differ exclude each other")
    return chosen[0] if chosen else ("worst", 5)


def _in_words(found: "SideBySide", *, order: "Order") -> str:
    from lorastudy.report.numbers import count, plural
    from lorastudy.report.side_by_side import SPLIT_WORDS

    what = {
        "worst": f"on which {found.arm} has the highest loss",
        "best": f"on which {found.arm} has the lowest loss",
        "differ": f"on which the losses of {found.arm} and {found.other} differ most",
    }[order]
    return (
        f"the {count(len(found.rows))} of {count(found.num_scored)} {SPLIT_WORDS[found.split]} rows {what}. "
        f"A loss is in nats per token, the mean over {plural(found.num_seeds, 'seed')}; an answer is that of the first seed."
    )


def _say_row(row: "RowOfArms", found: "SideBySide") -> None:
    from lorastudy.report.numbers import number

    say(f"\n{row.title}{'' if row.where is None else f' ({row.where})'}")
    for title, text in (("prompt", row.prompt), ("reference", row.reference)):
        if text is not None:
            _say_text(title, text)
    width = max(map(len, found.arms))
    for name in found.arms:
        answer = row.answers.get(name)
        marked = "" if answer is None else f"  {'=' if row.is_right(name) else chr(0x2260)} {_cut(answer)}"
        say(f"  {name:<{width}}  {number(row.losses[name], 3):>7}{marked}")


def _say_text(title: str, text: str) -> None:
    for line in textwrap.wrap(f"{title}: {_cut(text)}", width=_WIDTH - 2):
        say(f"  {line}")


def _cut(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _MOST_CHARACTERS else f"{joined[:_MOST_CHARACTERS]}…"
