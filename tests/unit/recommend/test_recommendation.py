"""What is recommended: the grade, the arm that verdicts allow, what is open, and never what does not fit."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lorastudy.analysis.overview import Criterion
from lorastudy.recommend.recommendation import Candidate, Evidence, recommend
from lorastudy.report.findings.recommendation import because
from lorastudy.report.findings.wording import more_seeds
from lorastudy.stats.comparison import MoreSeeds
from lorastudy.stats.study import Invalidation
from lorastudy.suite.settings import Settings

NOISE = [0.001, -0.002, 0.003, -0.001, 0.002, -0.003]
MARGIN = 0.05


def candidate(peak=100, **options):
    settings = Settings(**options.pop("settings", {}))
    values = {"terms_bytes": {"base_weights": peak}, "num_trainable_parameters": 10}
    return Candidate(settings=settings, peak_bytes=peak, **(values | options))


def losses(mean):
    """The same noise for all, and a little of each arm's own that depends on its mean."""
    return [mean + noise * (1 + mean) for noise in NOISE]


def candidates_of(study, **options):
    """One for each arm, at whatever rate, of 100 bytes a rank."""
    return {arm.name: candidate(100 * arm.settings["lora_rank"], **options) for arm in study.arms}


@pytest.fixture
def ranks(make_rank_study):
    """Rank 4 is as good as 16 within the margin, rank 1 is worse; peaks are 100 bytes a rank."""

    def evidence(tuned=True, changes=None, **options):
        study = make_rank_study({1: losses(2.0), 4: losses(1.01), 16: losses(1.0)}, tuned=tuned)
        candidates = candidates_of(study, **(changes or {}))
        values = {"held_out": "rows.jsonl", "candidates": candidates, "criterion": Criterion(margin=MARGIN)}
        return Evidence(study=study, **(values | options))

    return evidence


def test_the_smallest_rank_that_is_as_good_is_taken_as_measured_here(ranks):
    answer = recommend([ranks()], [candidate()], budget_bytes=10_000)
    assert (answer.grade, answer.name) == ("measured here", "r4")
    assert answer.runner_up.name == "r16"
    assert "smallest rank" in because(answer)[0]
    assert answer.is_recommended


def test_the_expectation_is_the_prediction_interval_of_one_more_seed(ranks):
    """mean ± t(.975, 5) * sd * sqrt(7/6); scipy.stats.t.ppf(.975, 5) is 2.570582, sd of NOISE 0.00236643."""
    expected = recommend([ranks()], [], budget_bytes=10_000).expectation
    assert expected.mean == pytest.approx(1.01)
    half = 2.570582 * 0.00236643 * 2.01 * (7 / 6) ** 0.5
    assert expected.interval == pytest.approx((1.01 - half, 1.01 + half), rel=1e-5)
    assert (expected.num_seeds, expected.held_out) == (6, "rows.jsonl")


def test_without_a_margin_the_reference_stays_and_the_answer_says_why(ranks):
    answer = recommend([ranks(criterion=Criterion())], [], budget_bytes=10_000)
    assert answer.name == "r16"
    assert "no margin was set, so no smaller rank can be shown to be as good" in answer.open
    assert answer.is_recommended  # rank 16 is better than both


def test_what_cannot_be_told_names_the_seeds_that_would_decide(make_rank_study):
    apart = [1.1, 0.9, 1.05, 1.02]
    study = make_rank_study({4: apart, 16: [1.0, 1.0, 1.01, 0.97]})
    evidence = Evidence(
        study=study,
        held_out="rows.jsonl",
        candidates=candidates_of(study),
        criterion=Criterion(margin=MARGIN),
    )
    answer = recommend([evidence], [], budget_bytes=10_000)
    assert answer.name == "r16"
    (told,) = answer.open
    assert told.startswith("r4 against r16: cannot tell (needs about ")
    assert told.endswith(" more seeds)")
    assert answer.decision.status == "not decided"
    assert not answer.is_recommended  # named for want of a reason for another, and so to start with


def test_what_is_lacking_is_said_alike_everywhere_and_items_are_those_of_all():
    more = MoreSeeds(num_seeds=790, at_least=False, seconds=720.0, num_items=78)
    assert str(more) == "about 790 more seeds, and 78 held-out items in all"
    assert more_seeds(more) == f"{more}: 12.0 min"
    assert str(MoreSeeds(num_seeds=1, at_least=True, seconds=None)) == "at least 1 more seed"


def test_an_arm_that_does_not_fit_is_no_reference_either(ranks):
    answer = recommend([ranks()], [candidate()], budget_bytes=400)
    assert (answer.grade, answer.name) == ("measured here", "r4")
    assert answer.runner_up.name == "r1"
    assert answer.runner_up.standing.endswith("; r4 is better")


def test_blocked_verdicts_count_for_nothing(ranks):
    blocked = {"r16": [Invalidation(code="LS000", why="the rows differ")]}
    answer = recommend(
        [ranks(criterion=Criterion(margin=MARGIN, invalidations=blocked))], [candidate()], budget_bytes=10_000
    )
    assert answer.grade == "literature only"
    assert "the rows differ" in answer.left_out[0]


def test_other_data_make_it_interpolated_and_say_so(ranks):
    answer = recommend([ranks(departures=("the data were other.jsonl",))], [], budget_bytes=10_000)
    assert answer.grade == "interpolated from here"
    assert because(answer)[1] == "not measured for this question: the data were other.jsonl"


def test_a_changed_configuration_makes_it_interpolated(ranks):
    answer = recommend([ranks(changes={"departures": ("in 4 bits",)})], [], budget_bytes=10_000)
    assert answer.grade == "interpolated from here"


def test_an_untuned_study_names_what_was_ahead_by_a_lower_grade_and_calls_nothing_best(ranks):
    answer = recommend([ranks(tuned=False)], [candidate()], budget_bytes=10_000)
    assert (answer.grade, answer.name, answer.is_recommended) == ("measured here, untuned", "r4", False)
    assert because(answer)[0] == (
        "at the one learning rate that was tried (0.0002) it is the smallest rank shown to be as good as r16 within the margin of "
        "0.05 nats per token"
    )
    assert because(answer)[1].startswith("not called best: no arm had its learning rate tuned")
    said = " ".join([*because(answer), answer.runner_up.standing])
    assert "better" not in said
    assert "best" not in said.replace("not called best", "")
    assert answer.expectation.mean == pytest.approx(1.01)


def test_without_a_margin_the_untuned_reference_was_ahead_and_is_not_better(ranks):
    answer = recommend([ranks(tuned=False, criterion=Criterion())], [], budget_bytes=10_000)
    assert answer.name == "r16"
    assert because(answer)[0].startswith(
        "at the one learning rate that was tried (0.0002) it is shown to be ahead of every other arm; r4 comes nearest"
    )
    assert (
        answer.runner_up.standing.endswith("; cannot tell") or "ahead, untuned" in answer.runner_up.standing
    )


def test_a_tuned_study_of_the_same_is_asked_before_an_untuned_one_and_another_of_other_data_is_not(ranks):
    untuned, tuned = ranks(tuned=False, held_out="untuned"), ranks(held_out="tuned")
    assert recommend([untuned, tuned], [], budget_bytes=10_000).expectation.held_out == "tuned"
    elsewhere = ranks(held_out="elsewhere", departures=("the data were others",))
    answer = recommend([elsewhere, untuned], [], budget_bytes=10_000)
    assert (answer.grade, answer.expectation.held_out) == ("measured here, untuned", "untuned")


def test_what_was_measured_comes_before_what_is_near(ranks):
    near, measured = ranks(departures=("other data",), held_out="other"), ranks()
    assert recommend([near, measured], [], budget_bytes=10_000).expectation.held_out == "rows.jsonl"


def test_without_evidence_published_rules_answer_in_their_order():
    first, second = candidate(200, settings={"lora_rank": 16}), candidate(100, settings={"lora_rank": 8})
    answer = recommend([], [first, second], budget_bytes=1000)
    assert (answer.grade, answer.candidate, answer.runner_up.candidate) == ("literature only", first, second)
    assert answer.expectation is None


def test_one_seed_gives_no_verdict_and_so_no_evidence(make_rank_study):
    study = make_rank_study({4: [1.0], 16: [1.0]})
    one = Evidence(study=study, held_out="rows", candidates=candidates_of(study))
    answer = recommend([one], [candidate()], budget_bytes=10_000)
    assert answer.grade == "literature only"
    assert answer.left_out == ("suite: no verdict stands (one seed)",)


def test_time_that_is_known_has_to_suffice_and_unknown_time_excludes_nothing():
    slow, unknown = candidate(train_seconds=7200.0), candidate(50)
    assert recommend([], [slow], budget_bytes=1000, max_seconds=3600) is None
    assert recommend([], [slow, unknown], budget_bytes=1000, max_seconds=3600).candidate is unknown


def test_nothing_that_fits_is_no_recommendation(ranks):
    assert recommend([ranks()], [candidate(200)], budget_bytes=50) is None


def test_nothing_is_ever_named_that_does_not_fit(make_rank_study):
    study = make_rank_study({1: losses(2.0), 4: losses(1.01), 16: losses(1.0)})
    one = Evidence(
        study=study, held_out="rows", candidates=candidates_of(study), criterion=Criterion(margin=MARGIN)
    )

    @given(budget=st.integers(0, 3000), published=st.lists(st.integers(1, 3000), max_size=4))
    @hypothesis_settings(deadline=None)
    def never_unfit(budget, published):
        answer = recommend([one], [candidate(peak) for peak in published], budget_bytes=budget)
        if answer is None:
            assert budget < 400
            assert not any(peak <= budget for peak in published)
            return
        assert answer.candidate.peak_bytes <= budget
        assert answer.runner_up is None or answer.runner_up.candidate.peak_bytes <= budget

    never_unfit()


def test_a_decided_study_comes_before_an_open_one_the_longer_training_first_and_the_others_are_named(
    ranks, make_rank_study
):
    def named(evidence, name, num_steps):
        arms = tuple(
            replace(arm, results=tuple(replace(run, num_steps=num_steps) for run in arm.results))
            for arm in evidence.study.arms
        )
        return replace(evidence, study=replace(evidence.study, suite_name=name, arms=arms), held_out=name)

    noisy = make_rank_study({4: [1.1, 0.9, 1.05, 1.02], 16: [1.0, 1.0, 1.01, 0.97]})
    open_one = named(
        Evidence(study=noisy, held_out="open", candidates=candidates_of(noisy), criterion=Criterion(margin=MARGIN)),
        "open", 900,
    )  # fmt: skip
    short, long = named(ranks(), "short", 10), named(ranks(), "long", 100)
    answer = recommend([open_one, short, long], [], budget_bytes=10_000)
    assert answer.expectation.held_out == "long"
    assert [told.split(",")[0] for told in answer.other_studies] == ["short: r4", "open: r16"]
    assert "not decided" in answer.other_studies[1]
    about = recommend([replace(short, is_named=True), long], [], budget_bytes=10_000)
    assert about.expectation.held_out == "short"


def test_a_study_that_still_runs_is_said_to(ranks):
    evidence = ranks()
    arm, *others = evidence.study.arms
    waiting = replace(
        arm, results=(*arm.results, replace(arm.results[0], seed=77, status="pending", scores={}))
    )
    study = replace(evidence.study, arms=(waiting, *others))
    (caveat, *_) = recommend([replace(evidence, study=study)], [], budget_bytes=10_000).caveats
    assert caveat.startswith("the study still runs: 1 of ")
    assert not any("still runs" in told for told in recommend([evidence], [], budget_bytes=10_000).caveats)
