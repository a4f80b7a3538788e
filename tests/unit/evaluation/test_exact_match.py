from dataclasses import replace

import pytest

import tiny
from lorastudy.data.answers import is_match
from lorastudy.evaluation.evaluator import NUM_KEPT, ExactMatch
from lorastudy.protocol.records import Generation, Score

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("answer", "reference", "hit"),
    [
        ("Paris", "Paris", True),
        ("  Paris\n", "Paris", True),
        ("New \n York", "New York", True),
        ("paris", "Paris", False),
        ("Paris.", "Paris", False),
        ("", "Paris", False),
        ("", "", True),
    ],
)
def test_white_space_does_not_count_and_case_does(answer, reference, hit):
    assert is_match(answer, reference) is hit


@pytest.mark.parametrize(
    ("answer", "reference", "hit"),
    [
        ("so 7 #### 42", "because 6 * 7 #### 42", True),
        ("#### 41 no, #### 42", "#### 42", True),  # the last find counts
        ("#### 42 no, #### 41", "#### 42", False),
        ("42", "#### 42", False),
        ("#### 42", "42", False),
        ("42", "42", False),  # without a find there is nothing to compare
        ("####  4   2", "#### 4 2", True),
    ],
)
def test_a_pattern_compares_its_last_find(answer, reference, hit):
    assert is_match(answer, reference, pattern=r"#### (.+?)(?= no,|$)") is hit


def test_a_group_that_took_no_part_is_empty():
    assert is_match("ab", "ab", pattern="a(x)?b")
    assert not is_match("axb", "ab", pattern="a(x)?b")


class Parrot:
    """A scorer that answers with given ids, whatever the prompt; it remembers what it was asked."""

    experiment_ids = ("first", "second")

    def __init__(self, *answers):
        self.answers, self.asked = answers, None

    def generate(self, prompts, *, max_new_tokens):
        self.asked = [tuple(prompt) for prompt in prompts]
        return [[list(answer) for _ in prompts] for answer in self.answers]


def rows_with(references):
    rows = tiny.make_rows(len(references))
    return [replace(row, reference=reference) for row, reference in zip(rows, references, strict=True)]


def evaluate(scorer, rows, **options):
    options = {"max_new_tokens": 4, "max_rows": 10} | options
    records = list(ExactMatch(**options).evaluate(scorer, rows, base=tiny.make_base(), split="eval"))
    scores = [record for record in records if isinstance(record, Score) and record.metric == "exact_match"]
    return {score.experiment_id: score for score in scores}, [r for r in records if isinstance(r, Generation)]


def test_each_arm_has_a_hit_or_miss_for_every_row():
    rows = rows_with(["w5 w6", "w7", " w5  w6 ", "w5"])
    scores, generations = evaluate(Parrot([5, 6], [7]), rows)
    assert scores["first"].items == (1.0, 0.0, 1.0, 0.0)
    assert scores["second"].items == (0.0, 1.0, 0.0, 0.0)
    assert (scores["first"].value, scores["second"].value) == (0.5, 0.25)
    assert (scores["first"].metric, scores["first"].split, scores["first"].weights) == (
        "exact_match",
        "eval",
        None,
    )
    assert [record.answer for record in generations] == ["w5 w6"] * 4 + ["w7"] * 4
    assert [record.reference for record in generations[:4]] == [row.reference for row in rows]
    assert [record.prompt for record in generations[:4]] == [row.prompt_text for row in rows]


def test_how_many_rows_got_the_commonest_answer_is_a_score_of_its_own():
    class Fickle(Parrot):
        """Says the first answer to every row but the last."""

        def generate(self, prompts, *, max_new_tokens):
            return [[[5], [5], [7, 5]], [[6], [6], [6]]]

    exact_match = ExactMatch(max_new_tokens=4, max_rows=3)
    records = list(exact_match.evaluate(Fickle(), rows_with(["w5"] * 3), base=tiny.make_base(), split="test"))
    same = {
        one.experiment_id: one for one in records if isinstance(one, Score) and one.metric == "same_answer"
    }
    assert same["first"].items == (1.0, 1.0, 0.0)
    assert (same["first"].value, same["first"].split) == (pytest.approx(2 / 3), "test")
    assert (same["second"].items, same["second"].value) == ((1.0, 1.0, 1.0), 1.0)


@pytest.mark.parametrize(
    ("answers", "items"),
    [
        # In none of these is a w9 with a word behind it, and they are three answers, of which two say the same.
        ([[5], [6], [7], [7]], (0.0, 0.0, 1.0, 1.0)),
        ([[7], [7], [7], [7]], (1.0, 1.0, 1.0, 1.0)),
        # Where it is found nothing else counts; an answer that is all of what was found elsewhere is another answer.
        ([[5, 9, 7], [6, 9, 7], [7], [9, 8]], (1.0, 1.0, 0.0, 0.0)),
    ],
)
def test_answers_in_which_a_pattern_finds_nothing_are_the_same_only_where_their_texts_are(answers, items):
    class Scripted(Parrot):
        experiment_ids = ("only",)

        def generate(self, prompts, *, max_new_tokens):
            return [answers]

    exact_match = ExactMatch(max_new_tokens=4, max_rows=4, pattern=r"w9 (w\d)")
    records = exact_match.evaluate(Scripted(), rows_with(["w9 w5"] * 4), base=tiny.make_base(), split="eval")
    (same,) = [one for one in records if isinstance(one, Score) and one.metric == "same_answer"]
    assert same.items == items


def test_only_the_first_rows_are_asked_and_a_few_answers_are_kept():
    scorer = Parrot([5], [6])
    rows = rows_with(["w5"] * 9)
    scores, generations = evaluate(scorer, rows, max_rows=7)
    assert scorer.asked == [row.prompt_ids for row in rows[:7]]
    assert len(scores["first"].items) == 7
    assert len(generations) == 2 * NUM_KEPT


def test_rows_that_ask_nothing_are_left_out():
    """Plain text: no prompt at all, or no more of one than the tokenizer's BOS."""
    rows = rows_with(["w5", "w5", "w6", "w5"])
    rows[0] = replace(rows[0], prompt_ids=(), prompt_text="")
    rows[2] = replace(rows[2], prompt_ids=(2,), prompt_text="")
    scorer = Parrot([5], [6])
    scores, _ = evaluate(scorer, rows, max_rows=2)
    assert scorer.asked == [rows[1].prompt_ids, rows[3].prompt_ids]
    assert scores["first"].items == (1.0, 1.0)


def test_a_prompt_whose_words_the_tokenizer_does_not_know_asks_nothing():
    rows = [replace(tiny.make_rows(1)[0], prompt_ids=())]
    assert evaluate(Parrot([5], [6]), rows) == ({}, [])


def test_without_a_question_there_is_no_score():
    rows = [replace(row, prompt_ids=(), prompt_text="") for row in tiny.make_rows(3)]
    scorer = Parrot([5], [6])
    assert evaluate(scorer, rows) == ({}, [])
    assert scorer.asked is None


def test_answers_must_fit_the_models_positions():
    rows = [tiny.make_row([2] * 126, prompt_tokens=length) for length in (124, 125)]  # of 128 positions
    scorer = Parrot([5], [6])
    evaluate(scorer, rows, max_new_tokens=4)
    assert scorer.asked == [rows[0].prompt_ids]


@pytest.mark.parametrize("make_engine", tiny.ENGINES.values(), ids=tiny.ENGINES)
def test_an_engine_is_asked_up_to_its_last_position(make_engine):
    """GPT-2 has learned positions: one more would be out of its table."""
    base = tiny.make_base("gpt2")
    rows = [tiny.make_row([2] * 126, prompt_tokens=124), tiny.make_row([3] * 10, prompt_tokens=5)]
    with tiny.opened(make_engine(base, [tiny.make_arm(tiny.targets(base, "qv"), name="x")])) as engine:
        exact_match = ExactMatch(max_new_tokens=4, max_rows=2)
        records = list(exact_match.evaluate(engine, rows, base=base, split="eval"))
    assert len(records[0].items) == 2
