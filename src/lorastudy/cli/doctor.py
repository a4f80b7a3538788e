"""`lorastudy doctor`: whether the results store and its run folders are as they were written."""

import typer

from lorastudy.cli.options import Database
from lorastudy.cli.terminal import say
from lorastudy.places import DATABASE


def doctor(database: Database = DATABASE) -> None:
    """Check every row, record and adapter. Name what is damaged and the remedy. Exit code 1 if something is damaged."""
    from lorastudy.report.numbers import plural
    from lorastudy.store.doctor import examine

    findings = examine(database)
    for finding in findings:
        say(finding)
    num_damages = sum(finding.kind == "damage" for finding in findings)
    if num_damages:
        say(f"{database}: {plural(num_damages, 'damage')}")
        raise typer.Exit(1)
    say(f"{database}: sound; every row, record and adapter is what was written")
