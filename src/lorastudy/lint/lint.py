"""Runs the linter over a case: every finding, and what follows from them for the verdicts."""

from collections.abc import Iterable, Mapping, Sequence

from lorastudy.lint import conditions, evidence, gain, rates, sizes
from lorastudy.lint.case import Case
from lorastudy.lint.finding import SEVERITIES, Breach, LintFinding, Rule
from lorastudy.lint.rates import UNTUNED_CODES
from lorastudy.stats.study import Invalidation


def lint(case: Case) -> tuple[LintFinding, ...]:
    """All findings, the gravest first, then by code."""
    found = [_finding(rule, breach) for rule in RULES for breach in rule.find(case)]
    return tuple(sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), finding.code)))


def invalidations(findings: Iterable[LintFinding]) -> Mapping[str, Sequence[Invalidation]]:
    """By arm, what takes its verdicts away: each finding that invalidates, by its title and code.

    Every verdict is one against the reference, so what is wrong with the reference takes those of all arms away;
    that is for whoever compares.
    """
    found: dict[str, list[Invalidation]] = {}
    for finding in findings:
        if finding.severity == "invalidates":
            why = f"{_in_a_sentence(finding.title)}, {finding.code}"
            for arm in finding.arms:
                found.setdefault(arm, []).append(Invalidation(code=finding.code, why=why))
    return found


def untuned(findings: Iterable[LintFinding]) -> frozenset[str]:
    """The arms that had no learning rate of their own: never varied, or best on the edge of what was tried.

    Where such a finding does not invalidate, because all arms are equal in it, it still lets no arm win.
    """
    return frozenset(arm for finding in findings if finding.code in UNTUNED_CODES for arm in finding.arms)


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


RULES: tuple[Rule, ...] = tuple(
    sorted(
        (*rates.RULES, *conditions.RULES, *sizes.RULES, *evidence.RULES, *gain.RULES),
        key=lambda rule: rule.code,
    )
)
