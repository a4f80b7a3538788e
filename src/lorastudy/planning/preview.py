"""Rows of a suite or a file as the base model will see them. A worker reads them; they are not cached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lorastudy.planning.answers import Ask, problem_in
from lorastudy.planning.estimate import shared_values
from lorastudy.planning.packing import groups
from lorastudy.planning.suite_facts import rows_key
from lorastudy.protocol.jobs import PlanningJob, PreviewQuestion
from lorastudy.protocol.records import DataSummary
from lorastudy.suite.experiment import Experiment, canonical_json
from lorastudy.suite.settings import Settings


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """The text of neighbouring tokens that share the flags below."""

    text: str
    is_cut_off: bool
    is_trained: bool
    """Whether the text is part of an answer, even if it is cut off."""
    is_special: bool


@dataclass(frozen=True, kw_only=True)
class PreviewedRow:
    """One row, with the ids and labels of the training. A refused row has neither: the cut removed its whole answer."""

    where: str
    is_refused: bool
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    num_trained_tokens: int
    num_whole_tokens: int
    num_whole_trained_tokens: int
    layout: str
    fell_back: bool
    """Whether the chat template received the row's function calls as text."""
    unseen: tuple[str, ...]
    """Fields of the row's messages that the text does not show."""
    pieces: tuple[TextPiece, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The row in a worker's answer."""
        lists = {key: tuple(values[key]) for key in ("input_ids", "labels", "unseen")}
        pieces = tuple(TextPiece(**piece) for piece in values["pieces"])
        return cls(**{**values, **lists, "pieces": pieces})

    @property
    def is_cut(self) -> bool:
        """Whether the end of the row is cut off."""
        return not self.is_refused and len(self.input_ids) < self.num_whole_tokens


@dataclass(frozen=True, kw_only=True)
class Preview:
    """Some rows of a split, and a summary of all its rows."""

    summary: DataSummary
    max_seq_length: int
    notes: tuple[str, ...]
    """Notes on columns that are not trained on."""
    rows: tuple[PreviewedRow, ...]


def preview(question: PreviewQuestion, ask: Ask) -> Preview:
    """The rows as a worker reads them.

    Raises:
        DataError: a run could not use the rows. The message is that of the run.
        ModelError: a run could not use the model. The message is that of the run.
    """
    job = PlanningJob(questions=(question,), base_model=question.settings["base_model"])
    (answer,) = ask(job)["answers"]
    problem = problem_in(answer)
    if problem is not None:
        raise problem
    return Preview(
        summary=DataSummary.from_json(answer["summary"]),
        max_seq_length=answer["max_seq_length"],
        notes=tuple(answer["notes"]),
        rows=tuple(map(PreviewedRow.from_json, answer["rows"])),
    )


def question_of_arm(
    experiments: Sequence[Experiment], *, arm: str, split: str, num_rows: int
) -> PreviewQuestion:
    """The question on the rows that the first run of an arm reads, together with its pack."""
    chosen = next(experiment for experiment in experiments if experiment.arm == arm)
    together = next(group for group in groups(experiments) if chosen in group)
    lengths = {(each.settings.max_steps, each.settings.num_train_epochs) for each in together}
    return PreviewQuestion(
        settings=shared_values(chosen.settings),
        num_rows=num_rows,
        split=split,
        lengths=tuple(sorted(lengths, key=canonical_json)),
        data_seed=chosen.data_seed,
    )


def question_of_file(settings: Settings, *, num_rows: int) -> PreviewQuestion:
    """The question on the first rows of a file."""
    return PreviewQuestion(settings=shared_values(settings), num_rows=num_rows)


def arms_by_rows(experiments: Sequence[Experiment]) -> list[list[str]]:
    """The arms in groups whose rows become the same tokens, in the order of the suite."""
    found: dict[str, dict[str, None]] = {}
    for experiment in experiments:
        found.setdefault(rows_key(experiment.settings), {})[experiment.arm] = None
    return [list(arms) for arms in found.values()]
