"""`from lorastudy.tracker import ExperimentTracker`, as the specification has it. The store is `lorastudy.store`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorastudy.store import ExperimentTracker

__all__ = ["ExperimentTracker"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lorastudy import store

    return getattr(store, name)
