"""The linter: all its rules, what they find in a case, and which verdicts the findings invalidate.

`docs/linter.md` is generated from `RULES`.
"""

from collections.abc import Iterable, Mapping, Sequence

from lorastudy.lint import conditions, evidence, gain, rates
from lorastudy.lint.case import SEVERITIES, Breach, Case, LintFinding, Rule
from lorastudy.lint.rates import UNTUNED_CODES
from lorastudy.stats.study import Invalidation


def lint(case: Case) -> tuple[LintFinding, ...]:
    """All findings, the most severe first, then by code."""
    found = [_finding(rule, breach) for rule in RULES for breach in rule.find(case)]
    return tuple(sorted(found, key=lambda finding: (SEVERITIES.index(finding.severity), finding.code)))


def invalidations(findings: Iterable[LintFinding]) -> Mapping[str, Sequence[Invalidation]]:
    """By arm, what makes its verdicts invalid: each finding of severity `invalidates`, by title and code.

    Every verdict compares with the reference, so an invalid reference makes all verdicts invalid; the caller applies that.
    """
    found: dict[str, list[Invalidation]] = {}
    for finding in findings:
        if finding.severity == "invalidates":
            why = f"{_in_a_sentence(finding.title)}, {finding.code}"
            for arm in finding.arms:
                found.setdefault(arm, []).append(Invalidation(code=finding.code, why=why))
    return found


def untuned(findings: Iterable[LintFinding]) -> frozenset[str]:
    """The arms without a learning rate of their own: never varied, or best on the edge of those tried.

    If all arms are equal in this, the finding is a warning and invalidates nothing; still, no such arm can win.
    """
    return frozenset(arm for finding in findings if finding.code in UNTUNED_CODES for arm in finding.arms)


def invalidates(findings: Sequence[LintFinding]) -> bool:
    """Whether one of the findings invalidates a verdict."""
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
    """The title with a small first letter, unless it begins with a name such as `LoRA`."""
    return title if title[1].isupper() or title[2].isupper() else title[0].lower() + title[1:]


RULES: tuple[Rule, ...] = tuple(
    sorted(
        (*rates.RULES, *conditions.RULES, *conditions.SIZE_RULES, *evidence.RULES, *gain.RULES),
        key=lambda rule: rule.code,
    )
)
