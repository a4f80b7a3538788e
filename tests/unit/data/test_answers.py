"""Trivial predictors against arithmetic: labelled rows, of which the answers' frequencies are known."""

import math
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from scipy import stats

from lorastudy.data.answers import trivial_scores
from lorastudy.data.load import train_and_eval
from lorastudy.data.token_sets import token_sets
from lorastudy.data.tokenise import TokenRow
from lorastudy.protocol.records import EXACT_MATCH_VERSION, LOSS_VERSION
from lorastudy.suite.settings import Settings

VOCAB = 1000


def labelled(write, *, num_rows, seed, name):
    """Texts with one of three labels, half of them `good`; with the letters' tokenizer a label of n letters is n + 1 tokens."""
    draw = random.Random(seed)
    labels = draw.choices(["good", "bad", "so"], weights=[5, 3, 2], k=num_rows)
    rows = [{"prompt": f"text {seed} {n}: ", "completion": label} for n, label in enumerate(labels)]
    return write(name, rows), labels


def row(answer, *, prompt=(9,), reference="", text="asked"):
    return TokenRow(
        input_ids=(*prompt, *answer), labels=(*[-100] * len(prompt), *answer), prompt_ids=prompt, prompt_text=text,
        reference=reference or " ".join(map(str, answer)),
    )  # fmt: skip


def scores_of(train, held_out, *, vocab_size=VOCAB, num_positions=None, **settings):
    counted = SimpleNamespace(rows=train)
    sets = {"train": SimpleNamespace(counted=counted), "eval": SimpleNamespace(rows=held_out)}
    found = trivial_scores(sets, Settings(**settings), vocab_size=vocab_size, num_positions=num_positions)
    return {(score.predictor, score.metric): score for score in found}


@pytest.fixture
def of_400(write, letters):
    """The scores on 400 labelled rows after training on 400 others, with the labels of both."""
    train, train_labels = labelled(write, num_rows=400, seed=0, name="train.jsonl")
    held_out, labels = labelled(write, num_rows=400, seed=1, name="eval.jsonl")
    settings = Settings(dataset_path=train, eval_dataset_path=held_out, max_generation_samples=400)
    sets = token_sets(train_and_eval(settings), settings, tokenizer=letters(), reach=None)
    found = trivial_scores(sets, settings, vocab_size=VOCAB, num_positions=None)
    return {(score.predictor, score.metric): score for score in found}, train_labels, labels


def test_the_loss_of_label_frequencies_is_their_cross_entropy_over_the_tokens(of_400):
    scores, train_labels, labels = of_400
    loss = scores["frequencies", "loss"]
    seen = Counter(train_labels)
    assert sum(seen.values()) == 400
    # No label occurs once, so of 401 counts one is left for labels that training never has.
    nats = [-math.log(seen[label] / 401) for label in labels]
    num_tokens = [len(label) + 1 for label in labels]  # its letters and the end
    assert loss.value == pytest.approx(sum(nats) / sum(num_tokens), rel=1e-12)
    assert loss.items == pytest.approx([a / b for a, b in zip(nats, num_tokens, strict=True)], rel=1e-12)
    assert loss.weights == tuple(num_tokens)
    # Cross-entropy is entropy plus divergence; the shares of the training labels lack the 401st count.
    held_out = Counter(labels)
    shares = [[counts[label] / 400 for label in seen] for counts in (held_out, seen)]
    per_answer = stats.entropy(shares[0]) + stats.entropy(*shares) + math.log(401 / 400)
    assert loss.value * sum(num_tokens) / 400 == pytest.approx(per_answer, rel=1e-12)
    assert (loss.split, loss.unit, loss.version) == ("eval", "nats/token", LOSS_VERSION)


def test_the_constant_answer_is_the_most_frequent_label(of_400):
    scores, train_labels, labels = of_400
    assert Counter(train_labels).most_common(1)[0][0] == "good"
    match, accuracy = scores["constant", "exact_match"], scores["constant", "token_accuracy"]
    assert match.answer == "good"
    assert match.value == labels.count("good") / 400
    assert match.items == tuple(float(label == "good") for label in labels)
    assert (match.weights, match.version) == (None, EXACT_MATCH_VERSION)
    # `bad` + end against `good`: no letter in its place (o is not a, o not d, d not the end); `so` + end: the o alone.
    right = 5 * labels.count("good") + 1 * labels.count("so")
    assert accuracy.value == pytest.approx(right / sum(len(label) + 1 for label in labels))


def test_the_unigram_counts_tokens_wherever_they_stand():
    train = [row([5, 1]), row([5, 1]), row([6, 1])]
    scores = scores_of(train, [row([5, 1]), row([6, 7, 1])])
    # Tokens of training: 1 three times, 5 twice, 6 once; so 2 of 8 counts are left for the other 997 of 1000.
    first = -math.log(2 / 8) - math.log(3 / 8)
    second = -math.log(1 / 8) - math.log(2 / 8 / 997) - math.log(3 / 8)
    loss = scores["unigram", "loss"]
    assert loss.items == pytest.approx((first / 2, second / 3), rel=1e-12)
    assert loss.value == pytest.approx((first + second) / 5, rel=1e-12)


def test_an_answer_that_training_never_has_takes_its_part_of_what_is_left():
    train = [row([5, 1]), row([5, 1]), row([6, 1])]
    scores = scores_of(train, [row([5, 1]), row([6, 7, 1])])
    # Answers of training: one twice, one once; so 2 of 5 counts are left, and [6, 7, 1] has its part by the unigram.
    unseen = -math.log(2 / 5) - math.log(1 / 8) - math.log(2 / 8 / 997) - math.log(3 / 8)
    assert scores["frequencies", "loss"].items == pytest.approx((-math.log(2 / 5) / 2, unseen / 3), rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_probabilities_of_all_answers_of_a_length_come_to_no_more_than_one(seed):
    draw, vocab = random.Random(seed), range(4)
    train = [row([draw.choice((0, 0, 0, 1, 2)), draw.choice((0, 1, 1))]) for _ in range(9)]
    scores = scores_of(train, [row([a, b]) for a in vocab for b in vocab], vocab_size=4)
    for predictor in ("unigram", "frequencies"):
        total = sum(math.exp(-2 * item) for item in scores[predictor, "loss"].items)
        assert 0.5 < total <= 1 + 1e-12


def test_exact_match_goes_by_what_is_asked_and_by_what_the_pattern_finds():
    train = [row([5], reference=text) for text in ("so #### 4", "thus #### 4", "#### 5", "#### 5", "none")]
    train.append(row([6], reference="#### 5", text=""))  # plain text asks nothing
    held_out = [row([5], reference=text) for text in ("it is #### 4", "#### 5", "none")]
    scores = scores_of(train, held_out, max_generation_samples=9, exact_match_pattern="#### (.+)")
    assert scores["constant", "exact_match"].answer == "4"  # as often as 5, and first
    assert scores["constant", "exact_match"].items == (1.0, 0.0, 0.0)
    few = scores_of(train, held_out, max_generation_samples=2, exact_match_pattern="#### (.+)")
    assert few["constant", "exact_match"].items == (1.0, 0.0)
    assert ("constant", "exact_match") not in scores_of(train, held_out, max_generation_samples=0)
    # One position is the prompt's, 32 are the answer's: with 32 in all nothing can be asked.
    assert ("constant", "exact_match") not in scores_of(train, held_out, num_positions=32)
