import math

import pytest
import torch
from torch.nn import functional as F

import tiny
from lorastudy.engine.arms import TokenScores
from lorastudy.evaluation import evaluator
from lorastudy.evaluation.evaluator import CompletionLoss, in_parts

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


def evaluate(scorer, rows, base=None):
    scores = list(CompletionLoss().evaluate(scorer, rows, base=base or tiny.make_base(), split="eval"))
    return {(score.experiment_id, score.metric): score for score in scores}


def test_values_by_hand_for_rows_of_several_lengths_in_their_own_order():
    rows = [
        tiny.make_row([9, 9, 9, 2, 4, 3], prompt_tokens=3),  # the longest comes first: scored last
        tiny.make_row([9, 8], prompt_tokens=1),
        tiny.make_row([9, 9, 5, 5], prompt_tokens=2),
    ]
    scores = evaluate(Oracle(), rows)
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
    expected = evaluate(Oracle(), rows)
    monkeypatch.setattr(evaluator, "MAX_SCORED_TOKENS", limit)
    assert evaluate(Oracle(), rows) == expected


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
        scores = evaluate(engine, rows, base)
    assert scores["x", "loss"].value == pytest.approx(expected, rel=1e-6)
    assert scores["x", "perplexity"].value == pytest.approx(math.exp(expected), rel=1e-5)
    assert scores["x", "token_accuracy"].value == pytest.approx(hits)


def test_a_hopeless_row_has_a_perplexity_that_is_still_a_number():
    class Hopeless(Oracle):
        def score(self, batch):
            nll = torch.full((2, batch.num_completion_tokens), 1e4)
            return TokenScores(nll_KM=nll, correct_KM=nll < 0)

    score = evaluate(Hopeless(), [tiny.make_row([2, 3], prompt_tokens=1)])["first", "perplexity"]
    assert math.isfinite(score.value)
    assert score.value > 1e307


def test_parts_hold_every_row_once_and_stay_within_the_limit(monkeypatch):
    monkeypatch.setattr(evaluator, "MAX_SCORED_TOKENS", 100)
    rows = tiny.make_rows(40)
    rows.append(tiny.make_row([2] * 90, prompt_tokens=1))  # larger than the limit for two arms: alone
    parts = list(in_parts(rows, num_arms=2))
    assert sorted(number for part in parts for number in part) == list(range(41))
    sizes = [2 * sum(len(rows[number].input_ids) for number in part) for part in parts]
    assert all(size <= 100 for size in sizes[:-1])
    assert parts[-1] == [40]
    assert list(in_parts([], num_arms=2)) == []
