"""The lab's data sets: what they promise to a study, and that they never change unnoticed."""

import subprocess
import sys

import pytest

from lorastudy import lab
from lorastudy.errors import DataError
from lorastudy.lab.catalogue import KNOWN, NEW, RELATIONS, biography_row, seeded

# Made by: python -c "from lorastudy import lab; print({n: lab.fingerprint(n) for n in lab.DATASETS})"
# The base model was trained on these people: rows that change need `python -m lorastudy.lab.recipe`.
FINGERPRINTS = {
    "facts": "lab-0378b014b9b0fdd3",
    "facts_eval": "lab-b5002b82ae7f4c70",
    "few_facts": "lab-29640d52accf845c",
    "few_facts_eval": "lab-7afc350463986230",
    "many_facts": "lab-6c544194a9de0fcc",
    "many_facts_eval": "lab-07b37fd81a20f564",
    "old_facts": "lab-d0aa4d2efcf08f18",
    "skill": "lab-fb6edf57d42c49c2",
    "skill_eval": "lab-dfc7fc38a43c20d9",
}


@pytest.mark.parametrize("name", lab.DATASETS)
def test_rows_are_those_the_base_model_was_made_with(name: str) -> None:
    assert lab.fingerprint(name) == FINGERPRINTS[name]


@pytest.mark.parametrize("name", lab.DATASETS)
def test_rows_have_a_prompt_and_an_answer_and_stand_once(name: str) -> None:
    rows = lab.rows(name)
    assert {frozenset(row) for row in rows} == {frozenset({"prompt", "completion", "separator"})}
    assert {row["separator"] for row in rows} == {" "}
    texts = [row[part] for row in rows for part in ("prompt", "completion")]
    assert all(text and text == text.strip() for text in texts)
    assert len({row["prompt"] for row in rows}) == len(rows)


def test_a_caller_cannot_change_the_rows_of_another() -> None:
    lab.rows("facts")[0]["completion"] = "spoilt"
    assert lab.rows("facts")[0]["completion"] != "spoilt"


def test_an_unknown_name_is_told_the_known_ones() -> None:
    told = r"no data set 'fact' \(did you mean lab:facts\?\); it has lab:facts, lab:facts_eval, lab:few_facts"
    with pytest.raises(DataError, match=told):
        lab.rows("fact")
    with pytest.raises(DataError, match="lab:skill"):
        lab.fingerprint("fact")


def test_sizes() -> None:
    # 32 new people x 4 facts x 4 phrasings, and once more in the held-out phrasing; half and twice as many people
    assert {name: len(lab.rows(name)) for name in lab.DATASETS} == {
        "facts": 512,
        "facts_eval": 128,
        "few_facts": 256,
        "few_facts_eval": 64,
        "many_facts": 1024,
        "many_facts_eval": 256,
        "old_facts": 128,
        "skill": 800,
        "skill_eval": 200,
    }


def test_new_people_are_strangers_with_familiar_names() -> None:
    known, new = ({person.name for person in people} for people in (KNOWN, NEW))
    assert not known & new
    assert len(known | new) == len(KNOWN) + len(NEW)
    assert {word for name in new for word in name.split()} <= {
        word for name in known for word in name.split()
    }


def test_questions_are_held_out_by_wording_and_facts_are_the_same() -> None:
    trained = {row["prompt"]: row["completion"] for row in lab.rows("facts")}
    asked = lab.rows("facts_eval")
    assert not {row["prompt"] for row in asked} & set(trained)
    for person, start in zip(NEW, range(0, len(asked), len(RELATIONS)), strict=True):
        about = [row["completion"] for row in asked[start : start + len(RELATIONS)]]
        assert about == list(person.answers)
        for relation, answer in zip(RELATIONS, about, strict=True):
            told = {trained[prompt.format(person=person.name)] for prompt in relation.training_prompts}
            assert told == {answer}


def test_old_facts_ask_known_people_as_the_evaluation_asks_new_ones() -> None:
    def wordings(name: str, people: set[str]) -> set[str]:
        return {
            row["prompt"].replace(who, "{}")
            for row in lab.rows(name)
            for who in people
            if who in row["prompt"]
        }

    known, new = ({person.name for person in people} for people in (KNOWN, NEW))
    assert wordings("old_facts", known) == wordings("facts_eval", new)
    assert not wordings("old_facts", new)


def test_no_prompt_of_one_relation_is_a_prompt_of_another() -> None:
    prompts = [prompt for relation in RELATIONS for prompt in relation.all_prompts]
    assert len(set(prompts)) == len(prompts) == 5 * len(RELATIONS)


def test_a_biography_tells_everything() -> None:
    person = KNOWN[0]
    text = biography_row(person, rng=seeded("test"))["completion"]
    assert text.count(".") == len(RELATIONS)
    assert all(f" {answer}." in text for answer in person.answers)


def test_reversals_are_reversed_and_held_out() -> None:
    train, held_out = lab.rows("skill"), lab.rows("skill_eval")
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    for row in train + held_out:
        listed = row["prompt"].removeprefix("Reverse the words ").removesuffix(".").split()
        assert row["completion"].split() == listed[::-1]


def test_rows_and_fingerprints_need_no_torch() -> None:
    code = (
        "import sys; from lorastudy import lab; [lab.rows(n) for n in lab.DATASETS]; lab.fingerprint('base');"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
