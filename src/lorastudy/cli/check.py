"""`lorastudy check`: problems that would make the comparison unfair, before anything runs."""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from lorastudy.cli.options import AsJson, Config, SuiteFile
from lorastudy.cli.terminal import say

if TYPE_CHECKING:
    from lorastudy.lint.case import Case, LintFinding
    from lorastudy.protocol.records import TrivialScore


def check(
    file: SuiteFile,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Check a suite against the rules of fair comparison. Exit code 1 if a finding invalidates a verdict, 2 if it cannot run."""
    from lorastudy.cli.console import reading_shown
    from lorastudy.errors import ModelError
    from lorastudy.lint.lint import invalidates
    from lorastudy.planning.study_plan import judge_suite
    from lorastudy.planning.suite_facts import trivial_lines
    from lorastudy.suite.suite_file import load_suite

    suite = load_suite(file, defaults=config)
    with reading_shown():
        plan = judge_suite(suite, on_wait=lambda line: say(line, file=sys.stderr))
    rows, adapted, findings = plan.predicted.rows, plan.predicted.adapted, plan.findings
    if adapted.misfits:
        raise ModelError("\n".join(adapted.misfits.values()))
    for note in [*rows.unknown, *plan.notes]:
        say(f"note: {note}", file=sys.stderr)
    if as_json:
        body = {
            "suite_name": suite.name,
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "trivial": _trivial(plan.case),
            "adapted": {name: dataclasses.asdict(arm) for name, arm in adapted.arms.items()},
        }
        say(json.dumps(body, indent=1))
    else:
        _show(findings, num_arms=plan.num_arms, suite_name=suite.name)
        for line in [*adapted.lines(), *trivial_lines(rows.read)]:
            say(line)
    if invalidates(findings):
        raise typer.Exit(1)


def _trivial(case: "Case | None") -> dict[str, list[dict[str, Any]]]:
    """The scores of trivial predictors on the rows of each arm, without arms whose rows could not be read."""
    read = {} if case is None else {arm.name: case.facts_of(arm).rows for arm in case.arms}
    return {
        arm: [_score(score) for rows in splits for score in rows.trivial]
        for arm, splits in read.items()
        if splits
    }


def _score(score: "TrivialScore") -> dict[str, Any]:
    """The score without its items, which are not needed before a run."""
    fields = dataclasses.asdict(score)
    return {name: value for name, value in fields.items() if name not in {"items", "weights"}}


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
