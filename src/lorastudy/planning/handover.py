"""Evening out packs that train side by side: some arms change hands on the way.

Where a step takes as long as its arms together, as on a CPU, five arms in two workers take as long as three, and a sixth of
the machine waits. So the packs pause, each where all have done the same work, and then

    worker 1 trains    a b, to 3/4          then  a b to their end, and e from 1/2 to its end
    worker 2 trains    c d e, to 1/2        then  c d to their end

What is moved and when follows from the packs alone, never from a clock: bits depend on the company of an arm, and a
suite that goes on must come to those that it would have had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lorastudy.planning.packing import PlannedPack
from lorastudy.suite.experiment import Experiment

#: Share of the time that must be saved. A pause costs saving and loading the pack, some tenths of a second.
MIN_SAVED = Fraction(1, 20)


@dataclass(frozen=True, kw_only=True)
class Handover:
    """Where packs pause, as a share of the training by experiment, and who goes on in a pack of its own.

    What does not pause is through by then.
    """

    pause_at: Mapping[str, float]
    alone: frozenset[str]


def handover(packs: Sequence[PlannedPack], *, num_at_once: int) -> Handover | None:
    """How as many packs as are served side by side become even; None where they are, or cannot or need not become so.

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
    return Handover(
        pause_at={key: float(share) for key, share in until.items() if share < 1},
        alone=frozenset(pack.experiments[-1].id for pack in packs if len(pack.experiments) > small),
    )


def _length(experiment: Experiment) -> tuple[int | None, float | None]:
    """What the number of steps follows from; the packs read the same rows."""
    settings = experiment.settings
    return settings.max_steps, settings.num_train_epochs
