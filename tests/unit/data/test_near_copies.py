import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorastudy import lab
from lorastudy.data.near_copies import MIN_SIMILARITY, num_near_copies, similarity

WORDS = [f"w{number}" for number in range(400)]


def runs(text):
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))} if words else set()


def num_by_comparing_all(texts, among):
    """The obvious twin: every pair, word by word, where no run is common enough to be left out."""
    return sum(
        any(similarity(runs(text), runs(other)) >= MIN_SIMILARITY for other in among) for text in texts
    )


def text(words):
    return " ".join(words)


@settings(deadline=None)  # the first call imports numpy
@given(st.integers(0, 10_000), st.integers(0, 6))
def test_what_is_counted_is_what_comparing_all_pairs_counts(seed, num_changed):
    draw = random.Random(seed)
    among = [draw.sample(WORDS, draw.randint(1, 60)) for _ in range(5)]
    copy = list(among[0])
    for _ in range(num_changed):
        copy[draw.randrange(len(copy))] = "changed"
    texts = [text(copy), text(draw.sample(WORDS, 20)), text(among[1]).upper() + "!"]
    found, expected = (
        num_near_copies(texts, [*map(text, among)]),
        num_by_comparing_all(texts, [*map(text, among)]),
    )
    nearest = max(similarity(runs(texts[0]), runs(text(words))) for words in among)
    if abs(nearest - MIN_SIMILARITY) > 0.1:  # nearer, a pair may be missed
        assert found == expected
    else:
        assert found <= expected


def test_one_word_of_twenty_makes_a_near_copy_and_one_of_ten_does_not():
    # 18 runs of which 3 are others: 15 / 21 = .71; of 8 runs 5 / 11 = .45
    for num_words, expected in ((20, 1), (10, 0)):
        words = WORDS[:num_words]
        changed = [*words[: num_words // 2], "other", *words[num_words // 2 + 1 :]]
        assert num_near_copies([text(changed)], [text(words)]) == expected


def test_a_pair_at_the_least_similarity_is_found_nearly_always():
    draw = random.Random(0)
    found = 0
    for _ in range(300):
        words = [f"{draw.random()}" for _ in range(20)]
        found += num_near_copies([text([*words[:10], "x", *words[11:]])], [text(words)])
    assert found >= 291  # 1 - (1 - .71 ** 3) ** 12 = .995, less four standard errors


def test_a_template_that_many_share_makes_no_copies():
    template = "You are a careful assistant who answers in one short sentence and never makes anything up {}"
    held_out, train = (
        [template.format(f"q{i}") for i in range(5)],
        [template.format(f"p{i}") for i in range(20)],
    )
    assert num_near_copies(held_out, train) == 0
    assert num_near_copies(held_out[:1], train[:1]) == 1


def test_short_texts_of_which_a_template_leaves_one_run_are_compared_as_a_whole():
    """The lab asks the facts that it trains on in another phrasing: of six prompts only the name is left, of none the whole."""
    held_out, train = ([row["prompt"] for row in lab.rows(name)] for name in ("facts_eval", "facts"))
    assert num_by_comparing_all(held_out, train) == 0
    assert num_near_copies(held_out, train) == 0


@pytest.mark.parametrize("empty", ["", "?!"])
def test_texts_without_words_resemble_nothing(empty):
    assert num_near_copies([empty], [empty, "a b c"]) == 0
