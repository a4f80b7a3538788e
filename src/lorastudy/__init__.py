"""lorastudy: which LoRA configuration to use for a given model, data set and memory, with evidence.

    import lorastudy as ls

    study = ls.load_suite("suite.yaml")
    plan = ls.plan(study)
    result = ls.run(plan)
    result.frame()
    ls.write_report(result)

Each name is loaded when it is first asked for: `import lorastudy` loads nothing heavy.
"""

from typing import TYPE_CHECKING, Any

from lorastudy.version import __version__

if TYPE_CHECKING:
    from lorastudy.library import StudyResult, TuneResult, analyse, load_suite, plan, run, tune, write_report
    from lorastudy.store.tracker import ExperimentTracker as Store
    from lorastudy.suite.experiment_types import BaseExperiment

__all__ = [
    "BaseExperiment",
    "Store",
    "StudyResult",
    "TuneResult",
    "__version__",
    "analyse",
    "load_suite",
    "plan",
    "run",
    "tune",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "Store":
        from lorastudy.store.tracker import ExperimentTracker

        return ExperimentTracker
    if name == "BaseExperiment":
        from lorastudy.suite.experiment_types import BaseExperiment

        return BaseExperiment
    if name in __all__:
        from lorastudy import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
