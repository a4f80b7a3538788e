"""`lorastudy status`: the content of the results store."""

from collections import Counter
from typing import TYPE_CHECKING

from lorastudy.cli.options import Database
from lorastudy.cli.terminal import failure_shown, say
from lorastudy.places import DATABASE

if TYPE_CHECKING:
    from lorastudy.store.views import ExperimentResult


def status(database: Database = DATABASE) -> None:
    """Count experiments by suite and status, and name those that failed."""
    from lorastudy.store import ExperimentTracker

    with ExperimentTracker(database) as tracker:
        results = tracker.get_all_experiments()
        imported = Counter((result.suite_name, result.tool) for result in tracker.get_imported())
    by_suite: dict[str, Counter[str]] = {}
    for result in results:
        by_suite.setdefault(result.suite_name, Counter())[_standing(result)] += 1
    for suite_name, counts in by_suite.items():
        say(f"{suite_name}: {', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}")
    for result in results:
        if result.status == "failed":
            message = failure_shown(result.failure_message or "no message was recorded")
            say(f"  failed: {result.suite_name}/{result.name}: {result.failure_kind}: {message}")
    for (suite_name, tool), number in imported.items():
        say(f"{suite_name}: {number} imported from {tool}")
    if not results and not imported:
        say(f"{database} holds no experiments")


def _standing(result: "ExperimentResult") -> str:
    """The status as a reader understands it: racing stops an arm for good, an interrupted run can be resumed."""
    if result.was_pruned:
        return "stopped by racing"
    return "interrupted" if result.status == "stopped" else result.status
