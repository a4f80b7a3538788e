"""The lab's named data sets, the folder of its base model, and fingerprints of both.

Beside the facts about people (`people`), the lab has a skill: reversing a list of colours. Pre-training taught the base
model to repeat a list and to name its first or last word. Reversing is new to it, so fine-tuning must teach a procedure
instead of facts. The test lists appear in no training row.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lorastudy.errors import DataError
from lorastudy.lab.people import FEW, KNOWN, MANY, NEW, Row, fact_rows, held_out_rows, seeded, words
from lorastudy.suite.base_model import LAB_MODEL, base_model_fingerprint
from lorastudy.suite.checks import LAB_PREFIX
from lorastudy.suite.experiment import tagged_hash
from lorastudy.version import LAB_BASE

DATASETS: Mapping[str, str] = {
    "facts": "Facts about people the base model has never met, each in four phrasings: to train on.",
    "facts_eval": "The same facts, each asked once in a phrasing that `facts` does not use.",
    "few_facts": "Those about the first half of these people.",
    "few_facts_eval": "The same facts, asked as in `facts_eval`.",
    "many_facts": "Those about these people and as many more.",
    "many_facts_eval": "The same facts, asked as in `facts_eval`.",
    "old_facts": "Questions about people the base model knows, in that same phrasing: to measure forgetting.",
    "skill": "Lists of colours to reverse, a task the base model was not taught: to train on.",
    "skill_eval": "Other lists to reverse.",
}

# Equally many known and new people, so the two scores are equally precise.
_ROWS: Mapping[str, Callable[[], list[Row]]] = {
    "facts": lambda: list(fact_rows(NEW)),
    "facts_eval": lambda: list(held_out_rows(NEW)),
    "few_facts": lambda: list(fact_rows(FEW)),
    "few_facts_eval": lambda: list(held_out_rows(FEW)),
    "many_facts": lambda: list(fact_rows(MANY)),
    "many_facts_eval": lambda: list(held_out_rows(MANY)),
    "old_facts": lambda: list(held_out_rows(KNOWN[: len(NEW)])),
    "skill": lambda: reversal_rows(held_out=False),
    "skill_eval": lambda: reversal_rows(held_out=True),
}


def rows(name: str) -> list[Row]:
    """The rows of a data set: `prompt`, `completion` and the space between. They are equal on every call and machine.

    Raises:
        DataError: the lab has no data set of this name.
    """
    return [{**row, "separator": " "} for row in _rows(name)]


def _rows(name: str) -> list[Row]:
    if name not in DATASETS:
        offered = ", ".join(LAB_PREFIX + known for known in DATASETS)
        raise DataError(f"the lab has no data set {name!r}; it has {offered}")
    return _ROWS[name]()


def base_folder() -> Path:
    """The folder of the base model, as transformers loads it."""
    return LAB_BASE


def demo_suite() -> Path:
    """The suite file of the rank study that `lorastudy demo` runs."""
    return Path(__file__).parent / "rank_study.yaml"


def fingerprint(name: str) -> str:
    """A hash of a data set's rows, or for `base` the fingerprint of the base model that experiments store.

    Raises:
        DataError: the lab has nothing of this name.
    """
    return base_model_fingerprint(LAB_MODEL) if name == "base" else tagged_hash("lab", _rows(name))


_COLOURS = words(
    "amber black blue brown coral green grey olive orange pink purple red teal violet white yellow"
)

_LENGTHS = (2, 3, 4)

_NUM_REVERSALS = 800

_NUM_REVERSALS_EVAL = 200


def taught_rows(num_rows: int, *, rng: random.Random) -> Iterator[Row]:
    """Yield rows of the pre-training skills, one skill after the other in rotation."""
    for index in range(num_rows):
        colours = _some_colours(rng)
        listed = " ".join(colours)
        yield (
            {"prompt": f"Repeat the words {listed}.", "completion": listed},
            {"prompt": f"Name the first word of {listed}.", "completion": colours[0]},
            {"prompt": f"Name the last word of {listed}.", "completion": colours[-1]},
        )[index % 3]


def reversal_rows(*, held_out: bool) -> list[Row]:
    """Lists to reverse, for training or held out. No list is in both."""
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
