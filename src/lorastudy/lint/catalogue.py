"""All rules of the linter, by code. `docs/linter.md` is generated from them."""

from lorastudy.lint import conditions, evidence, gain, guessing, rates, sizes
from lorastudy.lint.finding import Rule

RULES: tuple[Rule, ...] = tuple(
    sorted(
        (*rates.RULES, *conditions.RULES, *sizes.RULES, *evidence.RULES, *gain.RULES, *guessing.RULES),
        key=lambda rule: rule.code,
    )
)
