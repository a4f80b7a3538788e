"""The report, the terminal and `recommend` say the same of any study: random studies through the doors that users take."""

import random
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest

from lorastudy.planning.recommendation import stored_evidence
from lorastudy.planning.recommendation_request import RecommendationRequest
from lorastudy.protocol.records import ArmProfile, Environment, TrivialScore
from lorastudy.recommend.decision import decide, harmed_arms
from lorastudy.recommend.recommendation import Candidate, recommend
from lorastudy.report import read_report
from lorastudy.report.findings.recommendation import because, recommendation, why
from lorastudy.store.views import ExperimentResult, ScoreValue, StatedQuestion, SuiteSummary
from lorastudy.suite.question import Margin, Question
from lorastudy.suite.settings import Settings

pytestmark = pytest.mark.long

ENVIRONMENT = Environment(
    python="1", torch="1", transformers="1", peft="1", bitsandbytes="1", lorastudy="1", device="cpu",
    device_name="a CPU", num_threads=1,
)  # fmt: skip
TUNING_SEED = 100
BASE_LOSS = 2.0


@cache
def settings(rank, rate):
    return Settings(lora_rank=rank, lora_alpha="2r", learning_rate=rate).model_dump(mode="json")


def random_study(draw):
    """(results, question): ranks or arms of one's own, some tuned, some with runs that were lost, diverged or harmful."""
    kind = draw.choice(["rank_ablation", "rank_ablation", "own"])
    ranks, num_seeds = (1, 4, 16, 64)[: draw.randint(2, 4)], draw.choice([3, 6, 8])
    effect, noise = draw.choice([0.0, 0.05, 0.5]), draw.choice([0.01, 0.1])
    is_tuned = draw.random() < 0.7
    results, shared = [], [draw.gauss(0, noise) for _ in range(num_seeds)]
    for position, rank in enumerate(ranks):
        mean = 1.0 + effect * draw.choice([-1, 0, 1, 2]) * position + (1.5 if draw.random() < 0.1 else 0)
        for seed in range(num_seeds):
            loss = mean + shared[seed] + draw.gauss(0, noise)
            results.append(run(kind, rank, 2e-4, seed, loss, fate=draw.random()))
        if is_tuned:
            results += [
                run(kind, rank, 2e-4 * factor, TUNING_SEED, mean + worse)
                for factor, worse in ((1 / 3, 1), (1, 0), (3, 1))
            ]
    named = draw.choice([None, None, f"r{draw.choice(ranks)}"])
    margin = draw.choice([None, Margin(amount=0.1), Margin(amount=0.1, is_share=True)])
    seeds = (TUNING_SEED,) if is_tuned else ()
    guessed = draw.choice([None, None, None, 0.9, 1.05, 3.0])
    results = [replace(result, trivial=() if guessed is None else guess(guessed)) for result in results]
    return results, Question(margin=margin, reference=named, tuning_seeds=seeds)


def guess(loss):
    """What guessing scores."""
    return (
        TrivialScore(predictor="unigram", split="eval", metric="loss", version=1, unit="nats", value=loss),
    )


def run(kind, rank, rate, seed, loss, *, fate=1.0):
    """One run. A fate below .05 is a diverged one, one below .1 a lost one."""
    arm = f"r{rank}" if rate == 2e-4 else f"r{rank}_lr{rate:g}"
    failure = "diverged" if fate < 0.05 else "out_of_memory" if fate < 0.1 else None
    scores = {("eval", "loss"): loss, ("eval_before", "loss"): BASE_LOSS}
    profile = ArmProfile(
        experiment_id="e", num_trainable_parameters=rank, num_total_parameters=rank, adapter_bytes=1,
        memory_kind="cpu_tensors", peak_memory_bytes=(100 - rank), step_seconds=None, tokens_per_second=None,
    )  # fmt: skip
    return ExperimentResult(
        experiment_id=f"{arm}/{seed}", suite_name="suite", name=f"{arm}_{seed}", arm=arm, experiment_type=kind, seed=seed,
        settings=settings(rank, rate), status="failed" if failure else "completed", failure_kind=failure,
        sources={"base_model": "base", "dataset": "data"}, environment=ENVIRONMENT, profile=profile,
        scores={} if failure else {
            key: ScoreValue(value=value, unit="nats", version=1, num_items=9) for key, value in scores.items()
        },
    )  # fmt: skip


class CandidateFinder:
    """CandidateFinder for which a rank takes 100 bytes."""

    def fitting(self, settings, *, departures=()):
        return Candidate(
            settings=settings, peak_bytes=100 * settings.lora_rank, terms_bytes={}, num_trainable_parameters=1,
            departures=departures,
        )  # fmt: skip


def both(results, question, monkeypatch, *, budget_bytes=10_000):
    """What the report's analysis is, and what is recommended."""
    stated = StatedQuestion(question=question, stated_at="2026-01-02T12:00:00+00:00", num_completed=0)
    suite = SuiteSummary(
        suite_name="suite", description="", created_at="", num_experiments=9, questions=(stated,)
    )
    tracker = SimpleNamespace(
        get_all_experiments=lambda suite_name=None: results,
        get_suites=lambda: [suite],
        get_all_items=lambda ids, *, split, metric: {},
        get_imported=lambda suite_name=None: [],
        get_designs=dict,
        get_decisions=lambda suite_name: (),
    )
    monkeypatch.setattr(RecommendationRequest, "base_fingerprint", "base")
    asked = RecommendationRequest(
        base=Settings(), has_data=False, budget_bytes=budget_bytes, suite_name="suite"
    )
    evidence = list(stored_evidence(tracker, CandidateFinder(), request=asked))
    (studied,) = read_report(tracker).studies
    return studied.analysis, recommend(evidence, [], budget_bytes=budget_bytes)


def shown_behind(analysis):
    return {c.arm for c in analysis.primary_comparisons if c.reference_is_ahead and not c.no_worse} | {
        c.reference for c in analysis.primary_comparisons if c.arm_is_ahead
    }


def check(results, question, monkeypatch, *, with_less_memory=True):
    """The laws of one study; returns the reason, so that a test sees that all of them came up."""
    analysis, recommended = both(results, question, monkeypatch)
    decision = decide(analysis)
    if recommended is None:
        assert decision.arm is None or decision.status == "not decided"
    else:
        assert recommended.decision == decision
        assert recommended.name == decision.arm
        assert recommended.is_recommended == decision.is_recommended
        assert why(analysis, decision) in " ".join(because(recommended))
    advice = recommendation(analysis)
    assert advice.arm == (decision.arm if decision.is_recommended else None)
    if decision.arm is not None:
        assert decision.arm in advice.answer
        assert decision.arm not in shown_behind(analysis)
        assert decision.arm not in harmed_arms(analysis)
        assert decision.arm not in analysis.no_better_than_guessing
        divergence = analysis.divergence(decision.arm)
        assert divergence is None or divergence.rate in advice.answer
    if not with_less_memory:
        return decision.reason
    budget = 100 * random.Random(len(results)).choice([1, 4, 16])
    _, tight = both(results, question, monkeypatch, budget_bytes=budget)
    if tight is not None:
        assert tight.candidate.peak_bytes <= budget
        assert tight.runner_up is None or tight.runner_up.candidate.peak_bytes <= budget
        assert tight.decision.arm not in shown_behind(tight.analysis)
    return decision.reason


def test_report_and_recommend_name_the_same_arm_in_200_random_studies(monkeypatch):
    reasons = {
        check(*random_study(random.Random(seed)), monkeypatch, with_less_memory=seed % 4 == 0)
        for seed in range(200)
    }
    assert reasons >= {
        "better than the reference", "as good as the reference", "reference better than every other", "best",
        "reference meanwhile", "harm", "as good as the best", "no better than guessing",
    }  # fmt: skip


@pytest.mark.slow
def test_and_in_2000(monkeypatch):
    for seed in range(1000, 3000):
        check(*random_study(random.Random(seed)), monkeypatch)


def test_equal_results_give_equal_words(monkeypatch):
    """Whatever the order in which the store lists them, and whenever they were run."""
    results, question = random_study(random.Random(4))
    one, other = (both(stored, question, monkeypatch)[1] for stored in (results, results[::-1]))
    assert because(one) == because(other)
    again = [replace(result, started_at="2026-01-02T12:00:00+00:00") for result in results]
    assert because(both(again, question, monkeypatch)[1]) == because(one)
