"""An arm that does not beat guessing is not recommended, whatever the verdicts say, and the reason is said."""

from dataclasses import replace

import numpy as np
import pytest

import labelled
from labelled import learnt, same_word, sharper
from lorastudy.analysis.overview import stored_items
from lorastudy.lint.case import measured_case
from lorastudy.lint.lint import lint
from lorastudy.recommend.decision import decide
from lorastudy.recommend.recommendation import Candidate, Evidence, recommend
from lorastudy.report import read_report
from lorastudy.report.document import Paragraph, plain, unfolded
from lorastudy.report.findings.recommendation import recommendation, why
from lorastudy.report.sections.front import front_page
from lorastudy.report.sections.results import comparison_blocks
from lorastudy.stats.summary import LOSS
from lorastudy.stats.trivial import AgainstTrivial
from lorastudy.stats.twoway import two_way
from lorastudy.store.views import StatedQuestion
from lorastudy.suite.question import Margin, Question
from lorastudy.suite.settings import Settings

#: A tenth of what the reference gained over a base model that never saw the format: nearly a nat.
TENTH = Question(tuning_seeds=(labelled.TUNING_SEED,), margin=Margin(amount=0.1, is_share=True))
PLAIN = replace(TENTH, margin=None)


def stated(question):
    return StatedQuestion(question=question, stated_at="2026-01-02T12:00:00+00:00", num_completed=0)


def analysis_of(arms, *, question=TENTH, **changes):
    results, items = labelled.results_of(arms, **changes)
    (studied,) = read_report(labelled.tracker_of(results, items, question=question)).studies
    return studied.analysis


def test_arms_that_say_the_same_word_to_every_row_are_not_recommended_and_the_reason_is_said():
    """Both arms have about 0.7 nats; frequencies have 0.52, and one of the two is as good as the other within a nat."""
    analysis = analysis_of({1: same_word, 4: sharper})
    means = {one.arm: one.arm_score for one in analysis.trivial}
    assert means == {"r=1": pytest.approx(0.73, abs=0.02), "r=4": pytest.approx(0.64, abs=0.02)}
    decision = decide(analysis)
    assert (decision.status, decision.reason, decision.arm) == ("none", "no better than guessing", None)
    assert decision.no_better_than_guessing == ("r=1", "r=4")
    advice = recommendation(analysis)
    assert advice.arm is None
    frequencies = min(one.score for one in analysis.trivial)
    assert frequencies == pytest.approx(0.52, abs=0.01)
    assert advice.answer == (
        f"None: no arm is shown to beat answer frequencies, which need no model ({frequencies:.3g} nats per token; r=4 has {means['r=4']:.3g}), "
        "so nothing is shown to be learnt from the prompts."
    )


def test_the_page_says_why_a_share_of_that_gain_is_no_margin():
    analysis = analysis_of({1: same_word, 4: sharper})
    page = front_page(analysis, statements=(stated(TENTH),))
    (r4,) = {one.arm_score for one in analysis.trivial if one.arm == "r=4"}
    frequencies = min(one.score for one in analysis.trivial)
    reason = f"r=4 has {r4:.3g} nats per token and gained nothing over answer frequencies ({frequencies:.3g})"
    assert f"with a margin of 10 % of the reference's gain that cannot be used: {reason}." in page.question
    rule = " ".join(
        plain(block.text)
        for block in unfolded(comparison_blocks(analysis, level=2))
        if isinstance(block, Paragraph)
    )
    assert f"The suite's margin is a share of the gain, and {reason}; so no arm can be called as good" in rule


def test_as_good_is_tested_by_the_share_of_the_gain_over_guessing():
    """By hand: the arm's loss less nine tenths of the reference's and one tenth of the frequencies', by seed and row."""
    analysis = analysis_of({1: learnt, 4: learnt})
    frequencies = next(score for score in labelled.TRIVIAL if score.predictor == "frequencies")
    arm, reference = (
        np.array([analysis.items[f"{name}/{seed}", "eval", "loss"].values for seed in range(6)])
        for name in ("r1", "r4")
    )
    expected = two_way(arm - 0.9 * reference - 0.1 * np.array(frequencies.items), np.full(400, 2.0))
    (comparison,) = analysis.primary_comparisons
    assert comparison.no_worse_p == pytest.approx(float(expected.p_below(0.0)), rel=1e-9)
    assert comparison.margin == pytest.approx(0.1 * (frequencies.value - reference.mean()), rel=1e-9)
    assert analysis.criterion.gain_over == "answer frequencies"


def test_the_same_arms_would_be_recommended_if_nobody_had_guessed():
    decision = decide(analysis_of({1: same_word, 4: sharper}, question=PLAIN, trivial=()))
    assert (decision.status, decision.arm) == ("decided", "r=4")


def test_an_arm_that_learnt_is_recommended_beside_one_that_did_not():
    analysis = analysis_of({1: same_word, 4: learnt}, question=PLAIN)
    decision = decide(analysis)
    assert (decision.status, decision.arm) == ("decided", "r=4")
    assert decision.no_better_than_guessing == ("r=1",)


def test_a_reference_that_learnt_nothing_is_not_named_to_be_used_meanwhile():
    """r=1 guesses as the reference does, so that nothing is decided between the two."""
    analysis = analysis_of({1: same_word, 2: learnt, 4: same_word}, question=PLAIN)
    assert decide(analysis).arm == "r=2"  # better than the reference
    without = analysis_of({1: same_word, 4: same_word}, question=PLAIN)
    assert decide(without).arm is None


def test_recommend_says_the_same():
    results, items = labelled.results_of({1: same_word, 4: sharper})
    tracker = labelled.tracker_of(results, items, question=TENTH)
    (studied,) = read_report(tracker).studies
    study, criterion = studied.analysis.study, studied.analysis.criterion
    candidates = {
        arm.name: Candidate(
            settings=arm.typed_settings, peak_bytes=1, terms_bytes={}, num_trainable_parameters=1
        )
        for arm in study.arms
    }
    evidence = Evidence(
        study=study, held_out="400 rows", candidates=candidates, criterion=criterion,
        items=stored_items(tracker, study, metrics=criterion.metrics_by_item),
    )  # fmt: skip
    published = Candidate(settings=Settings(), peak_bytes=1, terms_bytes={}, num_trainable_parameters=1)
    found = recommend([evidence], [published], budget_bytes=10)
    assert found.grade == "literature only"
    assert found.left_out == ("labels: r=1 and r=4: not shown to beat guessing without a model",)


def limits_of(arms, **options):
    analysis = analysis_of(arms, **options)
    return analysis, [plain(limit) for limit in front_page(analysis).limits]


def test_the_first_page_names_what_was_not_learnt():
    """What a new user once met: the same word to every row, and a loss above that of the labels' frequencies."""
    analysis, limits = limits_of({1: same_word, 4: sharper})
    frequencies, r4 = (
        min(values) for values in zip(*((one.score, one.arm_score) for one in analysis.trivial), strict=True)
    )
    (guessing,) = [line for line in limits if "LS307" in line]
    assert guessing == (
        f"No better than guessing (LS307, r=1, r=4): answer frequencies have held-out loss {frequencies:.3g} nats per token "
        f"without a model; of these arms the best, r=4, has {r4:.3g} and is not shown to be better."
    )
    (alike,) = [line for line in limits if "LS308" in line]
    assert alike.endswith(
        "every seed gives the same answer to all 400 rows of exact match, whose reference answers differ."
    )


def test_the_finding_and_the_recommendation_name_the_same_arm_and_predictor():
    """Guessing scores otherwise on the seeds that r=4 has, and only r=1 has one of the answers' tokens."""
    of_r1, of_r4 = (
        AgainstTrivial(
            arm=arm, predictor="frequencies", metric=LOSS, score=score, arm_score=arm_score, interval=None
        )
        for arm, score, arm_score in (("r=1", 0.5, 0.6), ("r=4", 0.55, 0.56))
    )
    rows = (of_r1, replace(of_r1, predictor="unigram", score=0.45), of_r4)
    analysis = replace(analysis_of({1: same_word, 4: sharper}), trivial=rows)
    assert "answer frequencies, which need no model (0.55 nats per token; r=4 has 0.56)" in why(
        analysis, decide(analysis)
    )
    (finding,) = [one for one in lint(measured_case(analysis.study, trivial=rows)) if one.code == "LS307"]
    assert finding.found == (
        "answer frequencies have held-out loss 0.55 nats per token without a model; of these arms the best, r=4, has 0.56 and is "
        "not shown to be better"
    )


def test_arms_that_learnt_have_neither_finding():
    _, limits = limits_of({1: learnt, 4: learnt})
    assert not [line for line in limits if any(code in line for code in ("LS307", "LS308", "LS309", "LS404"))]


def test_equal_scores_have_no_edge_and_no_verdict():
    """Exact match is the share of `good` for both arms, every seed and every rate that was tried."""
    question = replace(PLAIN, primary_metric="exact_match")
    results, items = labelled.results_of({1: same_word, 4: sharper}, trivial=())
    share = labelled.HELD_OUT.count(0) / 400
    key = ("eval", "exact_match")
    alike = [
        replace(one, scores={**one.scores, key: replace(one.scores[key], value=share)}) for one in results
    ]
    (studied,) = read_report(labelled.tracker_of(alike, items, question=question)).studies
    analysis = studied.analysis
    (found,) = [finding for finding in analysis.lint if finding.code == "LS309"]
    assert found.found == f"exact match is {share:.4g} for every arm and seed"
    assert not [finding for finding in analysis.lint if finding.code == "LS102"]
    (comparison,) = analysis.primary_comparisons
    assert (comparison.verdict, comparison.reason) == ("cannot tell", "every seed gave the same difference")
    assert decide(analysis).status == "not decided"


def test_a_margin_above_the_references_own_loss_is_a_finding_where_it_is_a_share_too():
    """A tenth of ten nats, where nobody guessed; and a whole nat, which is worth more than a note."""
    analysis, _ = limits_of({1: same_word, 4: learnt}, trivial=())
    (found,) = [finding for finding in analysis.lint if finding.code == "LS404"]
    assert (found.severity, found.arms) == ("note", ("r=1",))
    assert found.found.startswith("a margin of 1 nats per token, and r=4 has a loss of 0.2")
    _, limits = limits_of({1: same_word, 4: learnt}, question=replace(TENTH, margin=Margin(amount=1.0)))
    assert any("LS404" in line for line in limits)


def test_a_reference_within_the_noise_of_guessing_is_not_named_though_nothing_is_decided():
    """The reference is right or wrong by the seed; the other arm beats guessing and cannot be told from it."""

    def steady(label, seed, draw):
        return 0.6 + 0.05 * draw.random(), label

    def by_luck(label, seed, draw):
        return (0.95 if seed % 2 else 0.1) + 0.05 * draw.random(), label

    analysis = analysis_of({1: steady, 4: by_luck}, question=PLAIN)
    (comparison,) = analysis.primary_comparisons
    assert comparison.verdict == "cannot tell"
    assert analysis.no_better_than_guessing == ("r=4",)
    assert decide(analysis).arm is None
    score = next(one.arm_score for one in analysis.trivial if one.arm == "r=4")
    assert recommendation(analysis).answer == (
        f"None: r=4 is not shown to beat answer frequencies, which need no model (0.515 nats per token; r=4 has {score:.3g}), "
        "and no other arm is shown to be the one to take."
    )
