"""A report's first page in a few lines, for whoever does not open the file: the same sentences, never a second wording."""

from collections.abc import Sequence
from dataclasses import dataclass

from lorastudy.report.document import Text, plain


@dataclass(frozen=True, kw_only=True)
class Essence:
    """What one study came to."""

    title: str
    verdict: str
    recommendation: str | None
    """None of imported results, which recommend nothing."""
    limits: tuple[Text, ...]

    def lines(self) -> Sequence[str]:
        """The verdict, the recommendation and the gravest limit, each in a line that is to be wrapped."""
        told = [f"Verdict. {self.verdict}"]
        if self.recommendation is not None:
            told.append(f"Recommendation. {self.recommendation}")
        if self.limits:
            more = len(self.limits) - 1
            rest = f" ({more} more in the report.)" if more else ""
            told.append(f"What limits this. {plain(self.limits[0])}{rest}")
        return told
