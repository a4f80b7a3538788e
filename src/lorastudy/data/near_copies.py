"""Held-out rows that nearly repeat a training row: training saw the question in slightly other words.

Two texts are near copies if their sets of three-word runs have a Jaccard similarity of at least `MIN_SIMILARITY`, as in
Lee et al. (arXiv 2107.06499) for training data. Runs in more than one text of a hundred are left out first: rows that
share a system prompt or a template are not copies of each other. A pair must be similar both without these runs and
with them, because a short text may have only one run left. Candidate pairs come from MinHash signatures cut into bands
(Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4). A pair at the least similarity is missed with a
probability of 0.7 %. Each candidate is then compared exactly, run by run.
"""

import hashlib
import heapq
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from lorastudy.data.load import DataRows, DataSet, StudyData, hashes_among, position

MIN_SIMILARITY = 0.7

#: Rows compared on each side, so that a count takes seconds.
MAX_ROWS = 10_000

_RUN_WORDS = 3

#: Later words are not compared.
_MAX_WORDS = 400

#: Runs in more than 10 texts, and in more than 1 % of all texts, belong to a template.
_FEW_TEXTS, _COMMON_SHARE = 10, 0.01

#: The chance of finding a pair at the least similarity: 1 - (1 - 0.7 ** 3) ** 12 = 0.9935
_NUM_BANDS, _BAND_ROWS = 12, 3

_WORDS = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class NearCopies:
    """How many of the compared held-out rows have a prompt that nearly repeats another row's."""

    num_near: int
    num_compared: int
    num_compared_with: int
    num_known: int
    """Rows of the other side, of which `num_compared_with` were compared."""


def near_copies(study: StudyData) -> Mapping[str, NearCopies]:
    """The near copies in each held-out split: `eval` against training rows, `test` against training and held-out rows.

    An exact copy of a prompt is not a near copy. A side with more than `MAX_ROWS` rows is sampled; the prompts decide
    which rows are in the sample.
    """
    train, held_out = _side(study.train), _side(study.held_out)
    found = {"eval": _near(held_out, (train,))}
    if study.test is not None:
        found["test"] = _near(_side(study.test), (train, held_out))
    return found


#: A data set and the numbers of some of its rows, as bytes.
_Side = tuple[DataSet, bytes]


def _side(rows: DataRows) -> _Side:
    return rows.dataset, array("I", rows.numbers).tobytes()


@lru_cache(maxsize=8)
def _near(side: _Side, other_sides: tuple[_Side, ...]) -> NearCopies:
    """The near copies of one side in the others. A worker compares them once for all its packs."""
    part, *among = (
        DataRows(dataset=dataset, numbers=array("I", numbers)) for dataset, numbers in (side, *other_sides)
    )
    chosen = _sample(part)
    keys = part.dataset.index.keys
    known = hashes_among(keys.prompts(chosen), among, of="prompts")
    new = [number for number in chosen if keys.prompt(number) not in known]
    others = [text for rows in among for text in rows.asked(_sample(rows))]
    return NearCopies(
        num_near=num_near_copies(list(part.asked(new)), others),
        num_compared=len(chosen),
        num_compared_with=len(others),
        num_known=sum(map(len, among)),
    )


def _sample(rows: DataRows) -> Sequence[int]:
    if len(rows) <= MAX_ROWS:
        return rows.numbers
    keys = rows.dataset.index.keys

    def place(number: int) -> float:
        return position(keys.prompt(number).hex(), purpose="near copies")

    return sorted(heapq.nsmallest(MAX_ROWS, rows.numbers, key=place))


def num_near_copies(texts: Sequence[str], among: Sequence[str]) -> int:
    """How many of the texts nearly repeat a text of `among`."""
    runs, others = [_runs(text) for text in texts], [_runs(text) for text in among]
    num_texts = Counter(run for found in (*runs, *others) for run in found)
    most = max(_FEW_TEXTS, _COMMON_SHARE * (len(texts) + len(among)))
    common = {run for run, times in num_texts.items() if times > most}
    kept, other_kept = ([found - common for found in side] for side in (runs, others))
    by_band: defaultdict[tuple[int, bytes], set[int]] = defaultdict(set)
    for number, found in enumerate(other_kept):
        for band in _bands(found):
            by_band[band].add(number)
    return sum(
        any(
            similarity(left, other_kept[number]) >= MIN_SIMILARITY
            and similarity(whole, others[number]) >= MIN_SIMILARITY
            for number in _alike(left, by_band)
        )
        for left, whole in zip(kept, runs, strict=True)
    )


def similarity(one: Collection[int], other: Collection[int]) -> float:
    """The Jaccard similarity of two sets; 0 if one is empty."""
    shared = len(set(one) & set(other))
    return shared / (len(one) + len(other) - shared) if shared else 0.0


def _alike(found: frozenset[int], by_band: Mapping[tuple[int, bytes], set[int]]) -> set[int]:
    return {number for band in _bands(found) for number in by_band.get(band, ())}


def _runs(text: str) -> frozenset[int]:
    """Hashes of the three-word runs. A shorter text is one run."""
    words = _WORDS.findall(text.casefold())[:_MAX_WORDS]
    starts = range(max(1, len(words) - _RUN_WORDS + 1))
    return (
        frozenset(_hash(" ".join(words[start : start + _RUN_WORDS])) for start in starts)
        if words
        else frozenset()
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _bands(found: frozenset[int]) -> Iterator[tuple[int, bytes]]:
    """The bands of the signature, each with its number. Two sets that share a band are a candidate pair."""
    import numpy as np  # most commands that import this module compare nothing

    if not found:
        return
    runs = np.fromiter(found, dtype=np.uint64, count=len(found))
    factors, shifts = _functions()
    signature = (factors * runs + shifts).min(axis=1)
    for band in range(_NUM_BANDS):
        yield band, signature[band * _BAND_ROWS : (band + 1) * _BAND_ROWS].tobytes()


@cache
def _functions() -> tuple[Any, Any]:
    """Factors and shifts of the universal family (a * x + b) mod 2**64 with odd a; always the same."""
    import numpy as np

    drawn = (
        [_hash(f"{kind} {number}") | 1 for number in range(_NUM_BANDS * _BAND_ROWS)]
        for kind in ("factor", "shift")
    )
    factors, shifts = (np.array(column, dtype=np.uint64)[:, None] for column in drawn)
    return factors, shifts
