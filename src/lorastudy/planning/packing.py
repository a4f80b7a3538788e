"""Packs: experiments that share base, precision, data and batch train together, and how packs are balanced.

A prediction gives the number of arms in a pack (`planning/predictions.py`); without one, `MAX_PACK_TOKENS` bounds it.
A pack that fails is cut in two, again and again, until the experiment that fails is alone.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from lorastudy.protocol.jobs import EngineName
from lorastudy.protocol.scoring import Scoring
from lorastudy.suite.experiment import Experiment, tagged_hash

#: Tokens in one forward pass, summed over the arms, if every row had the maximum length. Most rows are far shorter.
#: A pack that still does not fit the device is cut in two.
MAX_PACK_TOKENS = 1 << 14


@dataclass(frozen=True, kw_only=True)
class ForeseenEngine:
    """The engine that will train a pack, foreseen from the model's configuration and the rows."""

    name: EngineName
    reason: str | None = None
    """With `engine: auto`, why the packed engine is not used."""

    def __str__(self) -> str:
        return f"engine: {self.name}{f', since {self.reason}' if self.reason else ''}"


@dataclass(frozen=True, kw_only=True)
class PlannedPack:
    """Experiments that will train together, from one share of the training to another."""

    experiments: tuple[Experiment, ...]
    rungs: tuple[float, ...] = ()
    """Shares of the training after which racing scores the held-out rows."""
    pause_at: float | None = None
    """The share at which the pack saves itself and pauses; None trains it to its end."""
    begun: float = 0.0
    """The share of the training that earlier phases cover."""
    resume_from: tuple[Path, ...] = ()
    """Run folders whose checkpoints the pack may resume from, newest first."""
    reason: str | None = None
    """Why this is a further attempt, in words for the report; None for the first attempt."""
    num_killed: int = 0
    """How often in a row the pack's worker was killed before it saved anything."""
    scoring: Scoring | None = None
    """For a pack that scores stored adapters and trains nothing. Folders are as the runner sees them."""

    @property
    def id(self) -> str:
        """A hash of the pack's experiments, and of the metrics if it scores. Their order does not matter."""
        if self.scoring is not None:
            keys = sorted(metric.key for metric in self.scoring.metrics)
            return tagged_hash("score", [sorted(experiment.id for experiment in self.experiments), keys])
        return tagged_hash("pack", sorted(experiment.id for experiment in self.experiments))


def form_packs(
    experiments: Iterable[Experiment],
    *,
    arms_per_pack: Mapping[str, int] | None = None,
    num_at_once: int = 1,
) -> list[PlannedPack]:
    """The packs: experiments with one `pack_key`, cut to size.

    Experiments of one pack may have different orders of the rows. `arms_per_pack` maps a `pack_key` to the number of arms predicted to fit; the setting
    `max_arms_per_pack` bounds it. If `num_at_once` packs run side by side, groups are cut further, if they have enough
    arms, so that every worker gets the same number of packs.
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
    """The packs of all experiments, reduced to the experiments whose ids are in `only`."""
    packs = (
        PlannedPack(experiments=tuple(e for e in pack.experiments if e.id in only))
        for pack in form_packs(experiments, arms_per_pack=arms_per_pack, num_at_once=num_at_once)
    )
    return [pack for pack in packs if pack.experiments]


def groups(experiments: Iterable[Experiment]) -> list[list[Experiment]]:
    """The experiments grouped by `pack_key`, in their given order."""
    by_key: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        by_key.setdefault(experiment.pack_key, []).append(experiment)
    return list(by_key.values())


def max_arms(experiment: Experiment, *, predicted: int | None = None) -> int:
    """The most arms like this one that a pack may hold."""
    settings = experiment.settings
    if predicted is not None:
        return min(predicted, settings.max_arms_per_pack or predicted)
    if settings.max_arms_per_pack is not None:
        return settings.max_arms_per_pack
    tokens = settings.per_device_train_batch_size * settings.max_seq_length
    return max(1, MAX_PACK_TOKENS // tokens)


def halves(experiments: Sequence[Experiment]) -> list[PlannedPack]:
    """The experiments in two packs; a single experiment makes one pack."""
    middle = len(experiments) // 2
    both = (experiments[:middle], experiments[middle:])
    return [PlannedPack(experiments=tuple(part)) for part in both if part]


def parts(group: Sequence[Experiment], *, size: int, at_least: int = 1) -> list[Sequence[Experiment]]:
    """The group cut into parts of nearly equal length: none longer than `size`, and at least `at_least` parts."""
    num_parts = max(at_least, -(-len(group) // size))
    bounds = [len(group) * number // num_parts for number in range(num_parts + 1)]
    return [group[start:stop] for start, stop in itertools.pairwise(bounds)]


#: Share of the time that balancing must save. A pause saves and loads the pack, which costs some tenths of a second.
MIN_SAVED = Fraction(1, 20)


WorkOf = Callable[[Sequence[Experiment]], Mapping[str, "ArmWork"]]
"""By experiment, the work of an arm; empty if it is not known of all of them."""


def _equal_work(_: Sequence[Experiment]) -> Mapping[str, "ArmWork"]:
    return {}


#: The shares at which the largest pack may pause are multiples of one over this: 2, 3, ... 8 workers divide it.
_NUM_SHARES = 840
_SMALLEST_REST = Fraction(1, _NUM_SHARES)


@dataclass(frozen=True, kw_only=True)
class ArmWork:
    """The work of an arm in a pack, in any unit that all arms have in common."""

    measuring: int = 0
    """Before training, where the arm begins."""
    training: int = 1
    scoring: int = 0
    """After training, where the arm ends."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How packs of unequal size keep all workers busy: where packs pause, and which arms then move to another worker.

    On a CPU a step's time is the sum over its arms. Without balancing, five arms on two workers take as long as three
    arms on each. For arms of equal work, of which training is all:

        worker 1 trains    a b, to 3/4          then  a b to their end, and e from 1/2 to its end
        worker 2 trains    c d e, to 1/2        then  c d to their end

    The balance depends on the packs and on what is planned of them, never on a clock. An arm's bits depend on the other
    arms of its pack, so a resumed study must form the same packs.
    """

    pause_at: Mapping[str, float]
    """By experiment: the share of the training at which it pauses. An experiment without an entry does not pause."""
    alone: frozenset[str]
    """Experiments that continue in packs of their own."""


def balance_packs(
    packs: Sequence[PlannedPack], *, num_at_once: int, work_of: WorkOf = _equal_work
) -> Balance | None:
    """The balance of packs that train side by side; None if they are equally long or balancing saves too little.

    W workers train one pack each. L large packs have q + 1 arms, the W - L small packs have q. Each large pack gives up
    its last arm, so each small pack's worker receives L / (W - L) arms. All packs pause after the same amount of work.
    It is the amount with which the last worker finishes first. If all arms have the same work and training is all of it,
    a large pack pauses after L / W of its training and a small pack after L (q + 1) / (W q), and then every worker has
    the same work left.

    `work_of` is asked only for packs that can be balanced. Without it, all arms have the same work.
    """
    sizes = [len(pack.experiments) for pack in packs]
    small = min(sizes, default=0)
    num_large = sum(size > small for size in sizes)
    num_small = len(packs) - num_large
    if len(packs) != num_at_once or max(sizes, default=0) != small + 1 or num_large % num_small:
        return None
    experiments = [experiment for pack in packs for experiment in pack.experiments]
    if any(experiment.settings.arm_method.only_in_reference is not None for experiment in experiments):
        return None  # another engine takes another time for a step
    if len({_length(experiment) for experiment in experiments}) > 1:
        return None
    work = work_of([experiment for pack in packs for experiment in pack.experiments])
    loads = [
        _Load.of(pack, work=work, gives_one=size > small) for pack, size in zip(packs, sizes, strict=True)
    ]
    found = _best_pause(loads)
    if found is None or 1 - found.finished / max(load.total for load in loads) < MIN_SAVED:
        return None
    until = {
        experiment.id: _before_scoring(share, load)
        for pack, load, share in zip(packs, loads, found.shares, strict=True)
        for experiment in pack.experiments
    }
    return Balance(
        pause_at={key: float(share) for key, share in until.items() if share < 1},
        alone=frozenset(pack.experiments[-1].id for pack in packs if len(pack.experiments) > small),
    )


@dataclass(frozen=True, kw_only=True)
class _Load:
    """The work of a worker with its first pack. The last arm of a large pack is given to another worker."""

    measuring: int
    training: int
    given_training: int
    kept_scoring: int
    given_scoring: int
    gives_one: bool

    @classmethod
    def of(cls, pack: PlannedPack, *, work: Mapping[str, ArmWork], gives_one: bool) -> "_Load":
        arms = [work.get(experiment.id, ArmWork()) for experiment in pack.experiments]
        kept, given = (arms[:-1], arms[-1:]) if gives_one else (arms, [])
        return cls(
            measuring=sum(arm.measuring for arm in arms),
            training=sum(arm.training for arm in arms),
            given_training=sum(arm.training for arm in given),
            kept_scoring=sum(arm.scoring for arm in kept),
            given_scoring=sum(arm.scoring for arm in given),
            gives_one=gives_one,
        )

    @property
    def total(self) -> int:
        """The work without balancing."""
        return self.measuring + self.training + self.kept_scoring + self.given_scoring


def _before_scoring(share: Fraction, load: _Load) -> Fraction:
    """The share at which a pack pauses that would train to its end or nearly so.

    A pack that ends also scores its arms, and the others would wait for that at the pause. So it pauses at its last step.
    Without scores to wait for it does not pause.
    """
    if share <= 1 - _SMALLEST_REST:
        return share
    return Fraction(1) if load.kept_scoring == 0 else 1 - _SMALLEST_REST


@dataclass(frozen=True, kw_only=True)
class _Pause:
    """When all packs pause, and what comes of it."""

    shares: tuple[Fraction, ...]
    """Of each pack's training, in the order of the loads."""
    finished: Fraction
    """The work after which the last worker finishes."""


def _best_pause(loads: Sequence[_Load]) -> _Pause | None:
    """The pause after which the last worker finishes first; None if no pause is possible.

    The time of the last worker falls and then rises with the time of the pause, so bisection finds the lowest. No pack
    may pause after its end, nor before it has measured its arms.
    """
    largest = max(
        (load for load in loads if load.gives_one),
        key=lambda load: load.measuring + load.training,
        default=None,
    )
    if largest is None:
        return None

    def paused(number: int) -> _Pause:
        return _paused(loads, after=largest.measuring + Fraction(number, _NUM_SHARES) * largest.training)

    measured = max(load.measuring for load in loads) - largest.measuring
    least, most = 1 + measured * _NUM_SHARES // largest.training, _NUM_SHARES - 1
    while least < most:
        middle = (least + most) // 2
        after = paused(middle + 1)
        if max(after.shares) > 1 or paused(middle).finished <= after.finished:
            most = middle
        else:
            least = middle + 1
    return paused(least) if least < _NUM_SHARES else None


def _paused(loads: Sequence[_Load], *, after: Fraction) -> _Pause:
    """What comes of a pause after that much work."""
    shares = tuple((after - load.measuring) / load.training for load in loads)
    both = list(zip(loads, shares, strict=True))
    num_small = sum(not load.gives_one for load in loads)
    given = sum(((1 - share) * load.given_training + load.given_scoring for load, share in both), Fraction(0))
    left = [
        (1 - share) * (load.training - load.given_training)
        + load.kept_scoring
        + (0 if load.gives_one else given / num_small)
        for load, share in both
    ]
    return _Pause(shares=shares, finished=after + max(left))


def _length(experiment: Experiment) -> tuple[int | None, float | None]:
    """The settings that decide the number of steps, given that the packs read the same rows."""
    settings = experiment.settings
    return settings.max_steps, settings.num_train_epochs
