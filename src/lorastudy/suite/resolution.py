"""From the `experiment_type` of a suite to its class, in the package or in the user's own file."""

import hashlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType

from lorastudy.errors import StudyError
from lorastudy.suite.base_experiment import BaseExperiment
from lorastudy.suite.checks import missing_class_file
from lorastudy.suite.custom import Custom
from lorastudy.suite.module_ablation import ModuleAblation
from lorastudy.suite.parameter_matched_modules import ParameterMatchedModules
from lorastudy.suite.quantization_study import QuantizationStudy
from lorastudy.suite.rank_ablation import RankAblation
from lorastudy.suite.suite import EXPERIMENT_TYPES, class_in_file
from lorastudy.suite.wording import did_you_mean

TYPES: dict[str, type[BaseExperiment]] = {
    "rank_ablation": RankAblation,
    "module_ablation": ModuleAblation,
    "parameter_matched_modules": ParameterMatchedModules,
    "quantization_study": QuantizationStudy,
    "custom": Custom,
}


def resolve_type(experiment_type: str) -> type[BaseExperiment]:
    """The class of a type: one of the package's, or `path/to/file.py:Class`, whose file is then run.

    Raises:
        StudyError: no such type, file or class; not a complete `BaseExperiment`; an exception in the file.
    """
    if experiment_type in TYPES:
        return TYPES[experiment_type]
    in_file = class_in_file(experiment_type)
    if in_file is None:
        raise StudyError(
            f"there is no experiment type {experiment_type!r}{did_you_mean(experiment_type, EXPERIMENT_TYPES)}; "
            f"there are {', '.join(EXPERIMENT_TYPES)}, and path/to/file.py:Class for your own"
        )
    missing = missing_class_file(experiment_type)
    if missing is not None:
        raise StudyError(f"experiment_type {experiment_type}: {missing}")
    path, name = in_file
    return _checked_class(_run_file(path), name=name, path=path)


def _run_file(path: Path) -> ModuleType:
    """The module in the file.

    It is run as if it lay in `lorastudy.experiments`, so that both `from .base_experiment import ...` and the
    absolute import work, wherever the file is.
    """
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"lorastudy.experiments.user_{digest}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up while it is being run
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = _line_in(path, error)
        raise StudyError(f"{path}{line} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def _line_in(path: Path, error: BaseException) -> str:
    """`:12`, the last line of the file that the error went through, or nothing."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
    if isinstance(error, SyntaxError) and error.lineno:
        lines.append(error.lineno)
    return f":{lines[-1]}" if lines else ""


def _checked_class(module: ModuleType, *, name: str, path: Path) -> type[BaseExperiment]:
    own = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    kind = own.get(name)
    if kind is None:
        usable = [
            key
            for key, value in own.items()
            if issubclass(value, BaseExperiment) and value is not BaseExperiment
        ]
        there = f"; it has {', '.join(usable)}" if usable else "; it has no subclass of BaseExperiment"
        raise StudyError(f"{path} has no class {name}{there}")
    if not issubclass(kind, BaseExperiment) or kind is BaseExperiment:
        raise StudyError(
            f"{path}: {name} is not a subclass of lorastudy.experiments.base_experiment.BaseExperiment"
        )
    lacking = sorted(getattr(kind, "__abstractmethods__", ()))
    if lacking:
        raise StudyError(f"{path}: {name} lacks {' and '.join(lacking)}")
    return kind
