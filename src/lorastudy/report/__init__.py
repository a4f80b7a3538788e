"""From analysis to a report a reader can act on: Markdown, plots and one offline HTML file.

`write_report` is loaded when it is first asked for: matplotlib, altair and scipy take two seconds to import.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorastudy.report.write import write_report

__all__ = ["write_report"]


def __getattr__(name: str) -> Any:
    if name != "write_report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lorastudy.report.write import write_report

    return write_report
