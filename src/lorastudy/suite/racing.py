"""Racing as a file asks for it: at which shares of the training arms are held against each other.

Which suites can be raced is in `checks`, who is stopped in `analysis.racing`.
"""

import itertools
import math
from collections.abc import Sequence

#: Where `racing: true` looks; docs/science.md has the measurement behind them.
RUNGS = (0.125, 0.25, 0.5)
#: Each look takes room in the correction for many looks, and some seconds.
MAX_RUNGS = 5
#: With two seeds a difference would have to be hundreds of its standard errors, so nothing would ever be stopped.
MIN_SEEDS_TO_RACE = 3
_RUNG_SPLIT = "eval_at_"


def check_rungs(shares: Sequence[float]) -> None:
    """Hold a list of rungs to what it must be.

    Raises:
        ValueError: there are too many, or they do not rise.
    """
    if len(shares) > MAX_RUNGS:
        raise ValueError(f"has {len(shares)} shares; more than {MAX_RUNGS} looks cost more than they save")
    if any(later <= earlier for earlier, later in itertools.pairwise(shares)):
        raise ValueError("the shares of the steps must rise, as in [0.25, 0.5]")


def rung_step(rung: float, *, num_steps: int) -> int:
    """The step after which a rung lies: the share of the steps, rounded up."""
    return math.ceil(round(rung * num_steps, 9))  # 0.28 * 100 is a little more than 28


def rung_name(rung: float) -> str:
    """A rung for a reader: `25 %`."""
    return f"{100 * rung:g} %"


def rung_split(rung: float) -> str:
    """The split of a `Score` on the held-out rows after this share of the training: `eval_at_25` after 25 %."""
    return f"{_RUNG_SPLIT}{100 * rung:g}"


def rung_of(split: str) -> float | None:
    """The share that `rung_split` named; None for a score that was not taken on the way."""
    return float(split.removeprefix(_RUNG_SPLIT)) / 100 if split.startswith(_RUNG_SPLIT) else None
