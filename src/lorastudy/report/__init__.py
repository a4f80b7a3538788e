"""From analysis to a report a reader can act on: Markdown, plots and one offline HTML file.

Its functions are loaded on first use: matplotlib, altair and scipy take two seconds to import.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorastudy.report.read import read_report
    from lorastudy.report.write import save_report, write_report

__all__ = ["read_report", "save_report", "write_report"]


def __getattr__(name: str) -> Any:
    if name == "read_report":
        from lorastudy.report import read

        return read.read_report
    if name in {"save_report", "write_report"}:
        from lorastudy.report import write

        return getattr(write, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
