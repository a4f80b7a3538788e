"""`lorastudy check`: problems that would make the comparison unfair, before anything runs."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from lorastudy.cli.options import AsJson, Config, SuiteFile
from lorastudy.cli.terminal import say

if TYPE_CHECKING:
    from lorastudy.lint.case import LintFinding


def check(
    file: SuiteFile,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Check a suite against the rules of fair comparison. Exit code 1 if a finding invalidates a verdict, 2 if it cannot run."""
    from lorastudy.cli.console import reading_shown
    from lorastudy.lint.lint import invalidates
    from lorastudy.planning.plan_summary import judgement_json
    from lorastudy.planning.study_plan import judge_suite
    from lorastudy.planning.suite_facts import trivial_lines
    from lorastudy.suite.suite_file import load_suite

    suite = load_suite(file, defaults=config)
    with reading_shown():
        plan = judge_suite(suite, on_wait=lambda line: say(line, file=sys.stderr))
    plan.check_layers()
    rows = plan.predicted.rows
    for note in [*rows.unknown, *plan.notes]:
        say(f"note: {note}", file=sys.stderr)
    if as_json:
        say(json.dumps(judgement_json(plan), indent=1))
    else:
        _show(plan.findings_shown, num_arms=plan.num_arms, suite_name=suite.name)
        for line in [*plan.predicted.adapted.lines(plan.labels), *trivial_lines(rows.read)]:
            say(line)
    if invalidates(plan.findings):
        raise typer.Exit(1)


def _show(findings: Sequence["LintFinding"], *, num_arms: int, suite_name: str) -> None:
    from lorastudy.lint.case import arms_in_words
    from lorastudy.lint.evidence import TOO_FEW_SEEDS
    from lorastudy.lint.lint import RULES
    from lorastudy.report.numbers import plural

    for finding in findings:
        say(
            f"{finding.code} {finding.severity}: {finding.title} ({arms_in_words(finding.arms, num_arms=num_arms)})"
        )
        for label, text in (
            ("found", finding.found),
            ("why", f"{finding.why} ({finding.source})"),
            ("change", finding.change),
        ):
            say(f"  {label + ':':<8}{text}")
        say()
    counts = Counter(finding.severity for finding in findings)
    grave, warned, noted = (counts[severity] for severity in ("invalidates", "warning", "note"))
    say(
        f"{suite_name}: {plural(num_arms, 'arm')} checked against {len(RULES)} rules; {plural(grave, 'finding')} "
        f"{'invalidates' if grave == 1 else 'invalidate'} verdicts, {plural(warned, 'warning')}, {plural(noted, 'note')}"
    )
    if any(finding.code == TOO_FEW_SEEDS and finding.severity == "warning" for finding in findings):
        say(f"These seeds are too few to show a difference between arms ({TOO_FEW_SEEDS})")
