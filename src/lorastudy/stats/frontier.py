"""The efficiency frontier: arms that no other arm beats on every count, and how sure that is.

Every count has its noise. Scores, forgetting and memory have a value for each seed. Memory is counted in bytes, so that of one
pack has no noise of its own (on CUDA the allocator rounds to 512 bytes). A step time has the error of its median, and a floor:
times that differ by no more count as equal, since the same arm measured twice differs by as much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorastudy.protocol.records import STEP_TIME_FLOOR
from lorastudy.stats.verdicts import Floats

_NUM_RESAMPLES = 2000
_SEED = 1906


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One arm among the others: its costs on every count, and how often it is on the frontier.

    `quality_cost`, `memory_bytes` and `forgetting` are means over the seeds that all arms share.
    """

    arm: str
    quality_cost: float
    memory_bytes: float | None
    step_seconds: float | None
    forgetting: float | None
    on_frontier: bool
    """By the means and medians."""
    probability: float | None
    """Share of resamples of the seeds and of the times in which the arm is on the frontier; None with a single seed."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The median of the timed steps, and its standard error."""

    seconds: float
    error_seconds: float


def pareto_frontier(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Names of the points that no other point beats, ordered by the first coordinate. Less is better.

    A point beats another if it is at least as good in both coordinates and better in one. These are means only; `standings`
    takes the spread over seeds into account.
    """
    names = list(points)
    if not names:
        return ()
    kept = undominated(np.array([points[name] for name in names], dtype=np.float64))
    return tuple(sorted((name for name, on in zip(names, kept, strict=True) if on), key=points.__getitem__))


def undominated(costs: Floats, *, floors: Floats | None = None) -> npt.NDArray[np.bool_]:
    """Whether no other row (arm) beats each row, for a table (arms, counts) or a batch of tables.

    The floor of a count is the relative difference below which two values count as equal. A rival beats an arm if it is worse
    on no count and better on one. The loop goes rival by rival, so that a large batch takes no more memory than its table.
    """
    num_counts = costs.shape[-1]
    factors = 1 + (np.zeros(num_counts) if floors is None else floors)
    columns = [(np.ascontiguousarray(costs[..., count]), factors[count]) for count in range(num_counts)]
    beaten = np.zeros(costs.shape[:-1], dtype=np.bool_)
    for rival in range(costs.shape[-2]):
        no_worse, better = ~beaten, np.zeros_like(beaten)
        for ours, factor in columns:
            theirs = ours[..., rival : rival + 1]
            no_worse &= theirs <= ours * factor
            better |= theirs * factor < ours
        beaten |= no_worse & better
    return ~beaten


def standings(
    qualities: Mapping[str, Sequence[float]],
    *,
    memory_bytes: Mapping[str, Sequence[float]],
    step_times: Mapping[str, StepTime],
    forgetting: Mapping[str, Sequence[float]],
) -> tuple[Standing, ...]:
    """Every arm's standing. All but the times are costs by seed, the same seeds in the same order.

    A count that was not measured for every arm and seed is left out for all arms; otherwise an arm would be ahead because of
    what nobody measured. Seeds are resampled for all arms and counts at once, which keeps the pairing; times are drawn anew
    with their errors.
    """
    names = list(qualities)
    num_seeds = min(map(len, qualities.values()), default=0)
    if not num_seeds:
        return ()
    counts = [
        by_arm
        for by_arm in (qualities, memory_bytes, forgetting)
        if all(len(by_arm.get(name, ())) == num_seeds for name in names)
    ]
    times = [step_times[name] for name in names] if step_times.keys() >= set(names) else []
    floors = np.array([0.0] * len(counts) + [STEP_TIME_FLOOR] * bool(times))
    on_frontier = undominated(_table(counts, names, times=times), floors=floors)[0]
    probabilities: list[float | None] = [None] * len(names)
    if num_seeds > 1:
        drawn = _table(counts, names, times=times, draw=np.random.default_rng(_SEED))
        probabilities = [float(share) for share in undominated(drawn, floors=floors).mean(axis=0)]
    return tuple(
        Standing(
            arm=name,
            quality_cost=float(np.mean(qualities[name])),
            memory_bytes=float(np.mean(memory_bytes[name])) if memory_bytes.get(name) else None,
            step_seconds=step_times[name].seconds if name in step_times else None,
            forgetting=float(np.mean(forgetting[name])) if forgetting.get(name) else None,
            on_frontier=bool(on_frontier[index]),
            probability=probabilities[index],
        )
        for index, name in enumerate(names)
    )


def _table(
    counts: Sequence[Mapping[str, Sequence[float]]],
    names: Sequence[str],
    *,
    times: Sequence[StepTime],
    draw: np.random.Generator | None = None,
) -> Floats:
    """A table (resamples, arms, counts), the times last. Without `draw` one resample: the seeds and medians as they are."""
    num_seeds = len(counts[0][names[0]])
    seeds = (
        np.arange(num_seeds)[None]
        if draw is None
        else draw.integers(num_seeds, size=(_NUM_RESAMPLES, num_seeds))
    )
    columns = []
    for by_arm in counts:
        values = np.array([by_arm[name] for name in names], dtype=np.float64)
        columns.append(values[:, seeds].mean(axis=-1).T)
    if times:
        medians = np.array([time.seconds for time in times])
        errors = np.array([time.error_seconds for time in times])
        noise = 0.0 if draw is None else draw.standard_normal((len(seeds), len(times)))
        columns.append(np.broadcast_to(medians + errors * noise, (len(seeds), len(times))))
    return np.stack(columns, axis=-1)
