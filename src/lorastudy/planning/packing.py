"""Packs: experiments that share base, precision, data order and batch train together.

How many arms a pack holds is predicted (`planning/fitting.py`). Where there is no prediction, the tokens that all of
them hold in one forward pass are bounded. Work that fails as a pack is cut in two until what fails stands alone.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorastudy.suite.experiment import Experiment, tagged_hash

#: Tokens in one forward pass, summed over the arms, if every row had the greatest length. Rows are mostly far
#: shorter; a pack that does not fit the device all the same is cut in two.
MAX_PACK_TOKENS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class PlannedPack:
    """Experiments that will train together, and how far."""

    experiments: tuple[Experiment, ...]
    rungs: tuple[float, ...] = ()
    """Shares of the training after which the held-out rows are scored, for racing."""
    pause_at: float | None = None
    """The share at which the pack saves itself and pauses; None trains it to its end."""
    begun: float = 0.0
    """The share that an earlier phase was to bring it to."""
    resume_from: tuple[Path, ...] = ()
    """Run folders whose checkpoints it may go on from, newest first."""
    reason: str | None = None
    """Why this is not its first attempt, in words for the report."""
    num_killed: int = 0
    """How often in a row its worker was killed before it had saved anything."""

    @property
    def id(self) -> str:
        """A hash of what is in it, whatever the order."""
        return tagged_hash("pack", sorted(experiment.id for experiment in self.experiments))


def form_packs(
    experiments: Iterable[Experiment],
    *,
    arms_per_pack: Mapping[str, int] | None = None,
    num_at_once: int = 1,
) -> list[PlannedPack]:
    """Group by what must be equal, then cut groups to size; packs of one base come one after another.

    A seed draws the order of the rows, so arms of one seed share a pack and two seeds do not, unless `data_seed` fixes
    one order for all. `arms_per_pack` is by `pack_key` what was predicted to fit; `max_arms_per_pack` of the settings
    bounds it. Where `num_at_once` packs are served side by side, groups are cut into so many parts that every worker
    gets equally many packs.
    """
    predicted = arms_per_pack or {}
    found = groups(experiments)
    parts_of_group = num_at_once // math.gcd(num_at_once, len(found)) if found else 1
    return [
        PlannedPack(experiments=tuple(part))
        for group in found
        for part in parts(
            group,
            size=max_arms(group[0], predicted=predicted.get(group[0].pack_key)),
            at_least=min(parts_of_group, len(group)),
        )
    ]


def remaining_packs(
    experiments: Sequence[Experiment],
    only: Collection[str],
    *,
    arms_per_pack: Mapping[str, int] | None = None,
    num_at_once: int = 1,
) -> list[PlannedPack]:
    """The packs of all experiments, each with those of its experiments whose ids are in `only`."""
    packs = (
        PlannedPack(experiments=tuple(e for e in pack.experiments if e.id in only))
        for pack in form_packs(experiments, arms_per_pack=arms_per_pack, num_at_once=num_at_once)
    )
    return [pack for pack in packs if pack.experiments]


def groups(experiments: Iterable[Experiment]) -> list[list[Experiment]]:
    """The experiments by what those of one pack must share, in the order they come in."""
    by_key: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        by_key.setdefault(experiment.pack_key, []).append(experiment)
    return list(by_key.values())


def max_arms(experiment: Experiment, *, predicted: int | None = None) -> int:
    """How many arms like this one a pack may hold."""
    settings = experiment.settings
    if predicted is not None:
        return min(predicted, settings.max_arms_per_pack or predicted)
    if settings.max_arms_per_pack is not None:
        return settings.max_arms_per_pack
    tokens = settings.per_device_train_batch_size * settings.max_seq_length
    return max(1, MAX_PACK_TOKENS // tokens)


def halves(experiments: Sequence[Experiment]) -> list[PlannedPack]:
    """The experiments in two packs; in one or none where there are no more."""
    middle = len(experiments) // 2
    both = (experiments[:middle], experiments[middle:])
    return [PlannedPack(experiments=tuple(part)) for part in both if part]


def parts(group: Sequence[Experiment], *, size: int, at_least: int = 1) -> list[Sequence[Experiment]]:
    """Parts of at most `size`, as even as can be, and `at_least` so many."""
    num_parts = max(at_least, -(-len(group) // size))
    bounds = [len(group) * number // num_parts for number in range(num_parts + 1)]
    return [group[start:stop] for start, stop in itertools.pairwise(bounds)]
