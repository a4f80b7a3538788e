"""A worker's answers to planning questions, cached in the user's cache folder so that each question is asked once.

The cache key hashes the question, the model configuration it is about, the library versions, and the source of the
engine and of the data code. A changed engine therefore invalidates its old answers by itself.

Steps that a worker timed on this machine are such an answer, and a calibration: one part of a step does not depend on the
tokens (launches, the optimizer); the other grows with the tokens of all arms:

    seconds = a + b x arms x tokens, with a and b by least squares and neither below 0.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lorastudy.errors import DataError, ModelError, StudyError
from lorastudy.places import cache_folder, keep, source_digest
from lorastudy.planning.memory import CONFIG_NAME, config_folder
from lorastudy.protocol.jobs import (
    FootprintQuestion,
    MachineQuestion,
    ModelQuestion,
    PlanningJob,
    Question,
    RowsQuestion,
    as_json,
)
from lorastudy.suite.experiment import canonical_json
from lorastudy.version import installed_version

#: Libraries and source files that an answer depends on besides the question.
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "lorastudy")
_SOURCES = ("engine/*.py", "data/*.py", "protocol/jobs.py", "suite/targets.py")

Ask = Callable[[PlanningJob], dict[str, Any]]
"""Runs a job in a worker; `executors.process`."""


class Answers:
    """Answers from the cache, or from a worker for a question that is not cached yet."""

    def __init__(self, ask: Ask | None, *, folder: Path | None = None) -> None:
        """Without `ask`, only cached questions can be answered."""
        self._ask = ask
        self._folder = folder or cache_folder("plans")
        self._read: dict[str, dict[str, Any]] = {}
        self._problems: dict[str, StudyError] = {}

    def fetch(self, questions: Sequence[tuple[Question, str]], *, base_model: str) -> None:
        """Have one worker answer every question that is not cached yet.

        Each pair is (question, what the answer depends on besides the question). A question that cannot be answered
        raises its error in `get`, not here, so that the other answers remain usable.
        """
        missing = {
            key: question
            for question, about in questions
            if (key := _key(question, about)) not in self._problems and self._kept(key) is None
        }
        if not missing:
            return
        assert self._ask is not None, "asked for more than is kept"
        job = PlanningJob(questions=tuple(missing.values()), base_model=base_model)
        for key, answer in zip(missing, self._ask(job)["answers"], strict=True):
            problem = problem_in(answer)
            if (
                problem is not None
            ):  # never cached: another library version or a repaired file may answer next time
                self._problems[key] = problem
            else:
                self._keep(key, answer)

    def get(self, question: Question, about: str, *, base_model: str) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            DataError: the worker could not use the data.
            ModelError: the worker could not use the model.
        """
        self.fetch([(question, about)], base_model=base_model)
        key = _key(question, about)
        if key in self._problems:
            raise self._problems[key]
        return self._read[key]

    def kept(self, question: Question, about: str) -> dict[str, Any] | None:
        """The cached answer, if there is one."""
        return self._kept(_key(question, about))

    def _kept(self, key: str) -> dict[str, Any] | None:
        if key not in self._read:
            path = self._folder / f"{key}.json"
            try:
                self._read[key] = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):  # missing, or half written: ask again
                return None
        return self._read[key]

    def _keep(self, key: str, answer: dict[str, Any]) -> None:
        self._read[key] = answer
        keep(self._folder / f"{key}.json", [json.dumps(answer).encode()])


def problem_in(answer: Mapping[str, Any]) -> StudyError | None:
    """The error that a worker returned in place of an answer; None for a real answer."""
    if "problem" not in answer:
        return None
    return (DataError if answer.get("is_of_data") else ModelError)(answer["problem"])


def config_digest(base_model: str) -> str:
    """The hash of a base model's `config.json` and of the Python files beside it.

    Raises:
        ModelError: the model is not on this machine.
    """
    folder = config_folder(base_model)
    digest = hashlib.sha256((folder / CONFIG_NAME).read_bytes())
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _key(question: Question, about: str) -> str:
    values = as_json(question)
    if not isinstance(question, MachineQuestion | RowsQuestion):
        values.pop("folder", None)
    body = [
        values,
        about,
        [installed_version(name) for name in _LIBRARIES],
        source_digest(*_SOURCES),
        [] if isinstance(question, ModelQuestion | RowsQuestion) else _machine(),
    ]
    kind = "footprint" if isinstance(question, FootprintQuestion) else question.kind
    return f"{kind}-{hashlib.sha256(canonical_json(body).encode()).hexdigest()[:24]}"


def _machine() -> list[str | None]:
    variables = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return [platform.node(), *(os.environ.get(name) for name in variables)]


@dataclass(frozen=True, kw_only=True)
class PacePoint:
    """A timed step. `num_tokens` counts the tokens of all arms."""

    num_arms: int
    num_tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all arms per second."""
        return self.num_tokens / self.seconds


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Timed steps of one model, one precision and one choice of modules, on one machine."""

    points: tuple[PacePoint, ...]
    source: str = "timed steps of this machine"
    """What the steps are, in words."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The calibration in a worker's answer."""
        return cls(points=tuple(PacePoint(**point) for point in values["points"]))

    def step_seconds(self, num_tokens: float) -> float:
        """Seconds of a forward and backward pass over the tokens of all arms, and of the optimizer's step."""
        fixed, per_token = _line([(float(p.num_tokens), p.seconds) for p in self.points])
        return fixed + per_token * num_tokens

    def best_num_arms(self, *, at_most: int) -> int:
        """The number of arms per pack, up to `at_most`, with the most tokens a second.

        Only measured numbers are chosen, because the speed of larger packs is not known. In the reference engine arms
        take turns, so only one arm is timed, and there is nothing to choose.
        """
        if len(self.points) == 1:
            return at_most
        allowed = [point for point in self.points if point.num_arms <= at_most]
        if not allowed:
            return at_most
        return max(allowed, key=lambda point: point.tokens_per_second).num_arms


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope by least squares. A line through the origin if either would be negative."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    if slope <= 0 or mean_y - slope * mean_x < 0:
        return (0.0, sum(x * y for x, y in points) / sum(x * x for x, _ in points))
    return mean_y - slope * mean_x, slope
