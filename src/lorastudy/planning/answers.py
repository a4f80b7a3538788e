"""What a worker answered for plans, kept in the user's cache folder, so that each question is asked once.

An answer is kept under the hash of its question, of the configuration it is about, of the library versions, and of
the source of the engine and of what makes tokens: a faster engine that holds other tensors is counted anew without
anybody thinking of it.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lorastudy.cache import cache_folder, keep, source_digest
from lorastudy.errors import DataError, ModelError, StudyError
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

#: What an answer depends on besides the question.
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "lorastudy")
_SOURCES = ("engine/*.py", "data/*.py", "protocol/footprint.py", "suite/targets.py")

Ask = Callable[[PlanningJob], dict[str, Any]]
"""Runs a job in a worker; `executors.process`."""


class Answers:
    """Answers from the cache, and from a worker where there is none yet."""

    def __init__(self, ask: Ask | None, *, folder: Path | None = None) -> None:
        """Without `ask` only what is kept is answered."""
        self._ask = ask
        self._folder = folder or cache_folder("plans")
        self._read: dict[str, dict[str, Any]] = {}
        self._problems: dict[str, StudyError] = {}

    def fetch(self, questions: Sequence[tuple[Question, str]], *, base_model: str) -> None:
        """Have all that is new of (question, what it depends on besides itself) answered, by one worker.

        What cannot be answered is told when it is asked for by `get`: it keeps nobody from the other answers.
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
            ):  # a better library, or a file that is mended, may answer tomorrow: it is not kept
                self._problems[key] = problem
            else:
                self._keep(key, answer)

    def get(self, question: Question, about: str, *, base_model: str) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            DataError: what the worker said of the data.
            ModelError: what it said of the model.
        """
        self.fetch([(question, about)], base_model=base_model)
        key = _key(question, about)
        if key in self._problems:
            raise self._problems[key]
        return self._read[key]

    def kept(self, question: Question, about: str) -> dict[str, Any] | None:
        """The answer if it is kept."""
        return self._kept(_key(question, about))

    def _kept(self, key: str) -> dict[str, Any] | None:
        if key not in self._read:
            path = self._folder / f"{key}.json"
            try:
                self._read[key] = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):  # not there, or torn: asked again
                return None
        return self._read[key]

    def _keep(self, key: str, answer: dict[str, Any]) -> None:
        self._read[key] = answer
        keep(self._folder / f"{key}.json", [json.dumps(answer).encode()])


def problem_in(answer: Mapping[str, Any]) -> StudyError | None:
    """What the worker said of data or model instead of an answer."""
    if "problem" not in answer:
        return None
    return (DataError if answer.get("is_of_data") else ModelError)(answer["problem"])


def config_digest(base_model: str) -> str:
    """The hash of a base model's `config.json`, and of the code beside it.

    Raises:
        ModelError: it is not on this machine.
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
        [version(name) for name in _LIBRARIES],
        source_digest(*_SOURCES),
        [] if isinstance(question, ModelQuestion | RowsQuestion) else _machine(),
    ]
    kind = "footprint" if isinstance(question, FootprintQuestion) else question.kind
    return f"{kind}-{hashlib.sha256(canonical_json(body).encode()).hexdigest()[:24]}"


def _machine() -> list[str | None]:
    variables = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return [platform.node(), *(os.environ.get(name) for name in variables)]
