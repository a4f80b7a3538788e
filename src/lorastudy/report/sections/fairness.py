"""The linter's findings: how fair the comparison is, why that matters, and what to change."""

from collections import Counter
from collections.abc import Mapping, Sequence

from lorastudy.lint.case import LintFinding, Severity, arms_in_words
from lorastudy.lint.lint import RULES
from lorastudy.report.document import Block, Bullets, Code, Heading, Paragraph, Strong, Text
from lorastudy.report.numbers import listing

_COUNTED: Mapping[Severity, str] = {
    "invalidates": "{n} that invalidates verdicts|{n} that invalidate verdicts",
    "warning": "{n} warning|{n} warnings",
    "note": "{n} note|{n} notes",
}


def fairness_blocks(findings: Sequence[LintFinding], *, num_arms: int, level: int) -> list[Block]:
    """The findings of the linter, the most severe first, or that there are none."""
    heading = Heading(level=level, text="Fairness of the comparison")
    checked = f"The linter checks these arms against {len(RULES)} rules of fair comparison"
    if not findings:
        return [heading, Paragraph((f"{checked} and found no breach of any.",))]
    text = f"{checked}. It found {_counts(findings)}."
    items = tuple(_item(finding, num_arms=num_arms) for finding in findings)
    return [heading, Paragraph((text,)), Bullets(items)]


def _item(finding: LintFinding, *, num_arms: int) -> Text:
    text = (
        f" ({'invalidates verdicts' if finding.severity == 'invalidates' else finding.severity}; "
        f"{arms_in_words(finding.arms, num_arms=num_arms)}): {finding.found}. "
        f"Why: {finding.why} ({finding.source}). To change: {finding.change}."
    )
    return (Strong(f"{finding.code} {finding.title}"), *_with_code(text))


def _with_code(text: str) -> Text:
    """The text with the parts between backticks as code."""
    return tuple(Code(part) if number % 2 else part for number, part in enumerate(text.split("`")))


def _counts(findings: Sequence[LintFinding]) -> str:
    """`1 that invalidates verdicts, 2 warnings and 1 note`."""
    counts = Counter(finding.severity for finding in findings)
    return listing(
        words.split("|")[counts[severity] != 1].format(n=counts[severity])
        for severity, words in _COUNTED.items()
        if counts[severity]
    )
