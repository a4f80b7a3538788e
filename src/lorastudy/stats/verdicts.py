"""The words that a comparison may end in, and the rules by which it gets one.

`better`: one of the two is shown to have the better score for new seeds and new items (the pair says which). Takes the
two-sided t test of the two-way estimate, Holm-corrected over the comparisons with one reference, *and* the sign-flip
test of the seeds. The first makes the chance that any comparison says "better" without cause at most 5 %, if the noise
between seeds is roughly normal; the second needs it to be symmetric only. It cannot go below 2 / 2**n, so it takes six seeds.

`as good within the margin`: the arm is shown to be worse than the reference by less than a margin that was set before
the run: the 95 % interval of the difference ends below the margin, that is the one-sided t test at .025, *and* the
one-sided sign-flip test at .05, which takes five seeds. The t test is held to half the level since this verdict is the one
that skewed noise makes too easily (`significance.NO_WORSE_ALPHA`). Along a ladder of ranks
the tests go in fixed sequence from the largest rank down and stop at the first that fails, at no cost for their
number; elsewhere Holm corrects. **There is no default margin**: what difference matters is the user's to say, and
without it nothing is as good. A margin that is a share of the gain is tested with the gain's noise (`retention`). An arm that is shown to be better keeps that word; one that is shown to be worse, but
by less than the margin, is as good within it, and `difference_shown` says that it is not equal.

`untuned`: one of the first two would be said, but one of the two arms had no learning rate of its own: it was never
varied, or the best lies on the edge of what was tried. What was shown holds at the rates that were tried, so the
arm that was ahead there is named (`ahead`), and nobody wins: at one fixed rate, 4e-5, the effect of rank looked eight times too
small, and the truly best rank won in 3 of 13 models (at 3e-4, in 26 of 28). That makes "as good" no safer than "better".

`cannot tell`: neither was shown; with what would decide it.

`invalid`: the two runs do not compare (other environment, base model, rows or metric version), or something from
outside, as the linter, blocks the verdict.

The rules work on arrays whose last axis holds the comparisons, so that a simulation judges with them too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lorastudy.stats.invalidation import Blocker
from lorastudy.stats.significance import NO_WORSE_ALPHA, Floats, holm, rejects

Word = Literal["better", "as good within the margin", "untuned", "cannot tell", "invalid"]
WORDS: tuple[Word, ...] = ("better", "as good within the margin", "untuned", "cannot tell", "invalid")

Shown = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a verdict is held against besides the data; all of it is fixed before the run.

    `ladder` names arms in the order in which the fixed sequence takes them, the reference left out; with a ladder
    no other arm can be as good within the margin.
    """

    margin: float | None = None
    """In the metric's unit; the largest loss of quality that would not matter."""
    margin_share: float | None = None
    """Where the margin is a share of the reference's gain: that share. `margin` is then what it came to, for people."""
    ladder: tuple[str, ...] = ()
    blockers: Mapping[str, Sequence[Blocker]] = field(default_factory=dict)
    """By arm. One of the reference's blocks every comparison with it."""
    untuned: frozenset[str] = frozenset()
    """Arms without a learning rate of their own; against an untuned reference no arm can win either."""


def differences_shown(t_ps: Floats, sign_flip_ps: Floats) -> Shown:
    """Which comparisons of a family show a difference: Holm over the t tests, and the sign-flip test."""
    return rejects(holm(t_ps)) & rejects(sign_flip_ps)


def no_worse_shown(t_ps: Floats, sign_flip_ps: Floats, *, in_sequence: bool) -> Shown:
    """Which comparisons show that an arm is worse by less than the margin.

    In sequence, the last axis is the order of the tests: one that fails ends it, so the chance that any arm beyond
    the margin passes is that of the first such arm.
    """
    if in_sequence:
        passes = (t_ps <= NO_WORSE_ALPHA) & rejects(sign_flip_ps)
        return np.logical_and.accumulate(passes, axis=-1)
    return rejects(holm(t_ps), alpha=NO_WORSE_ALPHA) & rejects(sign_flip_ps)


def word(*, arm_ahead: bool, shown: bool, no_worse: bool) -> Word:
    """The word of a valid comparison, from what its tests show, as if both arms were tuned."""
    if shown and arm_ahead:
        return "better"
    if no_worse:
        return "as good within the margin"
    return "better" if shown else "cannot tell"


def measured_errors() -> list[dict[str, Any]]:
    """How often these rules erred in simulated studies: shares of false "better" and "as good" by `kind` of noise.

    `num_rows` tells draws of recorded rows apart. Written by `benchmarks/simulate_verdicts.py`.
    """
    file = Path(__file__).with_name("verdicts_measured.json")
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found
