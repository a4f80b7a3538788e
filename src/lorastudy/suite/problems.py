"""Everything that is wrong with a suite file, gathered before anything is raised.

A person who mends one mistake per attempt loses patience at the third. So readers note a problem with its
place and go on; `Problems.raise_if_any` ends it with one error that tells all.
"""

from dataclasses import dataclass, field

from lorastudy.errors import SuiteFileError
from lorastudy.suite.safe_text import printable

#: Who has more mistakes than this in one file has one mistake, many times.
MAX_TOLD = 100
#: Longest line of a message; a key or a value can be as long as the file.
MAX_CHARACTERS = 500


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something stands: a file with line and column (both from 1), or a source without lines."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problems:
    """What was found so far. Told in the order of the files, then of lines and columns."""

    _found: list[tuple[Place, str]] = field(default_factory=list)

    def add(self, place: Place, *, cause: str, path: str = "") -> None:
        """Note one problem; `path` names the key or the flag, as `experiments[0].lora_rank`."""
        self._found.append((place, f"{path}: {cause}" if path else cause))

    @property
    def are_none(self) -> bool:
        """Whether nothing is wrong so far."""
        return not self._found

    @property
    def are_enough(self) -> bool:
        """Whether there are more than will be told, so that looking on is time wasted."""
        return len(self._found) > MAX_TOLD

    def raise_if_any(self) -> None:
        """Raise what was found.

        Raises:
            SuiteFileError: there is a problem.
        """
        if not self._found:
            return
        sources = list(dict.fromkeys(place.source for place, _ in self._found))
        in_order = sorted(
            self._found,
            key=lambda found: (sources.index(found[0].source), found[0].line or 0, found[0].column or 0),
        )
        if len(in_order) > MAX_TOLD:
            place, _ = in_order[MAX_TOLD]
            in_order[MAX_TOLD:] = [(place, "and more from here on; mend the above first")]
        told = (printable(f"{place}: {_shortened(text)}") for place, text in in_order)
        raise SuiteFileError(list(dict.fromkeys(told)))


def _shortened(text: str) -> str:
    half = MAX_CHARACTERS // 2
    return text if len(text) <= MAX_CHARACTERS else f"{text[:half]} ... {text[-half:]}"
