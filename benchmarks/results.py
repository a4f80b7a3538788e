"""What a benchmark row holds, and the arithmetic on it: medians, ratios pair by pair, the noise floor.

Two sides are timed in turn, round after round. Both sides of one round met the machine in much the same state, so
a ratio is taken within each round and the median over the rounds; a ratio of two medians would mix states. How
far two runs of one and the same side lie apart (A/A) says which ratios are noise.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
OURS, BASELINE, BASELINE_TUNED = "lorastudy", "baseline", "baseline_same_environment"
#: What is compared. `wall_seconds` is the whole process, from its start to its end. `step_seconds` is one step of all
#: configurations once warm: the median step of a pack, or the sum of the median steps of sequential runs.
QUANTITIES = ("train_seconds", "wall_seconds", "step_seconds")
#: Arithmetic of one token per frozen parameter: two operations forward, two for the gradient that goes on backward.
#: The frozen weight itself has no gradient, and what the adapters add is left out, so the share is a lower bound.
OPERATIONS_PER_PARAMETER = 4


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One timed run of one side. None is what was not measured. `losses` are held-out, by configuration."""

    side: str
    round: int
    train_seconds: float
    wall_seconds: float | None = None
    step_seconds: float | None = None
    load_average: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The middle of some values, their ends, and the values themselves."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Whether both sides learnt the same: largest relative difference between losses that should be equal.

    `compared` says which losses these are. `at_the_end` is the same difference of the held-out losses after all steps,
    where that is not what is compared; `own_start` that of the timed runs, which start from adapters of their own and
    so differ by more than arithmetic.
    """

    compared: str
    tolerance: float
    largest_difference: float
    at_the_end: float | None = None
    own_start: float | None = None

    @property
    def agrees(self) -> bool:
        """Within the tolerance."""
        return self.largest_difference <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the speed table, as measured.

    `num_tokens` are real tokens of all arms together in one run; padding is not counted. `peak_flops` is what a
    large matrix product reached in the same run, in operations a second.
    """

    id: str
    setting: Mapping[str, Any]
    samples: tuple[Sample, ...]
    repeats: tuple[Sample, ...]
    num_tokens: int
    num_parameters: int
    peak_flops: float
    quality: Quality | None

    def to_json(self) -> dict[str, Any]:
        """Everything that was measured, and what follows from it."""
        return {
            "id": self.id,
            "setting": dict(self.setting),
            "samples": [asdict(sample) for sample in self.samples],
            "repeats": [asdict(sample) for sample in self.repeats],
            "num_tokens": self.num_tokens,
            "num_parameters": self.num_parameters,
            "peak_flops": self.peak_flops,
            "quality": None
            if self.quality is None
            else asdict(self.quality) | {"agrees": self.quality.agrees},
            "medians": {side: self._medians(side) for side in sides_of(self.samples)},
            "ratios": {
                side: ratios(self.samples, of=side) for side in sides_of(self.samples) if side != OURS
            },
            "noise_floor": noise_floor(self.samples, self.repeats),
        }

    def _medians(self, side: str) -> dict[str, Any]:
        spreads = {name: spread_of(values_of(self.samples, side=side, quantity=name)) for name in QUANTITIES}
        train = spreads["train_seconds"]
        assert train is not None
        rate = self.num_tokens / train.median
        return {
            **{name: None if spread is None else asdict(spread) for name, spread in spreads.items()},
            "tokens_per_second": rate,
            "peak_share": OPERATIONS_PER_PARAMETER * self.num_parameters * rate / self.peak_flops,
        }


def sides_of(samples: Sequence[Sample]) -> list[str]:
    """The sides, in the order in which they were first timed."""
    return list(dict.fromkeys(sample.side for sample in samples))


def values_of(samples: Sequence[Sample], *, side: str, quantity: str) -> list[float]:
    """One side's values, by round; empty where the quantity was not measured."""
    chosen = sorted((s for s in samples if s.side == side), key=lambda s: s.round)
    values = [getattr(sample, quantity) for sample in chosen]
    return [] if None in values else values


def spread_of(values: Sequence[float]) -> Spread | None:
    """Median, smallest, largest; None of nothing."""
    if not values:
        return None
    return Spread(median=statistics.median(values), low=min(values), high=max(values), values=tuple(values))


def ratios(samples: Sequence[Sample], *, of: str) -> dict[str, Any]:
    """By quantity, how many times as long as ours the other side took, pair by pair. Above 1 ours is faster."""
    result: dict[str, Any] = {}
    for quantity in QUANTITIES:
        pairs = paired(samples, of=of, quantity=quantity)
        spread = spread_of([theirs / ours for ours, theirs in pairs])
        result[quantity] = None if spread is None else asdict(spread)
    return result


def paired(samples: Sequence[Sample], *, of: str, quantity: str) -> list[tuple[float, float]]:
    """(ours, theirs) of every round that has both."""
    by_round: dict[int, dict[str, float]] = {}
    for sample in samples:
        value = getattr(sample, quantity)
        if value is not None:
            by_round.setdefault(sample.round, {})[sample.side] = value
    both = (values for _, values in sorted(by_round.items()) if {OURS, of} <= values.keys())
    return [(values[OURS], values[of]) for values in both]


def noise_floor(samples: Sequence[Sample], repeats: Sequence[Sample]) -> dict[str, float | None]:
    """By quantity, the ratio (at least 1) of two runs of one side in one round: what no difference looks like.

    The largest over the repeats; None without any.
    """
    floor: dict[str, float | None] = {}
    for quantity in QUANTITIES:
        apart = []
        for repeat in repeats:
            again = getattr(repeat, quantity)
            first = next(
                getattr(s, quantity) for s in samples if (s.side, s.round) == (repeat.side, repeat.round)
            )
            if first is not None and again is not None:
                apart.append(max(first, again) / min(first, again))
        floor[quantity] = max(apart, default=None)
    return floor


def by_step(losses: Mapping[str, Sequence[float]], *, num_steps: int | None = None) -> dict[str, float]:
    """Training losses by run and step: of the first steps, or of all."""
    return {
        f"{name}/step_{step}": loss
        for name, of_run in losses.items()
        for step, loss in enumerate(of_run[:num_steps])
    }


def largest_relative(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """The largest relative difference between two sets of losses that have the same keys."""
    assert ours.keys() == theirs.keys(), (ours.keys(), theirs.keys())
    return max(abs(ours[key] - theirs[key]) / abs(theirs[key]) for key in theirs)


def write_results(path: Path, head: Mapping[str, Any], *, rows: Sequence[Row], **parts: Any) -> None:
    """Write a results file, whole or not at all: it is written again after every row."""
    body = {"format": FORMAT, **head, "rows": [row.to_json() for row in rows], **parts}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(body, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def free_path(folder: Path, *, stem: str) -> Path:
    """`<stem>.json`, or `<stem>-2.json` and so on: an earlier run of the same day stays."""
    path, number = folder / f"{stem}.json", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.json", number + 1
    return path
