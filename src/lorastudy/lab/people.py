"""The lab's people: their names, the facts about them, and the phrasings that state or ask a fact.

In the manner of synthetic-biography studies ("Physics of Language Models: Part 3.1", arXiv 2309.14316): a
person is a name and an answer to each relation, drawn independently, so nothing can be guessed and every
fact has to be stored. `KNOWN` are the people of the pre-training corpus; `NEW` appear in fine-tuning only.
Their names are new pairs of the same first and last names, so no word is new to the tokenizer.

Every relation has one phrasing that fine-tuning never uses. The base model knows it from the known people,
so a question about a new person in that phrasing asks for the fact and not for the wording.

Everything is drawn from generators with fixed seeds: same version of the package, same rows.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
