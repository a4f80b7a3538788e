"""Two arms side by side: their settings, scores and costs, and the paired difference between them.

Only the page has this, since there a reader chooses the two. Scores and costs are the cells of the table of results.
"""

import itertools
from collections.abc import Iterator, Sequence

from lorastudy.analysis.overview import Analysis
from lorastudy.recommend.decision import decide
from lorastudy.report.document import Block, Cell, Heading, Paragraph, Shown, Table, TableColumn, Versus
from lorastudy.report.findings.wording import difference_decimals
from lorastudy.report.numbers import ABSENT, interval, plural, signed
from lorastudy.report.sections.overview import configuration_of
from lorastudy.report.sections.results import arms_table
from lorastudy.stats.comparison import Comparison
from lorastudy.stats.study import StudyArm

#: Of more arms, each is compared with the reference only.
_MOST_IN_ALL_PAIRS = 12


def versus_blocks(analysis: Analysis, *, level: int) -> list[Block]:
    """The heading, what the difference is, and the arms to choose from; empty with fewer than two."""
    arms = tuple(summary.arm.name for summary in analysis.completed)
    if len(arms) < 2 or analysis.reference is None:
        return []
    text = (
        f"The difference in {analysis.primary.title.lower()} is paired, with its 95 % interval, and no verdict: intervals of "
        "single pairs are not corrected for their number."
    )
    versus = Versus(
        arms=arms,
        chosen=two_arms(analysis),
        table=_side_by_side(analysis, arms),
        differences=tuple(_differences(analysis)),
    )
    heading = Heading(level=level, text="Compare two arms")
    return [Shown(on_page=(heading, Paragraph((text,)), versus))]


def two_arms(analysis: Analysis, arm: str | None = None) -> tuple[str, str]:
    """The arm, by default the one that the study names, and the reference, or if that is the same arm the first other one."""
    arms = [summary.arm.name for summary in analysis.completed]
    named = arm or decide(analysis).arm or arms[0]
    reference = [] if analysis.reference is None else [analysis.reference.name]
    return named, next((arm for arm in [*reference, *arms] if arm != named), named)


def _side_by_side(analysis: Analysis, arms: Sequence[str]) -> Table:
    """A row for each setting in which an arm differs from another one or from the default, then one for each column of results."""
    settings = {name: dict(configuration_of(analysis.study.arm(name), analysis.study)) for name in arms}
    keys = dict.fromkeys(key for of_arm in settings.values() for key in of_arm)
    results = arms_table(analysis)
    by_arm = {
        summary.arm.name: row
        for summary, row in zip(analysis.summaries, results.rows, strict=True)
        if summary.arm.name in settings
    }
    rows = [
        *((Cell(key), *(Cell(settings[name].get(key, ABSENT)) for name in arms)) for key in keys),
        *(
            (Cell(column.title), *(by_arm[name][place] for name in arms))
            for place, column in enumerate(results.columns)
            if place
        ),
    ]
    columns = (TableColumn("", numeric=False), *(TableColumn(name, numeric=False) for name in arms))
    return Table(columns=columns, rows=tuple(rows))


def _differences(analysis: Analysis) -> Iterator[tuple[str, str, str]]:
    """Each pair in both orders."""
    for pair in _pairs(analysis):
        if pair.mean is not None:
            yield pair.arm, pair.reference, _in_words(pair, sign=1)
            yield pair.reference, pair.arm, _in_words(pair, sign=-1)


def _pairs(analysis: Analysis) -> Iterator[Comparison]:
    arms: list[StudyArm] = [summary.arm for summary in analysis.completed]
    if len(arms) > _MOST_IN_ALL_PAIRS:
        yield from analysis.primary_comparisons
        return
    for one, other in itertools.combinations(arms, 2):
        yield from analysis.pairs([one], reference=other)


def _in_words(pair: Comparison, *, sign: int) -> str:
    """`+0.123 nats per token [0.098, 0.150] over 6 seeds`, with the sign for the other order."""
    decimals = difference_decimals(pair)
    assert pair.mean is not None
    bounds = pair.interval
    if bounds is not None and sign < 0:
        bounds = (-bounds[1], -bounds[0])
    unit = f" {pair.metric.unit}" if pair.metric.unit else ""
    within = "" if bounds is None else f" {interval(bounds, decimals)}"
    return f"{signed(sign * pair.mean, decimals)}{unit}{within} over {plural(pair.n, 'seed')}"
