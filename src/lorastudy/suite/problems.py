"""The problems of a suite file, gathered and then raised as one error.

A user who can fix only one mistake per attempt loses patience at the third. So the reader notes each problem with its
place and continues; `Problems.raise_if_any` finally raises one error with all of them.
"""

from dataclasses import dataclass, field

from lorastudy.errors import SuiteFileError
from lorastudy.suite.safe_text import printable

#: The most problems that are shown. A file with more has one mistake, repeated many times.
MAX_TOLD = 100
#: The longest line of a message. Without a limit it could be as long as the file, because a key or value can be.
MAX_CHARACTERS = 500


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place in a file, with line and column (both from 1), or a source without lines, such as flags."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problems:
    """The problems found so far. They are shown by file in the order of discovery, then by line and column."""

    _found: list[tuple[Place, str]] = field(default_factory=list)

    def add(self, place: Place, *, cause: str, path: str = "") -> None:
        """Note one problem. `path` names the key or the flag, such as `experiments[0].lora_rank`."""
        self._found.append((place, f"{path}: {cause}" if path else cause))

    @property
    def are_none(self) -> bool:
        """Whether there is no problem so far."""
        return not self._found

    @property
    def are_enough(self) -> bool:
        """Whether there are more problems than will be shown, so that further checks are useless."""
        return len(self._found) > MAX_TOLD

    def raise_if_any(self) -> None:
        """Raise one error with all problems.

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
