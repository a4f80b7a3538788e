"""Plain words are made from the types: every key has them, and they say the bounds."""

import pytest
from pydantic import BaseModel

from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import EntryKeys, SuiteKeys
from lorastudy.suite.wording import checked, did_you_mean, in_words, properties, shown

KEYS = [(model, key) for model in (Settings, EntryKeys, SuiteKeys) for key in model.model_fields]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora_rank", "a whole number from 1 to 4096"),
        ("learning_rate", "a number greater than 0 and less than 10"),
        ("lora_dropout", "a number of at least 0 and less than 1"),
        ("max_steps", "a whole number of at least 1, or null"),
        ("bnb_4bit_quant_type", "one of nf4, fp4"),
        ("use_rslora", "true or false"),
        ("lora_alpha", "a number greater than 0, or text such as r, 2r, 0.5r"),
        ("layers_to_transform", "a list of one or more whole numbers of at least 0, or null"),
    ],
)
def test_words_for_what_a_key_takes(key: str, words: str) -> None:
    assert in_words(properties(Settings)[key]) == words


def test_words_for_the_fewest_items_of_a_list() -> None:
    words = in_words(properties(SuiteKeys)["tuning_seeds"])
    assert words == "a list of two or more whole numbers from 0 to 4294967295, or null"


@pytest.mark.parametrize(("model", "key"), KEYS)
def test_a_value_of_no_key_is_refused_in_words_without_jargon(model: type[BaseModel], key: str) -> None:
    with pytest.raises(ValueError, match=r"^must be .+, not ") as error:
        checked(model, key, value=object())
    assert not any(jargon in str(error.value) for jargon in ("Input", "pydantic", "_type", "validation"))


@pytest.mark.parametrize(("model", "key"), KEYS)
def test_every_default_passes_its_own_check(model: type[BaseModel], key: str) -> None:
    default = model.model_fields[key].default
    assert checked(model, key, value=default) == default


def test_values_are_shown_as_a_file_holds_them_and_shortened() -> None:
    assert [shown(v) for v in (True, None, "a", [1, False], {}, {"a": 1})] == [
        "true", "null (nothing)", "'a'", "[1, false]", "an empty mapping", "a mapping",
    ]  # fmt: skip
    assert len(shown("a" * 1000)) == 60


def test_the_nearest_word_is_offered_only_when_it_is_near() -> None:
    assert did_you_mean("LORA_RANKS", ("lora_rank", "lora_alpha")) == " (did you mean lora_rank?)"
    assert did_you_mean("zzz", ("lora_rank",)) == ""
