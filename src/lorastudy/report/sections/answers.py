"""Stored answers side by side: a prompt, its reference, and what each arm generated.

These are rows of the user's data, so a report has them only if it is asked for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorastudy.analysis.overview import Analysis
from lorastudy.protocol.records import Generation
from lorastudy.report.document import Block, Cell, Heading, Paragraph, Table, TableColumn
from lorastudy.report.numbers import ABSENT, count
from lorastudy.report.sections.versus import two_arms
from lorastudy.store import ExperimentTracker

#: Longer texts are cut, so that a row stays readable.
_MOST_SHOWN = 600


@dataclass(frozen=True, kw_only=True)
class AskedRow:
    """One row with the answers of the arms that have one for it."""

    prompt: str
    reference: str
    answers: Mapping[str, str]

    def is_right(self, arm: str) -> bool:
        """Whether the arm's answer is the reference, but for white space."""
        return " ".join(self.answers.get(arm, "").split()) == " ".join(self.reference.split())


def stored_answers(tracker: ExperimentTracker, analysis: Analysis) -> tuple[AskedRow, ...]:
    """The answers that the store keeps of each arm's first seed that reports. Rows are the same if prompt and reference are."""
    study = analysis.study
    found: dict[tuple[str, str], dict[str, str]] = {}
    for summary in analysis.completed:
        runs = [run for run in study.reporting_runs(summary.arm) if run.status == "completed"]
        first = min(runs, key=lambda run: run.seed, default=None)
        generations: Sequence[Generation] = (
            [] if first is None else tracker.get_generations(first.experiment_id)
        )
        for one in generations:
            found.setdefault((one.prompt, one.reference), {})[summary.arm.name] = one.answer
    return tuple(
        AskedRow(prompt=prompt, reference=reference, answers=answers)
        for (prompt, reference), answers in found.items()
    )


def answer_blocks(analysis: Analysis, rows: Sequence[AskedRow], *, level: int) -> list[Block]:
    """A row for each stored prompt: first those that only the reference answers right, last those that only the named arm does."""
    if not rows:
        return []
    arms = [summary.arm.name for summary in analysis.completed]
    arm, other = two_arms(analysis)
    ordered = sorted(rows, key=lambda row: row.is_right(arm) - row.is_right(other))
    order = (
        f" First come rows that {other} answers as the reference and {arm} does not, last those of which the opposite holds."
        if arm != other
        else ""
    )
    text = (
        f"The answers that the store keeps are those to the first rows of each split. Here are {count(len(rows))} rows with the "
        f"answers of each arm's first seed.{order} They are rows of the data: do not share this report if the data is private."
    )
    columns = (
        TableColumn("Prompt", numeric=False),
        TableColumn("Reference", numeric=False),
        *(TableColumn(name, numeric=False) for name in arms),
    )
    table = Table(
        columns=columns,
        rows=tuple(
            (
                Cell(_shown(row.prompt)),
                Cell(_shown(row.reference)),
                *(Cell(_shown(row.answers[name]) if name in row.answers else ABSENT) for name in arms),
            )
            for row in ordered
        ),
    )
    return [Heading(level=level, text="Answers side by side"), Paragraph((text,)), table]


def _shown(text: str) -> str:
    stripped = text.strip()
    return stripped if len(stripped) <= _MOST_SHOWN else f"{stripped[:_MOST_SHOWN]}…"
