"""Held-out loss and exact match: against the model's own forward, by hand, and on generated answers."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import tiny
from lorastudy.data.answers import is_match
from lorastudy.engine.arms import TokenScores
from lorastudy.evaluation import evaluator
from lorastudy.evaluation.evaluator import CompletionLoss, ExactMatch, in_parts
from lorastudy.protocol.records import Generation, Score

pytestmark = pytest.mark.usefixtures("one_thread")


class Oracle:
    """A scorer whose answers are known: arm k gives token t the probability 1 / (t + k), and is right on even t."""

    experiment_ids = ("first", "second")

    def score(self, batch):
        targets = batch.targets_M.double()
        return TokenScores(
            nll_KM=torch.stack([targets, targets + 1]).log().float(),
            correct_KM=torch.stack([batch.targets_M % 2 == 0, torch.ones_like(targets, dtype=torch.bool)]),
        )

    def generate(self, prompts, *, max_new_tokens):
        raise AssertionError("not asked to generate")


def evaluate_loss(scorer, rows, base=None):
    scores = list(CompletionLoss().evaluate(scorer, rows, base=base or tiny.make_base(), split="eval"))
    return {(score.experiment_id, score.metric): score for score in scores}


def test_values_by_hand_for_rows_of_several_lengths_in_their_own_order():
    rows = [
        tiny.make_row([9, 9, 9, 2, 4, 3], prompt_tokens=3),  # the longest comes first: scored last
        tiny.make_row([9, 8], prompt_tokens=1),
        tiny.make_row([9, 9, 5, 5], prompt_tokens=2),
    ]
    scores = evaluate_loss(Oracle(), rows)
    assert len(scores) == 6
    loss = scores["first", "loss"]
    # -log p of 2, 4, 3 is log 24 over three tokens; of 8, log 8 over one; of 5, 5, log 25 over two.
    assert loss.items == pytest.approx((math.log(24) / 3, math.log(8), math.log(25) / 2), rel=1e-6)
    assert loss.weights == (3, 1, 2)
    assert loss.value == pytest.approx(math.log(24 * 8 * 25) / 6, rel=1e-6)
    assert loss.value == pytest.approx(
        sum(item * weight for item, weight in zip(loss.items, loss.weights, strict=True)) / 6
    )
    perplexity = scores["first", "perplexity"]
    assert perplexity.items == pytest.approx((24 ** (1 / 3), 8, 5), rel=1e-6)
    assert perplexity.value == pytest.approx(4800 ** (1 / 6), rel=1e-6)
    accuracy = scores["first", "token_accuracy"]
    assert accuracy.items == pytest.approx((2 / 3, 1, 0))
    assert accuracy.value == pytest.approx(3 / 6)
    second = scores["second", "loss"]
    assert second.items == pytest.approx((math.log(3 * 5 * 4) / 3, math.log(9), math.log(36) / 2), rel=1e-6)
    assert scores["second", "token_accuracy"].items == (1, 1, 1)
    assert (loss.unit, perplexity.unit, accuracy.unit) == ("nats/token", "", "")
    assert {score.split for score in scores.values()} == {"eval"}


@pytest.mark.parametrize("limit", [1, 30, 1 << 14])
def test_the_size_of_a_part_changes_nothing(monkeypatch, limit):
    rows = tiny.make_rows(9)
    expected = evaluate_loss(Oracle(), rows)
    monkeypatch.setitem(evaluator.MAX_SCORED_TOKENS, "cpu", limit)
    assert evaluate_loss(Oracle(), rows) == expected


@pytest.mark.parametrize("make_engine", tiny.ENGINES.values(), ids=tiny.ENGINES)
def test_a_models_loss_is_cross_entropy_over_all_rows_at_once(make_engine):
    base, rows = tiny.make_base(), tiny.make_rows(7, seed=6)
    logits, labels = [], []
    with torch.no_grad():
        for row in rows:
            logits.append(base.model(torch.tensor([row.input_ids])).logits[0, :-1])
            labels.append(torch.tensor(row.labels[1:]))
    logits, labels = torch.cat(logits), torch.cat(labels)
    expected = F.cross_entropy(logits, labels).item()  # mean over labels that are not -100
    hits = (logits.argmax(-1) == labels)[labels != -100].float().mean().item()
    with tiny.opened(make_engine(base, [tiny.make_arm(tiny.targets(base, "all"), name="x")])) as engine:
        scores = evaluate_loss(engine, rows, base)
    assert scores["x", "loss"].value == pytest.approx(expected, rel=1e-6)
    assert scores["x", "perplexity"].value == pytest.approx(math.exp(expected), rel=1e-5)
    assert scores["x", "token_accuracy"].value == pytest.approx(hits)


def test_a_hopeless_row_has_a_perplexity_that_is_still_a_number():
    class Hopeless(Oracle):
        def score(self, batch):
            nll = torch.full((2, batch.num_completion_tokens), 1e4)
            return TokenScores(nll_KM=nll, correct_KM=nll < 0)

    score = evaluate_loss(Hopeless(), [tiny.make_row([2, 3], prompt_tokens=1)])["first", "perplexity"]
    assert math.isfinite(score.value)
    assert score.value > 1e307


def test_parts_hold_every_row_once_and_stay_within_the_limit():
    rows = tiny.make_rows(40)
    rows.append(tiny.make_row([2] * 90, prompt_tokens=1))  # larger than the limit for two arms: alone
    parts = list(in_parts(rows, num_arms=2, max_tokens=100))
    assert sorted(number for part in parts for number in part) == list(range(41))
    sizes = [2 * sum(len(rows[number].input_ids) for number in part) for part in parts]
    assert all(size <= 100 for size in sizes[:-1])
    assert parts[-1] == [40]
    assert list(in_parts([], num_arms=2, max_tokens=100)) == []


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


def evaluate_match(scorer, rows, **options):
    options = {"max_new_tokens": 4, "max_rows": 10} | options
    records = list(ExactMatch(**options).evaluate(scorer, rows, base=tiny.make_base(), split="eval"))
    scores = [record for record in records if isinstance(record, Score) and record.metric == "exact_match"]
    return {score.experiment_id: score for score in scores}, [r for r in records if isinstance(r, Generation)]


def test_each_arm_has_a_hit_or_miss_for_every_row():
    rows = rows_with(["w5 w6", "w7", " w5  w6 ", "w5"])
    scores, generations = evaluate_match(Parrot([5, 6], [7]), rows)
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


def test_only_the_first_rows_are_asked_and_a_limited_number_of_answers_is_kept(monkeypatch):
    monkeypatch.setattr(evaluator, "NUM_KEPT", 5)
    scorer = Parrot([5], [6])
    rows = rows_with(["w5"] * 9)
    scores, generations = evaluate_match(scorer, rows, max_rows=7)
    assert scorer.asked == [row.prompt_ids for row in rows[:7]]
    assert len(scores["first"].items) == 7
    assert [(one.split, one.row) for one in generations] == 2 * [("eval", row) for row in range(5)]


def test_rows_that_ask_nothing_are_left_out():
    """Plain text: no prompt at all, or no more of one than the tokenizer's BOS."""
    rows = rows_with(["w5", "w5", "w6", "w5"])
    rows[0] = replace(rows[0], prompt_ids=(), prompt_text="")
    rows[2] = replace(rows[2], prompt_ids=(2,), prompt_text="")
    scorer = Parrot([5], [6])
    scores, generations = evaluate_match(scorer, rows, max_rows=2)
    assert scorer.asked == [rows[1].prompt_ids, rows[3].prompt_ids]
    assert [one.row for one in generations] == [1, 3, 1, 3]  # places among all scored rows
    assert scores["first"].items == (1.0, 1.0)


def test_a_prompt_whose_words_the_tokenizer_does_not_know_asks_nothing():
    rows = [replace(tiny.make_rows(1)[0], prompt_ids=())]
    assert evaluate_match(Parrot([5], [6]), rows) == ({}, [])


def test_without_a_question_there_is_no_score():
    rows = [replace(row, prompt_ids=(), prompt_text="") for row in tiny.make_rows(3)]
    scorer = Parrot([5], [6])
    assert evaluate_match(scorer, rows) == ({}, [])
    assert scorer.asked is None


def test_answers_must_fit_the_models_positions():
    rows = [tiny.make_row([2] * 126, prompt_tokens=length) for length in (124, 125)]  # of 128 positions
    scorer = Parrot([5], [6])
    evaluate_match(scorer, rows, max_new_tokens=4)
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
