"""Packs: experiments that share base, precision, data order and batch train together, and how packs are balanced.

How many arms a pack holds is predicted (`planning/predictions.py`). Where there is no prediction, the tokens that all of
them hold in one forward pass are bounded. Work that fails as a pack is cut in two until what fails stands alone.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
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


#: Share of the time that must be saved. A pause costs saving and loading the pack, some tenths of a second.
MIN_SAVED = Fraction(1, 20)


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Where packs of unequal size pause, and which arms go on in packs of their own, so that no worker is idle.

    On a CPU a step takes as long as its arms together: five arms in two workers take as long as three.

        worker 1 trains    a b, to 3/4          then  a b to their end, and e from 1/2 to its end
        worker 2 trains    c d e, to 1/2        then  c d to their end

    It follows from the packs alone, never from a clock: the bits of an arm depend on the other arms of its pack, and a study
    that is taken up again must form the same packs.
    """

    pause_at: Mapping[str, float]
    """The share of the training by experiment; one without an entry ends in this phase."""
    alone: frozenset[str]
    """Experiments that go on in packs of their own."""


def balance_packs(packs: Sequence[PlannedPack], *, num_at_once: int) -> Balance | None:
    """How packs that train side by side are balanced; None where they are equally long, or where it would not pay.

    With W workers, of which L have one arm more than the q of the others, and a part of L/(W - L) arms moved to each of the
    others: a large pack pauses after L/W of the training, a small one after as much work, L (q + 1) / (W q). From there
    on all have the same left.
    """
    sizes = [len(pack.experiments) for pack in packs]
    small = min(sizes, default=0)
    num_large = sum(size > small for size in sizes)
    num_small = len(packs) - num_large
    if len(packs) != num_at_once or max(sizes, default=0) != small + 1 or num_large % num_small:
        return None
    if len({_length(experiment) for pack in packs for experiment in pack.experiments}) > 1:
        return None
    large_until = Fraction(num_large, num_at_once)
    small_until = large_until * (small + 1) / small
    saved = 1 - Fraction(sum(sizes), num_at_once * (small + 1))
    if small_until > 1 or saved < MIN_SAVED:
        return None
    until = {
        experiment.id: small_until if len(pack.experiments) == small else large_until
        for pack in packs
        for experiment in pack.experiments
    }
    return Balance(
        pause_at={key: float(share) for key, share in until.items() if share < 1},
        alone=frozenset(pack.experiments[-1].id for pack in packs if len(pack.experiments) > small),
    )


def _length(experiment: Experiment) -> tuple[int | None, float | None]:
    """What the number of steps follows from; the packs read the same rows."""
    settings = experiment.settings
    return settings.max_steps, settings.num_train_epochs
