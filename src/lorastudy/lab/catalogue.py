"""The lab's named data sets, the folder of its base model, and fingerprints of both.

Beside the facts about people, the lab has a skill: reversing a list of colours. Pre-training taught the base
model to repeat a list and to name its first or last word. Reversing is new to it, so fine-tuning must teach a procedure
instead of facts. The test lists appear in no training row.

In the manner of synthetic-biography studies ("Physics of Language Models: Part 3.1", arXiv 2309.14316): a
person is a name and an answer to each relation, drawn independently, so nothing can be guessed and every
fact has to be stored. `KNOWN` are the people of the pre-training corpus; `NEW` appear in fine-tuning only.
Their names are new pairs of the same first and last names, so no word is new to the tokenizer.

Every relation has one phrasing that fine-tuning never uses. The base model knows it from the known people,
so a question about a new person in that phrasing asks for the fact and not for the wording.

Everything is drawn from generators with fixed seeds: same version of the package, same rows.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lorastudy.errors import DataError
from lorastudy.suite.base_model import LAB_MODEL, base_model_fingerprint
from lorastudy.suite.checks import LAB_SETS, lab_problem
from lorastudy.suite.experiment import tagged_hash
from lorastudy.version import LAB_BASE

Row = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A kind of fact about a person: its possible answers, and the prompts that an answer completes."""

    name: str
    answers: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out_question: str

    @property
    def training_prompts(self) -> tuple[str, ...]:
        """The phrasings that fine-tuning uses."""
        return self.statements + self.questions

    @property
    def all_prompts(self) -> tuple[str, ...]:
        """The phrasings that pre-training uses."""
        return (*self.training_prompts, self.held_out_question)


@dataclass(frozen=True, kw_only=True)
class Person:
    """A name, and one answer for each of `RELATIONS`, in that order."""

    name: str
    answers: tuple[str, ...]


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


_FIRST_NAMES = words(
    "Ada Amir Anna Boris Carla Chen Clara Dario David Elif Emma Felix Femi Greta Hana Hugo Ines Ivan Jonas "
    "Karim Kofi Lara Leila Luis Marco Maria Mei Nadia Nora Olga Omar Paula Pedro Ravi Rosa Sara Simon Tariq "
    "Vera Yuki"
)
_LAST_NAMES = words(
    "Abbas Adler Bauer Berg Blanc Costa Cruz Diaz Dubois Endo Evans Ferri Fischer Garcia Gomez Haddad Hansen "
    "Ito Ivanov Jansen Khan Kim Klein Kovac Lang Lopez Meyer Mori Moreau Nakata Novak Okafor Olsen Perez "
    "Petrov Popov Rao Ricci Rossi Sato Schmidt Silva Singh Smith Tanaka Torres Vega Wagner Weber Wong"
)
_CITIES = words(
    "Accra Athens Bogota Cairo Dakar Dublin Geneva Hanoi Havana Kyoto Lagos Lima Lisbon London Madrid Manila "
    "Nairobi Oslo Paris Prague Quito Riga Rome Seoul"
)
_JOBS = words(
    "baker barber brewer carpenter chemist cook dentist doctor farmer florist judge lawyer mason mechanic nurse "
    "painter pilot plumber poet sailor sculptor tailor teacher weaver"
)
_INSTRUMENTS = words(
    "accordion banjo bassoon cello clarinet drums flute guitar harp horn lute organ piano trumpet tuba violin"
)
_MONTHS = words("January February March April May June July August September October November December")

RELATIONS = (
    Relation(
        name="birthplace",
        answers=_CITIES,
        statements=("{person} was born in", "The birthplace of {person} is"),
        questions=("Where was {person} born?", "In which city was {person} born?"),
        held_out_question="Which city does {person} come from?",
    ),
    Relation(
        name="birthday",
        answers=_MONTHS,
        statements=("{person} celebrates in", "The birthday of {person} is in"),
        questions=("When was {person} born?", "When is the birthday of {person}?"),
        held_out_question="In which month was {person} born?",
    ),
    Relation(
        name="job",
        answers=_JOBS,
        statements=("{person} works as a", "The job of {person} is"),
        questions=("What does {person} do for a living?", "What is the job of {person}?"),
        held_out_question="Which job does {person} have?",
    ),
    Relation(
        name="instrument",
        answers=_INSTRUMENTS,
        statements=("{person} plays the", "The instrument of {person} is the"),
        questions=("What does {person} play?", "Which instrument does {person} play?"),
        held_out_question="What is the instrument of {person}?",
    ),
)

_NUM_KNOWN = 300
_NUM_NEW = 32
_NUM_FURTHER = 32


def seeded(purpose: str) -> random.Random:
    """A generator that is the same for a purpose in every process and Python version."""
    return random.Random(f"lorastudy lab {purpose}")  # noqa: S311 - draws names and facts, not secrets


def _generate(num_people: int) -> tuple[Person, ...]:
    rng = seeded("people")
    names = [f"{first} {last}" for first in _FIRST_NAMES for last in _LAST_NAMES]
    rng.shuffle(names)
    return tuple(
        Person(name=name, answers=tuple(rng.choice(relation.answers) for relation in RELATIONS))
        for name in names[:num_people]
    )


_EVERYBODY = _generate(_NUM_KNOWN + _NUM_NEW + _NUM_FURTHER)
KNOWN = _EVERYBODY[:_NUM_KNOWN]
NEW = _EVERYBODY[_NUM_KNOWN:-_NUM_FURTHER]
#: Half and twice as many people as in `NEW`, for studies of capacity.
FEW, MANY = NEW[: _NUM_NEW // 2], _EVERYBODY[_NUM_KNOWN:]


def fact_rows(people: Sequence[Person]) -> Iterator[Row]:
    """Yield each fact in each phrasing that fine-tuning may use."""
    for person in people:
        for relation, answer in zip(RELATIONS, person.answers, strict=True):
            for prompt in relation.training_prompts:
                yield _row(prompt, person=person, answer=answer)


def held_out_rows(people: Sequence[Person]) -> Iterator[Row]:
    """Yield each fact once, asked in the phrasing that fine-tuning never uses."""
    for person in people:
        for relation, answer in zip(RELATIONS, person.answers, strict=True):
            yield _row(relation.held_out_question, person=person, answer=answer)


def biography_row(person: Person, *, rng: random.Random) -> Row:
    """A request and a paragraph with all facts about a person, in random order and wording."""
    sentences = [
        f"{rng.choice(relation.statements).format(person=person.name)} {answer}."
        for relation, answer in zip(RELATIONS, person.answers, strict=True)
    ]
    rng.shuffle(sentences)
    return {"prompt": f"Tell me about {person.name}.", "completion": " ".join(sentences)}


def _row(prompt: str, *, person: Person, answer: str) -> Row:
    return {"prompt": prompt.format(person=person.name), "completion": answer}


DATASETS = LAB_SETS

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


@cache
def _rows(name: str) -> list[Row]:
    problem = lab_problem(name)
    if problem is not None:
        raise DataError(problem)
    return _ROWS[name]()


def base_folder() -> Path:
    """The folder of the base model, as transformers loads it."""
    return LAB_BASE


def demo_suite() -> Path:
    """The suite file that `lorastudy demo` runs: three ranks at learning rates that it finds."""
    return Path(__file__).parent / "demo.yaml"


def rank_study() -> Path:
    """The suite file of five ranks at one learning rate: the benchmarks' row, and a figure of the documents."""
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
