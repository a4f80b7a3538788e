"""The store: plans, runs and measurements. SQLite by default, PostgreSQL by URL.

    tracker = ExperimentTracker()
    tracker.get_all_experiments(status="completed")

Names are loaded on first use. Some parts need only the typed values in `lorastudy.store.views` and no database, and
SQLAlchemy takes 0.3 s to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorastudy.store.rebuilding import rebuild, replay
    from lorastudy.store.tracker import ExperimentTracker

__all__ = ["ExperimentTracker", "rebuild", "replay"]

_HOMES = {"ExperimentTracker": "tracker", "rebuild": "rebuilding", "replay": "rebuilding"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
