"""Simulated studies with a known truth, drawn as whole arrays.

The loss of arm k with seed s on item i is

    truth(k) + base(i) + start(s) + [seed(k, s) + hardness(i) (item(k, i) + cell(k, s, i))] / sqrt(2)

so that the difference of two arms has the spreads that a profile names, differences with one reference share its noise
(correlation .5), and what all arms have in common, `base` and `start`, cancels and is not drawn. Items are not normal:
their effects have t tails (5 degrees), they weigh by their tokens (log-normal, sd .7), and short items are noisier.
The spreads of the profile "as in the lab" have the proportions that differences between ranks show in the lab's study:
items and cells alike, and seeds about as much as the cells of a few hundred items.

That noise is symmetric, and equal for all arms. A `Kind` changes it: skewed seeds or items, noise that grows with the arm,
rows in clusters, differences that follow the length of the answer. The last kind is drawn from recorded rows
(`recorded_rows`): rows of the Alpaca example with their lengths and with what each rank lost on them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorastudy.stats.power import Noise

SEED = 20250
_CHUNK = 100
_TOKENS = 12.0
#: The spread of the base model's loss over items, in those of a difference.
_BASE_SPREAD = 2.0

_LENGTH_SPREAD = 0.7
_RECORDED = Path(__file__).parents[1] / "docs" / "examples" / "alpaca_rank_and_rate.json"

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
class Kind:
    """What noise is like besides its spreads. Only the arms are unlike symmetric noise; the reference is not."""

    name: str
    seed_skewness: float = 0.0
    """Of an arm's seeds, towards a higher loss: rare bad seeds."""
    seed_ratio: float = 1.0
    """The spread of an arm's seeds, in those of the reference."""
    item_skewness: float = 0.0
    """Of an arm's items, towards a higher loss."""
    growth: float = 1.0
    """The spread of the last arm's noise, in those of the reference; the arms between lie between."""
    cluster: int = 1
    """Rows in a cluster, which share half of the variance of items and cells."""
    follows_length: float = 0.0
    """The part of an arm's item variance that is its answer's length: the loss is higher on short answers."""
    length_spread: float = _LENGTH_SPREAD
    """Of the logarithm of an answer's tokens."""
    longest: float = np.inf
    """Tokens of the longest answer, in those of the median one: rows are cut."""
    is_recorded: bool = False
    """Whether rows are drawn from recorded ones; of a profile nothing is taken then."""


SYMMETRIC = Kind(name="symmetric")
VERY_SKEWED = Kind(name="very skewed seeds", seed_skewness=2.0, seed_ratio=3.0)
VERY_LONG = Kind(name="a few very long rows", follows_length=0.4, length_spread=1.4)
RECORDED = Kind(name="recorded Alpaca rows", is_recorded=True)
KINDS = (
    SYMMETRIC,
    Kind(name="skewed seeds", seed_skewness=2.0),
    Kind(name="skewed items", item_skewness=2.0),
    Kind(name="noise that grows with the arm", growth=3.0),
    Kind(name="rows in clusters of five", cluster=5),
    Kind(name="differences that follow the length", follows_length=0.4, length_spread=1.4, longest=4.0),
    VERY_SKEWED,
    VERY_LONG,
)
#: Kinds of which no promise is made: what remains is shown.
UNPROMISED = (VERY_SKEWED, VERY_LONG)


@dataclass(frozen=True, kw_only=True)
class Design:
    """How large the studies are, and what their noise is like."""

    profile: Profile
    num_seeds: int
    num_items: int
    num_arms: int = 1
    """Beside the reference."""
    kind: Kind = SYMMETRIC

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
    groups: npt.NDArray[np.int64] | None = None
    """The cluster of each item, where they come in clusters."""


def drawn(design: Design, num_studies: int, *, draw: np.random.Generator) -> Studies:
    """Studies of noise alone."""
    if design.kind.is_recorded:
        return _drawn_from_recorded(design, num_studies, draw=draw)
    profile, kind, n, m = design.profile, design.kind, design.num_seeds, design.num_items
    arms = design.num_arms + 1
    weights = _tokens((num_studies, 1, m), kind=kind, draw=draw)
    noise = profile.cells * _in_clusters(draw.standard_normal, (num_studies, arms, n, m), kind=kind)
    noise += profile.items * _items(weights, arms, kind=kind, draw=draw)
    noise *= np.sqrt(_TOKENS / weights)[:, :, None]
    noise += profile.seeds * _seeds((num_studies, arms, n, 1), kind=kind, draw=draw)
    noise *= np.linspace(1.0, kind.growth, arms)[:, None, None]
    noise /= np.sqrt(2)
    return Studies(
        differences=noise[:, 1:] - noise[:, :1],
        weights=weights,
        gains=_base(design, weights, draw=draw.spawn(1)[0]) - noise[:, :1],
        groups=None if kind.cluster == 1 else np.arange(m) // kind.cluster,
    )


def _tokens(shape: tuple[int, ...], *, kind: Kind, draw: np.random.Generator) -> Floats:
    tokens = np.round(np.exp(draw.normal(np.log(_TOKENS), kind.length_spread, shape)))
    cut: Floats = np.clip(tokens, 1.0, _TOKENS * kind.longest)
    return cut


def _seeds(shape: tuple[int, ...], *, kind: Kind, draw: np.random.Generator) -> Floats:
    values = draw.standard_normal(shape)
    if kind.seed_skewness:
        values[:, 1:] = kind.seed_ratio * _skewed(draw, values[:, 1:].shape, skewness=kind.seed_skewness)
    return values


def _items(weights: Floats, arms: int, *, kind: Kind, draw: np.random.Generator) -> Floats:
    """Effects of items on each arm, (studies, arms, 1, items), of mean 0 by weight and of variance 1."""
    shape = (len(weights), arms, 1, weights.shape[-1])
    values = _in_clusters(lambda size: draw.standard_t(5, size) / np.sqrt(5 / 3), shape, kind=kind)
    if kind.item_skewness:
        values[:, 1:] = _skewed(draw, values[:, 1:].shape, skewness=kind.item_skewness)
    if kind.follows_length:
        own, shared = np.sqrt(1 - kind.follows_length), np.sqrt(kind.follows_length)
        values[:, 1:] = own * values[:, 1:] + shared * _shortness(weights, kind=kind)[:, :, None]
    return values


def _in_clusters(of_shape: Any, shape: tuple[int, ...], *, kind: Kind) -> Floats:
    """Noise over items of which half the variance is shared within a cluster."""
    alone: Floats = of_shape(shape)
    if kind.cluster == 1:
        return alone
    shared = of_shape((*shape[:-1], -(-shape[-1] // kind.cluster)))
    together = np.repeat(shared, kind.cluster, axis=-1)[..., : shape[-1]]
    noise: Floats = (alone + together) / np.sqrt(2)
    return noise


def _skewed(draw: np.random.Generator, shape: tuple[int, ...], *, skewness: float) -> Floats:
    """Gamma noise of mean 0 and variance 1; of skewness 2 it is exponential."""
    form = 4 / skewness**2
    noise: Floats = (draw.gamma(form, size=shape) - form) / np.sqrt(form)
    return noise


def _shortness(weights: Floats, *, kind: Kind) -> Floats:
    """How short an answer is in logarithms, so that its effect on a token-weighted mean is 0 and its variance 1."""
    middle, spread = _log_lengths(kind)
    # Effects are divided by the root of the length afterwards (short items are noisier), which this one is not.
    return (middle - np.log(weights)) / spread * np.sqrt(weights / _TOKENS)


@cache
def _log_lengths(kind: Kind) -> tuple[float, float]:
    """Mean and standard deviation of an item's log length, by weight."""
    lengths = _tokens((2_000_000,), kind=kind, draw=np.random.default_rng(SEED))
    middle = np.average(np.log(lengths), weights=lengths)
    return float(middle), float(np.sqrt(np.average((np.log(lengths) - middle) ** 2, weights=lengths)))


# --- recorded rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RecordedRows:
    """What each arm of a recorded study lost against its reference, row by row, cut into parts.

    The last "arm" is what the reference gained over the base model. Every part has mean 0, so the truth is 0.
    """

    weights: Floats
    items: Floats
    """(arms, items)."""
    cells: Floats
    """(arms, seeds, items): what seed and item leave over."""
    seeds: Floats
    """(arms, arms): a root of the covariance between seeds, less what the cells put into it."""


@cache
def recorded_rows(path: Path = _RECORDED) -> RecordedRows:
    """The test rows of the example, of all arms that report."""
    body = json.loads(path.read_text(encoding="utf-8"))
    arm_and_seed = {each["experiment_id"]: (each["arm"], each["seed"]) for each in body["experiments"]}
    after, before = (
        next(part for part in body["items"] if (part["split"], part["metric"]) == (split, "loss"))
        for split in ("test", "test_before")
    )
    losses: dict[str, dict[int, list[float]]] = {}
    for experiment_id, values in after["values"].items():
        arm, seed = arm_and_seed[experiment_id]
        losses.setdefault(arm, {})[seed] = values
    by_arm = {arm: np.array([by_seed[seed] for seed in sorted(by_seed)]) for arm, by_seed in losses.items()}
    reference = next(arm for arm in by_arm if arm.startswith(body["question"]["reference"]))
    base = np.array(next(iter(before["values"].values())))
    others = [values - by_arm[reference] for arm, values in by_arm.items() if arm != reference]
    return _in_parts(np.stack([*others, base - by_arm[reference]]), np.array(after["weights"], dtype=float))


def _in_parts(differences: Floats, weights: Floats) -> RecordedRows:
    """From differences by (arm, seed, item)."""
    num_seeds = differences.shape[1]
    shares = weights / weights.sum()
    by_seed, by_item = differences @ shares, differences.mean(axis=1)
    mean = by_seed.mean(axis=1)
    cells = differences - by_seed[..., None] - by_item[:, None] + mean[:, None, None]
    between = np.cov(by_seed) - np.einsum("i,ksi,lsi->kl", shares**2, cells, cells) / (num_seeds - 1)
    values, vectors = np.linalg.eigh(between)
    return RecordedRows(
        weights=weights,
        items=by_item - mean[:, None],
        cells=cells,
        seeds=vectors * np.sqrt(np.maximum(values, 0.0)),
    )


def _drawn_from_recorded(design: Design, num_studies: int, *, draw: np.random.Generator) -> Studies:
    """Rows with replacement, each with its length, its effect on every arm and the spread of its cells.

    Seeds are normal, of the recorded covariance. A cell is a normal mixture of the cells that its row had.
    """
    rows, n, m = recorded_rows(), design.num_seeds, design.num_items
    num_recorded = rows.cells.shape[1]
    chosen = draw.integers(len(rows.weights), size=(num_studies, m))
    seeds = np.einsum("kl,bls->bks", rows.seeds, draw.standard_normal((num_studies, len(rows.seeds), n)))
    mixture = draw.standard_normal((num_studies, n, m, num_recorded)) / np.sqrt(num_recorded - 1)
    noise = np.einsum("bsit,ktbi->bksi", mixture, rows.cells[:, :, chosen], optimize=True)
    noise += np.moveaxis(rows.items[:, chosen], 0, 1)[:, :, None] + seeds[..., None]
    return Studies(
        differences=noise[:, : design.num_arms],
        weights=rows.weights[chosen][:, None],
        gains=noise[:, -1:],
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
    """The true variances of a difference of symmetric noise with one seed, by the mean over many draws of the weights."""
    profile = design.profile
    weights = _tokens((2000, design.num_items), kind=SYMMETRIC, draw=np.random.default_rng(SEED))
    factor = float(np.mean((weights * _TOKENS).sum(axis=-1) / weights.sum(axis=-1) ** 2))
    return Noise(
        seeds=profile.seeds**2,
        cells=profile.cells**2 * factor,
        items=profile.items**2 * factor,
        num_items=design.num_items,
    )


def true_error(studies: Studies, design: Design) -> Floats:
    """The true standard error of one comparison of symmetric noise, given each study's weights."""
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
