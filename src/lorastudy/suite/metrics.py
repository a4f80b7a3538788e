"""The metrics that a suite adds to those that every run has: the package's, and functions of the user's own.

    metrics: [token_f1, path/to/file.py:right_number]

A metric gives one number for each held-out row. It is no part of an experiment's identity: it is measured on the stored
adapter, after training. So a metric that is added to a finished suite trains nothing.

A function of the user's own is called with what its parameters ask for: `prompt`, `answer`, `reference` and `row` (the
row of the file, as a dict). Attributes of the function say more about it: `name`, `higher_is_better`, `unit` and
`max_seconds`, the time limit for a row. A hash of its file, and of the modules that it imports from its folder, is part of
the name under which its scores are stored, so scores of two versions of a function never mix.
"""

import hashlib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self

from lorastudy.errors import StudyError
from lorastudy.suite.own_code import imported_files, is_file, name_in_file, run_file
from lorastudy.suite.wording import did_you_mean, shown

#: What a metric reads: generated answers, the likelihood of a row's choices, or that of its own answer.
MetricInput = Literal["answers", "choices", "likelihood"]

#: The metrics that every run has. They need not be listed.
ALWAYS_MEASURED = ("loss", "token_accuracy", "exact_match")

#: The parameters that a function of the user's own may have.
PARAMETERS = ("prompt", "answer", "reference", "row")

#: Seconds that a function may take for one row, unless its attribute `max_seconds` gives another limit.
MAX_SECONDS = 10.0

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ .-]{0,59}")
_HASH_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class MetricDefinition:
    """One metric: what it is called, which direction is good, and where its code is.

    `version` is that of a metric of the package; it changes with the definition. A function of the user's own has its
    file's hash instead.
    """

    name: str
    title: str
    higher_is_better: bool
    unit: str = ""
    version: int = 1
    reads: MetricInput = "answers"
    file: str | None = None
    """The file of the user's function; None for a metric of the package."""
    function: str | None = None
    source_sha256: str | None = None
    max_seconds: float = MAX_SECONDS

    @property
    def key(self) -> str:
        """The name in the store: that of the metric and, for a user's function, the beginning of its file's hash."""
        return self.name if self.source_sha256 is None else f"{self.name}@{self.source_sha256[:_HASH_DIGITS]}"

    @property
    def as_written(self) -> str:
        """The value for a suite file, with an absolute path."""
        return self.name if self.file is None else f"{Path(self.file).absolute()}:{self.function}"

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The definition that `to_json` wrote."""
        return cls(**values)


#: The package's own metrics. `evaluation.text_metrics` and `evaluation.token_metrics` define the numbers.
BUILT_IN: Mapping[str, MetricDefinition] = {
    definition.name: definition
    for definition in (
        MetricDefinition(name="token_f1", title="Token F1", unit="share", higher_is_better=True),
        MetricDefinition(name="rouge_l", title="ROUGE-L", unit="share", higher_is_better=True),
        MetricDefinition(
            name="contains",
            title="Answer contains reference",
            unit="share",
            higher_is_better=True,
            version=2,  # of whole words
        ),
        MetricDefinition(
            name="choice_accuracy",
            title="Choice accuracy",
            unit="share",
            higher_is_better=True,
            reads="choices",
        ),
        MetricDefinition(
            name="bits_per_byte",
            title="Bits per byte",
            unit="bits per byte",
            higher_is_better=False,
            reads="likelihood",
        ),
    )
}


def read_metrics(
    entries: Sequence[str], *, folder: Path, on_problem: Callable[[int, str], None]
) -> tuple[MetricDefinition, ...]:
    """The definitions of a suite's metrics, without those that are always measured.

    A user's file is run, to find the function and its attributes. Paths begin at `folder`. `on_problem` gets the
    number of each entry that cannot be used, and the cause.
    """
    found: dict[str, MetricDefinition] = {}
    modules: dict[Path, ModuleType] = {}
    for number, entry in enumerate(entries):
        if entry in ALWAYS_MEASURED:
            continue
        try:
            definition = BUILT_IN.get(entry) or _of_function(entry, folder=folder, modules=modules)
        except StudyError as problem:
            on_problem(number, str(problem))
            continue
        if definition.name in found:
            on_problem(
                number, f"the name {definition.name!r} is taken by another entry; give it another `name`"
            )
        found.setdefault(definition.name, definition)
    return tuple(found.values())


def metric_named(name: str, metrics: Iterable[MetricDefinition]) -> MetricDefinition | None:
    """The metric that `primary_metric` names: by its name, by `file.py:function`, or by the function alone."""
    in_file = name_in_file(name)
    wanted = name if in_file is None else in_file[1]
    return next((one for one in metrics if wanted in {one.name, one.function}), None)


def load_function(definition: MetricDefinition) -> Callable[..., Any]:
    """The user's function, for a worker.

    Raises:
        StudyError: the file is gone, raises, or is not the one that the suite was read with.
    """
    assert definition.file is not None
    assert definition.function is not None
    path = Path(definition.file)
    if not is_file(path):
        raise StudyError(f"metrics: {path} is not there any more; run the suite again")
    module = run_file(path, package="lorastudy.metrics")
    if _sha256(path) != definition.source_sha256:
        raise StudyError(
            f"metrics: {path}, or a module that it imports, has changed since the suite was read; run the suite again"
        )
    function: Callable[..., Any] = getattr(module, definition.function)
    return function


def parameters_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names among `PARAMETERS` with which the function is called."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return PARAMETERS
    return tuple(parameter.name for parameter in parameters if parameter.name in PARAMETERS)


def _of_function(entry: str, *, folder: Path, modules: dict[Path, ModuleType]) -> MetricDefinition:
    """The definition of `path/to/file.py:function`.

    Raises:
        StudyError: there is no such metric, file or function, the function cannot be called, or the file raises.
    """
    in_file = name_in_file(entry)
    if in_file is None:
        known = (*ALWAYS_MEASURED, *BUILT_IN)
        raise StudyError(
            f"must be one of {', '.join(known)}, or path/to/file.py:function, not {shown(entry)}{did_you_mean(entry, known)}"
        )
    path, name = Path(os.path.normpath(folder / in_file[0])), in_file[1]
    if not is_file(path):
        near = did_you_mean(in_file[0].name, _python_files(path.parent))
        raise StudyError(f"there is no file {str(path)!r}{near} (paths of metrics start at the suite file)")
    if path not in modules:
        modules[path] = run_file(path, package="lorastudy.metrics")
    function = _function(modules[path], name=name, path=path)
    _check_parameters(function, where=f"{path}: {name}")
    return _described(function, name=name, path=path)


def _python_files(folder: Path) -> list[str]:
    return [file.name for file in folder.glob("*.py")] if folder.is_dir() else []


def _function(module: ModuleType, *, name: str, path: Path) -> Callable[..., Any]:
    found = vars(module).get(name)
    if found is None:
        own = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        there = f"; it has {', '.join(own)}" if own else "; it has no function"
        raise StudyError(f"{path} has no function {name}{did_you_mean(name, own) or there}")
    if not callable(found):
        raise StudyError(f"{path}: {name} is not a function")
    function: Callable[..., Any] = found
    return function


def _check_parameters(function: Callable[..., Any], *, where: str) -> None:
    takes = f"a metric takes some of {', '.join(PARAMETERS)}"
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in {parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL}:
            continue
        is_known = parameter.name in PARAMETERS
        if parameter.kind is parameter.POSITIONAL_ONLY or (
            not is_known and parameter.default is parameter.empty
        ):
            near = "" if is_known else did_you_mean(parameter.name, PARAMETERS)
            raise StudyError(
                f"{where}: the parameter {parameter.name!r} cannot be given{near}; {takes}, by name"
            )
    if not parameters_of(function):
        raise StudyError(f"{where}: has no parameter; {takes}")


def _described(function: Callable[..., Any], *, name: str, path: Path) -> MetricDefinition:
    """The definition, from the function's attributes."""
    where = f"{path}: {name}"
    own_name, unit = getattr(function, "name", name), getattr(function, "unit", "")
    better, seconds = (
        getattr(function, "higher_is_better", True),
        getattr(function, "max_seconds", MAX_SECONDS),
    )
    if not isinstance(own_name, str) or not _NAME.fullmatch(own_name):
        raise StudyError(
            f"{where}.name is {shown(own_name)}; a name begins with a letter and has at most 60 of a-z 0-9 _ . -"
        )
    if own_name in {*ALWAYS_MEASURED, *BUILT_IN, "perplexity"}:
        raise StudyError(
            f"{where}: {own_name} is the name of a metric of the package; set {name}.name to another"
        )
    if not isinstance(better, bool):
        raise StudyError(f"{where}.higher_is_better is {shown(better)}; it must be True or False")
    if not isinstance(unit, str) or len(unit) > 30:
        raise StudyError(f"{where}.unit is {shown(unit)}; it must be a text of at most 30 characters")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise StudyError(f"{where}.max_seconds is {shown(seconds)}; it must be a number above 0")
    return MetricDefinition(
        name=own_name,
        title=own_name,
        unit=unit,
        higher_is_better=better,
        file=str(path),
        function=name,
        source_sha256=_sha256(path),
        max_seconds=float(seconds),
    )


def _sha256(path: Path) -> str:
    """The hash of a file that was run; with modules of the user's own, that of all their hashes."""
    own, imported = hashlib.sha256(path.read_bytes()).hexdigest(), imported_files(path)
    if not imported:
        return own
    folder = path.resolve().parent
    of_each = {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in imported
    }
    return hashlib.sha256(json.dumps({"": own, **of_each}, sort_keys=True).encode()).hexdigest()
