"""How likely a study of n seeds is to decide, and how many seeds it takes to decide in four studies of five.

The noise is what the study at hand showed, split into its components. More seeds reduce the seeds' and the cells' component, but
not the items'. So for some differences no number of seeds is enough; then more items are named as well.

The power of the t test is that of the noncentral t distribution, as `statsmodels.stats.power.TTestPower` computes it, with
Satterthwaite's degrees of freedom. A verdict also needs the sign-flip test, whose power has no formula. For few seeds, where it
costs power, it is simulated; for more it is ignored (`MAX_SIMULATED_SEEDS`). The two tests nearly coincide, so the power of both
together is taken as the smaller one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

from lorastudy.stats.twoway import TwoWay, satterthwaite
from lorastudy.stats.verdicts import (
    ALPHA,
    MIN_SEEDS_ONE_SIDED,
    NO_WORSE_ALPHA,
    Floats,
    sign_flip_p,
    sign_flip_p_below,
)
from lorastudy.suite.question import MIN_SEEDS

POWER = 0.8
MAX_SEEDS_NEEDED = 1000
#: With more seeds the sign-flip test has the power of the t test within a point.
MAX_SIMULATED_SEEDS = 10
_NUM_SIMULATED = 4000
#: Multiples of the number of items, tried in turn if more seeds alone do not decide.
_ITEM_FACTORS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Variances of a difference measured with one seed on the study's items."""

    seeds: float
    """Between seeds, on any items."""
    cells: float
    """Of single (seed, item) cells."""
    items: float
    """Between items, with any seeds."""
    num_items: int | None
    num_groups: int | None = None
    """Number of independent groups of items; None if every item stands alone."""

    @classmethod
    def of(cls, estimate: TwoWay) -> "Noise":
        """The components that one study's estimate shows; a negative one counts as 0."""
        cells = float(estimate.cell_variance)
        seeds = max(0.0, float(estimate.seed_variance) - cells)
        n, items = estimate.num_seeds, float(estimate.items_alone)
        return cls(
            seeds=n * seeds,
            cells=n * cells,
            items=items,
            num_items=estimate.num_items,
            num_groups=estimate.num_groups,
        )

    def one_seed(self, *, item_factor: int = 1) -> float:
        """The variance that more seeds reduce, on `item_factor` times as many items."""
        return self.seeds + self.cells / item_factor


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What would decide an open comparison with a power of .8, if the difference is as observed."""

    num_seeds: int
    """In total, including those that were run."""
    num_items: int | None = None
    """In total; None if the present items are enough."""


def power_of_difference(
    mean: float, noise: Noise, *, num_seeds: npt.ArrayLike, alpha: float = ALPHA, item_factor: int = 1
) -> Floats:
    """The chance that both tests show a difference of this size, two-sided, for each number of seeds."""
    sizes = np.atleast_1d(np.asarray(num_seeds))
    t_power = _t_power(abs(mean), noise, sizes=sizes, tail=alpha / 2, item_factor=item_factor)
    effect = _effect(abs(mean), noise, item_factor=item_factor)
    return _with_sign_flip(
        t_power, sizes, flip_power=lambda n: _two_sided_flip_power(n, effect), at_least=MIN_SEEDS
    )


def power_of_no_worse(
    room: float,
    noise: Noise,
    *,
    num_seeds: npt.ArrayLike,
    alpha: float = NO_WORSE_ALPHA,
    item_factor: int = 1,
) -> Floats:
    """The chance that both tests show a difference to lie below a bound that is `room` above the true one."""
    sizes = np.atleast_1d(np.asarray(num_seeds))
    if room <= 0:
        return np.zeros(sizes.shape)
    t_power = _t_power(room, noise, sizes=sizes, tail=alpha, item_factor=item_factor)
    effect = _effect(room, noise, item_factor=item_factor)
    return _with_sign_flip(
        t_power,
        sizes,
        flip_power=lambda n: _one_sided_flip_power(n, effect),
        at_least=MIN_SEEDS_ONE_SIDED,
    )


def seeds_needed(
    mean: float,
    noise: Noise,
    *,
    margin: float | None = None,
    margin_noise: Noise | None = None,
    alpha: float = ALPHA,
) -> Needed | None:
    """The fewest seeds that show the difference, or that it stays within the margin, with a power of .8.

    `mean` is a difference in cost: above 0 is worse. `margin_noise` is the noise of difference minus margin, for a margin that
    is measured itself. None if even a thousand seeds with 64 times as many items would not be enough.
    """
    for factor in _ITEM_FACTORS if noise.num_items else (1,):

        def shows(sizes: npt.NDArray[np.int64], factor: int = factor) -> Floats:
            return power_of_difference(mean, noise, num_seeds=sizes, alpha=alpha, item_factor=factor)

        def no_worse(sizes: npt.NDArray[np.int64], factor: int = factor) -> Floats:
            room = (margin or 0.0) - mean
            return power_of_no_worse(room, margin_noise or noise, num_seeds=sizes, item_factor=factor)

        found = [_first_enough(shows, at_least=MIN_SEEDS)]
        if margin is not None:
            found.append(_first_enough(no_worse, at_least=MIN_SEEDS_ONE_SIDED))
        ways = [num_seeds for num_seeds in found if num_seeds is not None]
        if ways:
            items = None if factor == 1 or noise.num_items is None else factor * noise.num_items
            return Needed(num_seeds=min(ways), num_items=items)
    return None


def _first_enough(power: Callable[[npt.NDArray[np.int64]], Floats], *, at_least: int) -> int | None:
    """The smallest number of seeds with enough power."""
    many = np.arange(MAX_SIMULATED_SEEDS + 1, MAX_SEEDS_NEEDED + 1)
    enough = np.flatnonzero(power(many) >= POWER)
    if not enough.size:
        return None
    if enough[0] > 0:
        return int(many[enough[0]])
    # Few seeds are tried one by one, since each number may need a simulation.
    few = range(at_least, MAX_SIMULATED_SEEDS + 1)
    return next((n for n in few if power(np.array([n]))[0] >= POWER), int(many[0]))


def _t_power(
    distance: float, noise: Noise, *, sizes: npt.NDArray[np.int64], tail: float, item_factor: int
) -> Floats:
    """Power of the t test with level `tail` in the one tail that counts; the other tail adds almost nothing."""
    seeds = noise.one_seed(item_factor=item_factor) / sizes
    items = np.full(sizes.shape, noise.items / item_factor)
    variance = seeds + items
    independent = noise.num_groups or noise.num_items
    degrees = satterthwaite(
        seeds=seeds,
        items=items,
        num_seeds=sizes,
        num_groups=None if independent is None else item_factor * independent,
    )
    if distance == 0:
        return np.full(sizes.shape, tail)
    critical = special.stdtrit(degrees, 1 - tail)
    # Without noise every difference is found; beyond 35 standard errors nctdtr is unreliable.
    separation = np.minimum(distance / np.sqrt(np.maximum(variance, np.finfo(float).tiny)), 35.0)
    power: Floats = 1 - special.nctdtr(degrees, separation, critical)
    return power


def _with_sign_flip(
    t_power: Floats, sizes: npt.NDArray[np.int64], *, flip_power: Callable[[int], float], at_least: int
) -> Floats:
    power = t_power.copy()
    for position, num_seeds in enumerate(sizes.tolist()):
        if num_seeds < at_least:
            power[position] = 0.0
        elif num_seeds <= MAX_SIMULATED_SEEDS and power[position] > 0.7:
            power[position] = min(power[position], flip_power(num_seeds))
    return power


def _effect(distance: float, noise: Noise, *, item_factor: int) -> float:
    """The distance in standard deviations of one seed, rounded so that similar ones share a simulation."""
    variance = max(noise.one_seed(item_factor=item_factor), np.finfo(float).tiny)
    return float(np.round(min(distance / np.sqrt(variance), 35.0), 2))


@lru_cache(maxsize=512)
def _two_sided_flip_power(num_seeds: int, effect: float) -> float:
    return float(np.mean(sign_flip_p(_draws(num_seeds, effect)) <= ALPHA))


@lru_cache(maxsize=512)
def _one_sided_flip_power(num_seeds: int, effect: float) -> float:
    return float(np.mean(sign_flip_p_below(_draws(num_seeds, -effect), 0.0) <= ALPHA))


def _draws(num_seeds: int, effect: float) -> Floats:
    """The same draws at every call, so that a power is reproducible."""
    return np.random.default_rng(num_seeds).normal(effect, 1.0, (_NUM_SIMULATED, num_seeds))
