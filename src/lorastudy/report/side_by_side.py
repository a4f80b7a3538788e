"""Rows of one split side by side: the prompt, the reference, and what each arm makes of them.

Every scored row has a loss for each arm, the mean over the seeds that report. The store keeps answers for the first rows of
a split only; each arm's answer is that of its first seed. Prompts and references are read from the study's own files, and
left out if these are not the files that were scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from lorastudy.analysis.overview import Analysis, scores_by_item
from lorastudy.data.load import DataRows, RowTexts, train_and_eval
from lorastudy.data.sources import dataset_fingerprint
from lorastudy.errors import DataError, StudyError
from lorastudy.protocol.records import Generation
from lorastudy.stats.study import StudyArm, reporting_split
from lorastudy.stats.summary import LOSS
from lorastudy.stats.verdicts import Floats
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.wording import did_you_mean

SplitName = Literal["eval", "test"]
#: Which end of the rows comes first.
Order = Literal["worst", "best", "differ"]

SPLIT_WORDS = {"eval": "held-out", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class RowOfArms:
    """One scored row. `row` is its place among the scored rows of its split, from 1 on."""

    split: str | None
    row: int | None
    prompt: str | None
    reference: str | None
    where: str | None = None
    """File and line."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """By arm, in nats per token."""
    answers: Mapping[str, str] = field(default_factory=dict)
    """By arm."""

    @property
    def title(self) -> str:
        """`test 7`, or a dash in a store that did not record it."""
        return (
            "\N{EN DASH}"
            if self.row is None
            else f"{SPLIT_WORDS.get(str(self.split), self.split)} {self.row}"
        )

    def is_right(self, arm: str) -> bool:
        """Whether the arm's answer is the reference, but for white space."""
        return " ".join(self.answers.get(arm, "").split()) == " ".join((self.reference or "").split())


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """Some rows of one split in the order that was asked for, and what they are compared by."""

    split: SplitName
    arm: str
    other: str
    arms: tuple[str, ...]
    num_scored: int
    num_seeds: int
    rows: tuple[RowOfArms, ...]
    notes: tuple[str, ...]


def side_by_side(
    tracker: ExperimentTracker,
    analysis: Analysis,
    *,
    arms: tuple[str, str],
    split: SplitName | None = None,
    order: Order = "worst",
    num_rows: int = 5,
) -> SideBySide:
    """Rows of the split with prompt, reference, and each arm's loss and answer.

    `worst` and `best` order by the first arm's loss, `differ` by how much it differs from the second one's. The split is the one
    that the study reports on, unless it is given.

    Raises:
        StudyError: no arm has losses on these rows; the message says which rows have.
    """
    arm, other = arms
    chosen = reporting_split(analysis.study) if split is None else split
    losses = _losses(tracker, analysis, split=chosen)
    if arm not in losses:
        raise StudyError(_without_losses(tracker, analysis, arm=arm, split=chosen))
    cost_R = {
        "worst": -losses[arm],
        "best": losses[arm],
        "differ": -np.abs(losses[arm] - losses.get(other, losses[arm])),
    }[order]
    texts, notes = _texts(analysis.study.arm(arm), split=chosen, num_scored=len(cost_R))
    answers = {(row.split, row.row): row for row in stored_answers(tracker, analysis) if row.split == chosen}
    rows = []
    for place in np.argsort(cost_R, kind="stable")[:num_rows].tolist():
        kept = answers.get((chosen, place + 1)) or RowOfArms(
            split=chosen, row=place + 1, prompt=None, reference=None
        )
        if texts:
            read = texts[place]
            kept = replace(kept, where=read.where, prompt=read.prompt, reference=read.reference)
        rows.append(replace(kept, losses={name: float(values[place]) for name, values in losses.items()}))
    if not all(row.answers for row in rows):
        notes.append("Answers are kept for the first rows of each split only; the other rows have losses.")
    return SideBySide(
        split=chosen,
        arm=arm,
        other=other,
        arms=tuple(losses),
        num_scored=len(cost_R),
        num_seeds=len(_reporting(analysis, analysis.study.arm(arm))),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def arm_called(analysis: Analysis, name: str) -> str:
    """The label of the completed arm with this label, or with this name in its suite.

    Raises:
        StudyError: there is none; the message names the nearest one and all others.
    """
    arms = [summary.arm for summary in analysis.completed]
    for arm in arms:
        if name in {arm.name, arm.given_name}:
            return arm.name
    labels = [arm.name for arm in arms]
    near = did_you_mean(name, labels) or did_you_mean(name, [arm.given_name for arm in arms])
    raise StudyError(f"no arm {name!r}{near}; the arms are: {', '.join(labels)}")


def stored_answers(tracker: ExperimentTracker, analysis: Analysis) -> tuple[RowOfArms, ...]:
    """The answers that the store keeps of each arm's first seed that reports, in the order of splits and rows.

    Rows are the same if split, place, prompt and reference are. Test rows and held-out rows are never joined.
    """
    found: dict[tuple[str | None, int | None, str, str], dict[str, str]] = {}
    for summary in analysis.completed:
        first = min(_reporting(analysis, summary.arm), key=lambda run: run.seed, default=None)
        generations: Sequence[Generation] = (
            [] if first is None else tracker.get_generations(first.experiment_id)
        )
        for one in generations:
            key = (one.split, one.row, one.prompt, one.reference)
            found.setdefault(key, {})[summary.arm.name] = one.answer
    return tuple(
        RowOfArms(
            split=split,
            row=None if row is None else row + 1,
            prompt=prompt,
            reference=reference,
            answers=answers,
        )
        for (split, row, prompt, reference), answers in found.items()
    )


def _reporting(analysis: Analysis, arm: StudyArm) -> list[ExperimentResult]:
    return [run for run in analysis.study.reporting_runs(arm) if run.status == "completed"]


def _losses(tracker: ExperimentTracker, analysis: Analysis, *, split: str) -> dict[str, Floats]:
    """Each arm's loss on every row of the split: the mean over its seeds that report. An arm without is missing."""
    found = {}
    for summary in analysis.completed:
        runs = _reporting(analysis, summary.arm)
        scores = scores_by_item(tracker, runs, split=split, metric=LOSS.name)
        lengths = {len(one.values) for one in scores.values()}
        if len(lengths) == 1:
            values = [one.values for one in scores.values()]
            found[summary.arm.name] = np.array(values, dtype=np.float64).mean(axis=0)
    return found


def _without_losses(tracker: ExperimentTracker, analysis: Analysis, *, arm: str, split: SplitName) -> str:
    there = [name for name in SPLIT_WORDS if arm in _losses(tracker, analysis, split=name)]
    instead = f"; it has losses on {SPLIT_WORDS[there[0]]} rows: `--split {there[0]}`" if there else ""
    return f"{arm} has no losses on single {SPLIT_WORDS[split]} rows{instead}"


def _texts(arm: StudyArm, *, split: SplitName, num_scored: int) -> tuple[list[RowTexts], list[str]]:
    """The scored rows from their file, or none of them and why."""
    settings = arm.typed_settings
    try:
        sources = arm.completed[-1].sources
        for key in ("dataset", "eval_dataset", "test_dataset"):
            path, known = getattr(settings, f"{key}_path"), sources.get(key)
            if path is not None and known is not None and dataset_fingerprint(path) != known:
                return [], [f"No prompts: {path} has changed since the study."]
        data = train_and_eval(settings)
        part: DataRows | None = data.test if split == "test" else data.held_out
        texts = [] if part is None else list(part.texts())
    except DataError as error:
        return [], [f"No prompts: {error}"]
    if len(texts) != num_scored:
        why = "some have no answer within max_seq_length or became several rows"
        return [], [f"No prompts: {num_scored} rows were scored of {len(texts)} in the file, since {why}."]
    return texts, []
