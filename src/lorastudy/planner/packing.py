"""Packs: experiments that share base, precision, data order and batch train together.

How many arms fit into one pack is bounded by the tokens that all of them hold in one forward pass. Work that
fails as a pack is cut in two until what fails stands alone.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorastudy.spec.experiment import Experiment, tagged_hash

#: Tokens in one forward pass, summed over the arms, if every row had the greatest length. Rows are mostly far
#: shorter; a pack that does not fit the device all the same is cut in two.
MAX_PACK_TOKENS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class PlannedPack:
    """Experiments that will train together."""

    experiments: tuple[Experiment, ...]

    @property
    def id(self) -> str:
        """A hash of what is in it, whatever the order."""
        return tagged_hash("pack", sorted(experiment.id for experiment in self.experiments))


def form_packs(experiments: Iterable[Experiment], *, num_at_once: int = 1) -> list[PlannedPack]:
    """Group by what must be equal, then cut groups to size; packs of one base come one after another.

    All seeds of an arm and all arms of a seed stay as close as the order they come in allows. Where packs are served
    side by side, `num_at_once` of them, no group has fewer.
    """
    by_key: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        by_key.setdefault(experiment.pack_key, []).append(experiment)
    return [
        PlannedPack(experiments=tuple(part))
        for group in by_key.values()
        for part in _parts(group, min(max_arms(group[0]), -(-len(group) // num_at_once)))
    ]


def remaining_packs(
    experiments: Sequence[Experiment], missing: Iterable[Experiment], *, num_at_once: int = 1
) -> list[PlannedPack]:
    """The packs of all experiments, as far as they are missing.

    Not packs of what is missing: what goes on after an interruption keeps the company that it would have had, and so
    comes to the same bits.
    """
    wanted = {experiment.id for experiment in missing}
    packs = (
        PlannedPack(experiments=tuple(each for each in pack.experiments if each.id in wanted))
        for pack in form_packs(experiments, num_at_once=num_at_once)
    )
    return [pack for pack in packs if pack.experiments]


def max_arms(experiment: Experiment) -> int:
    """How many arms like this one a pack may hold."""
    settings = experiment.settings
    if settings.max_arms_per_pack is not None:
        return settings.max_arms_per_pack
    tokens = settings.per_device_train_batch_size * settings.max_seq_length
    return max(1, MAX_PACK_TOKENS // tokens)


def halves(experiments: Sequence[Experiment]) -> list[PlannedPack]:
    """The experiments in two packs; in one or none where there are no more."""
    middle = len(experiments) // 2
    parts = (experiments[:middle], experiments[middle:])
    return [PlannedPack(experiments=tuple(part)) for part in parts if part]


def _parts(group: Sequence[Experiment], size: int) -> list[Sequence[Experiment]]:
    """Parts of at most `size`, as even as can be."""
    num_parts = -(-len(group) // size)
    bounds = [len(group) * number // num_parts for number in range(num_parts + 1)]
    return [group[start:stop] for start, stop in itertools.pairwise(bounds)]
