"""The finals of a suite with a time budget: which arms report, at which learning rates, and with which seeds.

A suite with `time_budget_hours` first looks for the learning rates of its arms. Then it holds finals: the arms that may be the
best, or that may be cheaper and as good, train again with fresh seeds, and only these runs report. `running.finals` decides
who takes part. The decision is made once and stored, so a resumed suite holds the same finals.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """An arm of the finals, by its index among the suite's arms, and its learning rate."""

    arm: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class Finals:
    """The runs of the finals: every finalist with every seed."""

    finalists: tuple[Finalist, ...]
    """The arm with the best validation score first."""
    seeds: tuple[int, ...]
    searched: tuple[str, ...]
    """The ids of the runs that looked for learning rates. No other such run begins."""

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values; `from_json` is its inverse."""
        return {
            "finalists": [asdict(finalist) for finalist in self.finalists],
            "seeds": list(self.seeds),
            "searched": list(self.searched),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The finals that `to_json` wrote. Further keys are left alone."""
        return cls(
            finalists=tuple(Finalist(**finalist) for finalist in values["finalists"]),
            seeds=tuple(values["seeds"]),
            searched=tuple(values["searched"]),
        )
