"""Metrics of texts against values worked out by hand, and ROUGE-L against all subsequences."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.evaluation.text_metrics import contains, rouge_l, token_f1


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The cat sat.", "the cat sat", 1.0),
        ("a b c d", "a b", 2 * 2 / (4 + 2)),
        ("b b b", "b a", 2 * 1 / (3 + 2)),  # b counts once, as often as the reference has it
        ("x", "y", 0.0),
        ("", "y", 0.0),
        ("...", "!", 1.0),  # no words in either
        ("Änderung", "änderung", 1.0),
    ],
)
def test_token_f1_by_hand(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        # Lin 2004, section 3.1: S2 shares "police the gunman" with S1, S3 shares "the gunman"; beta is 1 there too.
        ("police kill the gunman", "police killed the gunman", 0.75),
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("a b c", "c b a", 2 * 1 / 6),
        ("", "a", 0.0),
    ],
)
def test_rouge_l_by_hand(answer: str, reference: str, expected: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected)


@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_rouge_l_is_the_longest_of_all_common_subsequences(one: list[str], other: list[str]) -> None:
    def subsequences(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(part) for n in range(len(words) + 1) for part in itertools.combinations(words, n)}

    longest = max(map(len, subsequences(one) & subsequences(other)))
    expected = 2 * longest / (len(one) + len(other)) if one or other else 1.0
    assert rouge_l(" ".join(one), " ".join(other)) == pytest.approx(expected)


def test_contains_takes_no_notice_of_case_and_white_space() -> None:
    assert contains("It is  New\nYork, surely", "new york") == 1.0
    assert contains("York", "New York") == 0.0
    assert contains("anything", "") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("The answer is 14", "4", 0.0),
        ("The answer is 4.", "4", 1.0),
        ("The answer is 4.5", "4", 0.0),
        ("It costs 1,400", "400", 0.0),
        ("It costs $400, or so", "$400", 1.0),
        ("cats and a cat", "cat", 1.0),
        ("concatenate", "cat", 0.0),
        ("C++, surely", "c++", 1.0),
        ("答案是4。", "4", 1.0),  # no white space between words
        ("我在北京工作", "北京", 1.0),
    ],
)
def test_contains_finds_whole_words_and_numbers(answer: str, reference: str, expected: float) -> None:
    assert contains(answer, reference) == expected


def test_a_pattern_chooses_the_part_that_counts() -> None:
    reference, pattern = "6 * 7 = 42\n#### 42", "#### (.+)"
    assert token_f1("so #### 42", reference, pattern=pattern) == 1.0
    assert token_f1("so 42", reference, pattern=pattern) == 0.0  # no match
    assert contains("it is 42, I think", reference, pattern=pattern) == 1.0
    assert contains("it is 24", reference, pattern=pattern) == 0.0
