"""Simulated studies with a known truth, drawn as whole arrays.

The loss of arm k with seed s on item i is

    truth(k) + base(i) + start(s) + [seed(k, s) + hardness(i) (item(k, i) + cell(k, s, i))] / sqrt(2)

so that the difference of two arms has the spreads that a profile names, differences with one reference share its noise
(correlation .5), and what all arms have in common, `base` and `start`, cancels and is not drawn. Items are not normal:
their effects have t tails (5 degrees), they weigh by their tokens (log-normal, sd .7), and short items are noisier.
The spreads of the profile "as in the lab" have the proportions that differences between ranks show in the lab's study:
items and cells alike, and seeds about as much as the cells of a few hundred items.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lorastudy.analysis.power import Noise

SEED = 20250
_CHUNK = 100
_TOKENS = 12.0
#: The spread of the base model's loss over items, in those of a difference.
_BASE_SPREAD = 2.0

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Standard deviations of a difference between two arms: of a seed, of an item, of a cell."""

    name: str
    seeds: float
    items: float
    cells: float


PROFILES = (
    Profile(name="as in the lab", seeds=0.05, items=0.6, cells=0.6),
    Profile(name="seeds rule", seeds=0.10, items=0.2, cells=0.2),
    Profile(name="items rule", seeds=0.01, items=1.0, cells=0.3),
    Profile(name="no item effect", seeds=0.05, items=0.0, cells=0.6),
)


@dataclass(frozen=True, kw_only=True)
class Design:
    """How large the studies are."""

    profile: Profile
    num_seeds: int
    num_items: int
    num_arms: int = 1
    """Beside the reference."""

    @property
    def row(self) -> Row:
        """What a result says of its studies."""
        sizes = {"num_seeds": self.num_seeds, "num_items": self.num_items, "num_arms": self.num_arms}
        return {"profile": self.profile.name, **sizes}


@dataclass(frozen=True, kw_only=True)
class Studies:
    """Differences (studies, arms, seeds, items), noise alone, and weights (studies, 1, items).

    `gains` (studies, 1, seeds, items) is the noise of what the reference gained over the base model: the base model's
    loss varies from item to item by twice what a difference does, and the reference brings its own noise, which it shares
    with every difference.
    """

    differences: Floats
    weights: Floats
    gains: Floats | None = None


def drawn(design: Design, num_studies: int, *, draw: np.random.Generator) -> Studies:
    """Studies of noise alone."""
    profile, n, m = design.profile, design.num_seeds, design.num_items
    arms = design.num_arms + 1
    weights = np.maximum(1, np.round(np.exp(draw.normal(np.log(_TOKENS), 0.7, (num_studies, 1, m)))))
    noise = draw.standard_normal((num_studies, arms, n, m))
    noise *= profile.cells
    tails = draw.standard_t(5, (num_studies, arms, 1, m)) / np.sqrt(5 / 3)
    noise += profile.items * tails
    noise *= np.sqrt(_TOKENS / weights)[:, :, None]
    noise += profile.seeds * draw.standard_normal((num_studies, arms, n, 1))
    noise /= np.sqrt(2)
    return Studies(
        differences=noise[:, 1:] - noise[:, :1],
        weights=weights,
        gains=_base(design, weights, draw=draw.spawn(1)[0]) - noise[:, :1],
    )


def _base(design: Design, weights: Floats, *, draw: np.random.Generator) -> Floats:
    """The base model's loss on each item, the same for every seed."""
    spread = _BASE_SPREAD * max(design.profile.items, design.profile.cells)
    shape = (len(weights), 1, 1, design.num_items)
    values: Floats = (
        spread * draw.standard_t(5, shape) / np.sqrt(5 / 3) * np.sqrt(_TOKENS / weights)[:, :, None]
    )
    return values


def chunks(design: Design, num_studies: int) -> Iterator[Studies]:
    """That many studies, a hundred at a time: the same at every call."""
    draw = np.random.default_rng([SEED, design.num_seeds, design.num_items, design.num_arms])
    for start in range(0, num_studies, _CHUNK):
        yield drawn(design, min(_CHUNK, num_studies - start), draw=draw)


def true_noise(design: Design) -> Noise:
    """The true variances of a difference with one seed, by the mean over many draws of the weights."""
    profile = design.profile
    draw = np.random.default_rng(SEED)
    weights = np.maximum(1, np.round(np.exp(draw.normal(np.log(_TOKENS), 0.7, (2000, design.num_items)))))
    factor = float(np.mean((weights * _TOKENS).sum(axis=-1) / weights.sum(axis=-1) ** 2))
    return Noise(
        seeds=profile.seeds**2,
        cells=profile.cells**2 * factor,
        items=profile.items**2 * factor,
        num_items=design.num_items,
    )


def true_error(studies: Studies, design: Design) -> Floats:
    """The true standard error of one comparison, given each study's weights."""
    profile, n = design.profile, design.num_seeds
    weights = studies.weights[:, 0]
    factor = (weights * _TOKENS).sum(axis=-1) / weights.sum(axis=-1) ** 2
    variance = profile.seeds**2 / n + (profile.items**2 + profile.cells**2 / n) * factor
    error: Floats = np.sqrt(variance)
    return error


def by_seed(studies: Studies) -> Floats:
    """Weighted means over items: (studies, arms, seeds)."""
    shares = studies.weights / studies.weights.sum(axis=-1, keepdims=True)
    means: Floats = (studies.differences * shares[..., None, :]).sum(axis=-1)
    return means
