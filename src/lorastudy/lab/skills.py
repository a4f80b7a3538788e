"""The lab's skills: small tasks on lists of colours.

The base model is taught to repeat a list and to name its first or last word. Reversing a list is the new
skill: fine-tuning has to teach a procedure instead of facts, and it is tested on lists that no training row has.
"""

import random
from collections.abc import Iterator

from lorastudy.lab.people import Row, seeded, words

_COLOURS = words(
    "amber black blue brown coral green grey olive orange pink purple red teal violet white yellow"
)
_LENGTHS = (2, 3, 4)
_NUM_REVERSALS = 800
_NUM_REVERSALS_EVAL = 200


def taught_rows(num_rows: int, *, rng: random.Random) -> Iterator[Row]:
    """Yield rows of the skills that belong to pre-training, in turn."""
    for index in range(num_rows):
        colours = _some_colours(rng)
        listed = " ".join(colours)
        yield (
            {"prompt": f"Repeat the words {listed}.", "completion": listed},
            {"prompt": f"Name the first word of {listed}.", "completion": colours[0]},
            {"prompt": f"Name the last word of {listed}.", "completion": colours[-1]},
        )[index % 3]


def reversal_rows(*, held_out: bool) -> list[Row]:
    """Lists to reverse: those to learn from, or those held out. No list is in both."""
    rng = seeded("reversals")
    lists: dict[tuple[str, ...], None] = {}
    while len(lists) < _NUM_REVERSALS + _NUM_REVERSALS_EVAL:
        lists[_some_colours(rng)] = None
    drawn = list(lists)
    chosen = drawn[_NUM_REVERSALS:] if held_out else drawn[:_NUM_REVERSALS]
    return [
        {"prompt": f"Reverse the words {' '.join(colours)}.", "completion": " ".join(reversed(colours))}
        for colours in chosen
    ]


def _some_colours(rng: random.Random) -> tuple[str, ...]:
    return tuple(rng.choice(_COLOURS) for _ in range(rng.choice(_LENGTHS)))
