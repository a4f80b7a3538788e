"""The efficiency frontier: arms that no other arm beats on every count, and how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorastudy.analysis.significance import Floats

_NUM_RESAMPLES = 2000
_SEED = 1906


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One arm among the others: what it costs in every respect, and how often it is on the frontier.

    `quality_cost` and `forgetting` are means over the seeds that all arms share; memory and time were measured once.
    """

    arm: str
    quality_cost: float
    memory_bytes: float | None
    step_seconds: float | None
    forgetting: float | None
    on_frontier: bool
    """By the means."""
    probability: float | None
    """Share of resamples of the seeds in which the arm is on the frontier; None with a single seed."""


def pareto_frontier(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Names of the points that no other point beats, ordered by the first coordinate. Lower is better.

    To beat is to be at least as good in both and better in one. These are means only: the frontier does not
    know the spread over seeds; `standings` does.
    """
    names = list(points)
    if not names:
        return ()
    kept = undominated(np.array([points[name] for name in names], dtype=np.float64))
    return tuple(sorted((name for name, on in zip(names, kept, strict=True) if on), key=points.__getitem__))


def undominated(costs: Floats) -> npt.NDArray[np.bool_]:
    """Whether each row (an arm) is beaten by none, for a table (arms, counts) or a batch of them.

    Rival by rival, so that a batch of many arms takes no more memory than the table.
    """
    columns = [np.ascontiguousarray(costs[..., count]) for count in range(costs.shape[-1])]
    beaten = np.zeros(costs.shape[:-1], dtype=np.bool_)
    for rival in range(costs.shape[-2]):
        no_worse, better = ~beaten, np.zeros_like(beaten)
        for ours in columns:
            theirs = ours[..., rival : rival + 1]
            no_worse &= theirs <= ours
            better |= theirs < ours
        beaten |= no_worse & better
    return ~beaten


def standings(
    qualities: Mapping[str, Sequence[float]],
    *,
    memory_bytes: Mapping[str, float],
    step_seconds: Mapping[str, float],
    forgetting: Mapping[str, Sequence[float]],
) -> tuple[Standing, ...]:
    """Every arm's standing. `qualities` and `forgetting` are costs by seed, the same seeds in the same order.

    A count that was not measured for every arm is left out for all of them: else an arm would be ahead for what
    nobody measured. Seeds are resampled for all arms and both scores at once, so pairing is kept.
    """
    names = list(qualities)
    if not names or not all(qualities.values()):
        return ()
    counts: list[Mapping[str, Sequence[float]]] = [qualities]
    counts += [
        {name: [measured[name]] for name in names}
        for measured in (memory_bytes, step_seconds)
        if measured.keys() >= set(names)
    ]
    if forgetting.keys() >= set(names) and all(forgetting[name] for name in names):
        counts.append(forgetting)
    means = _means(counts, names, seeds=None)
    on_frontier = undominated(means[0])
    num_seeds = len(qualities[names[0]])
    probabilities: list[float | None] = [None] * len(names)
    if num_seeds > 1:
        draws = np.random.default_rng(_SEED).integers(num_seeds, size=(_NUM_RESAMPLES, num_seeds))
        probabilities = [float(p) for p in undominated(_means(counts, names, seeds=draws)).mean(axis=0)]
    return tuple(
        Standing(
            arm=name,
            quality_cost=float(means[0, index, 0]),
            memory_bytes=memory_bytes.get(name),
            step_seconds=step_seconds.get(name),
            forgetting=float(np.mean(forgetting[name])) if forgetting.get(name) else None,
            on_frontier=bool(on_frontier[index]),
            probability=probabilities[index],
        )
        for index, name in enumerate(names)
    )


def _means(
    counts: Sequence[Mapping[str, Sequence[float]]],
    names: Sequence[str],
    *,
    seeds: npt.NDArray[np.int64] | None,
) -> Floats:
    """A table (resamples, arms, counts): what has a value for each seed is averaged over those drawn."""
    num_draws = 1 if seeds is None else len(seeds)
    columns = []
    for by_arm in counts:
        values = np.array([by_arm[name] for name in names], dtype=np.float64)
        if values.shape[1] == 1 or seeds is None:
            columns.append(np.repeat(values.mean(axis=1)[None], num_draws, axis=0))
        else:
            columns.append(values[:, seeds].mean(axis=-1).T)
    return np.stack(columns, axis=-1)
