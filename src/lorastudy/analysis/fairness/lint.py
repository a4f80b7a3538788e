"""Runs the linter over a case: every finding, and what follows from them for the verdicts."""

from collections.abc import Iterable, Mapping, Sequence

from lorastudy.analysis.fairness.case import Case, names
from lorastudy.analysis.fairness.catalogue import RULES
from lorastudy.analysis.fairness.finding import SEVERITIES, Breach, LintFinding, Rule


def lint(case: Case) -> tuple[LintFinding, ...]:
    """All findings, the gravest first, then by code."""
    found = [_finding(rule, breach) for rule in RULES for breach in rule.find(case)]
    return tuple(sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), finding.code)))


def blockers(findings: Iterable[LintFinding], case: Case) -> Mapping[str, str]:
    """By arm, why no verdict about it may stand: what each finding that invalidates is called, with its code.

    Every verdict is one against the reference. So what is wrong with the reference itself, such as a learning rate
    on the edge of its grid, takes the verdicts of all arms away.
    """
    reasons: dict[str, list[str]] = {}
    reference = None if case.reference is None else case.reference.name
    for finding in findings:
        if finding.severity == "invalidates":
            reason = f"{_in_a_sentence(finding.title)}, {finding.code}"
            of_all = reference in finding.arms
            for arm in names(case.arms) if of_all else finding.arms:
                by_reference = of_all and arm not in finding.arms
                reasons.setdefault(arm, []).append(f"reference: {reason}" if by_reference else reason)
    return {arm: "; ".join(texts) for arm, texts in reasons.items()}


def invalidates(findings: Sequence[LintFinding]) -> bool:
    """Whether one of the findings takes a verdict away."""
    return any(finding.severity == "invalidates" for finding in findings)


def _finding(rule: Rule, breach: Breach) -> LintFinding:
    return LintFinding(
        code=rule.code,
        title=rule.title,
        severity=breach.severity,
        arms=breach.arms,
        found=breach.found,
        why=rule.why,
        source=rule.source,
        change=rule.change,
    )


def _in_a_sentence(title: str) -> str:
    """Without its capital, unless it begins with a name: `LoRA`."""
    return title if title[1].isupper() or title[2].isupper() else title[0].lower() + title[1:]
