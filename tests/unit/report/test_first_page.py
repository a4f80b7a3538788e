"""The page that a reader meets first: what it recommends, and that it says what limits it."""

from dataclasses import replace

import pytest

from lorastudy.analysis.overview import Criterion, analyse, criterion_of
from lorastudy.protocol.records import DataSummary, PackProfile
from lorastudy.recommend.decision import decide
from lorastudy.report.document import Bullets, Heading, Paragraph, Tiles, plain
from lorastudy.report.figures.data import pairs_figure
from lorastudy.report.findings.headline import headline
from lorastudy.report.findings.recommendation import recommendation
from lorastudy.report.findings.wording import why_these_items_alone
from lorastudy.report.sections.front import (
    decision_blocks,
    front_blocks,
    front_page,
    limit_blocks,
    run_blocks,
)
from lorastudy.report.sections.results import comparison_blocks
from lorastudy.stats.study import SetLate, set_late, split_studies
from lorastudy.store.views import StatedQuestion
from lorastudy.suite.metrics import BUILT_IN
from lorastudy.suite.question import Margin, Question
from tuned import tuned_study

BEFOREHAND = StatedQuestion(
    question=Question(margin=Margin(amount=0.1)), stated_at="2026-01-02T12:00:00+00:00", num_completed=0
)

#: Losses of six seeds about 0, so that a mean can be read off.
NOISE = (0.0, 0.01, -0.01, 0.005, -0.005, 0.002)


@pytest.fixture
def study_of(make_result, add_profile):
    """An own study from {arm: (mean loss, wobble of its noise, MiB)}; the first arm is the reference."""

    def study_of(table, *, kind="own", seeds=6, tuned=True):
        results = [
            add_profile(
                make_result(
                    arm,
                    seed,
                    experiment_type=kind,
                    settings={"lora_rank": 2 ** (1 + index)},
                    scores={("eval", "loss"): mean + wobble * NOISE[seed]},
                ),
                parameters=1000,
                memory=memory * 2**20,
                step=0.1,
            )
            for index, (arm, (mean, wobble, memory)) in enumerate(table.items())
            for seed in range(seeds)
        ]
        return tuned_study(results) if tuned else split_studies(results)[0]

    return study_of


def lines(analysis, *statements):
    """The page as plain lines."""
    found, page = [], front_page(analysis, statements=statements)
    sections = (
        run_blocks(page, statements, study=analysis.study, level=2),
        decision_blocks(page, level=2),
        front_blocks(page, figures=Tiles(status="none", tiles=()), charts=()),
        limit_blocks(page, level=2),
    )
    for block in (
        block for section in sections for block in section if not isinstance(block, Heading | Tiles)
    ):
        assert isinstance(block, Paragraph | Bullets)
        texts = [block.text] if isinstance(block, Paragraph) else block.items
        found += ["".join(s if isinstance(s, str) else s.text for s in text) for text in texts]
    return found


def test_an_arm_that_is_shown_to_be_better_is_taken(study_of):
    found = recommendation(analyse(study_of({"a": (2.0, 1, 9), "b": (1.0, 2, 9)})))
    assert found.arm == "b"
    assert found.why == (
        "Take b: it is shown to be better than a by 0.9997 nats per token. It needs 9.00 MiB at its peak, alone, on the rows of this data."
    )


def test_of_untuned_arms_none_is_called_best_but_which_was_ahead_is_told(study_of):
    study = study_of({"a": (2.0, 1, 9), "b": (1.0, 2, 9)}, tuned=False)
    found = recommendation(analyse(study))
    assert found.arm is None
    assert found.why == (
        "None: no arm had its learning rate tuned. At the one learning rate that was tried (0.0002) it would be b: it is "
        "shown to be ahead of a by 0.9997 nats per token. It needs 9.00 MiB at its peak, alone, on the rows of this data. To get a recommendation, "
        "write learning_rate: auto, or give all arms the same 3 rates or more."
    )
    page = lines(analyse(study))
    (verdict,) = (line for line in page if line.startswith("Verdict."))
    assert verdict == (
        "Verdict. Held-out loss, at the one learning rate that was tried (0.0002): b was ahead of a. No arm is called "
        "better: none had its learning rate tuned."
    )


def test_untuned_and_open_says_both_what_would_decide_and_that_rates_are_missing(study_of):
    table = {"a": (1.0, 1, 9), "b": (1.004, 6, 3)}
    found = recommendation(analyse(study_of(table, tuned=False)))
    assert found.arm is None
    assert "At the one learning rate that was tried (0.0002) no arm was distinguished from a." in found.why
    assert "What would decide" in found.why
    assert found.why.endswith("give all arms the same 3 rates or more.")


def test_an_untuned_rank_is_not_called_sufficient(study_of):
    table = {"r2": (2.0, 1, 1), "r4": (1.01, 1.5, 2), "r8": (1.0, 2, 3)}
    analysis = analyse(study_of(table, kind="rank_ablation", tuned=False), criterion=Criterion(margin=0.1))
    assert analysis.smallest_sufficient is None
    assert analysis.smallest_no_worse.name == "r4"
    assert "it would be r4: it is the smallest rank shown to be as good as r8" in recommendation(analysis).why
    page = " ".join(lines(analysis))
    assert "shows of no tuned rank that it is sufficient" in page


def test_three_rates_for_each_arm_cost_twice_what_the_runs_took(study_of):
    study = study_of({"a": (2.0, 1, 9), "b": (1.0, 2, 9)}, tuned=False)
    timed = [replace(result, pack_profile=_pack(seconds=30.0)) for result in study.results]
    found = recommendation(analyse(split_studies(timed)[0]))
    # Two arms of six seeds at 30 s, and that twice again: 720 s.
    assert "3 rates each take about 12.0 min more" in found.why


def _pack(*, seconds):
    return PackProfile(
        engine="packed", num_arms=1, memory_kind="cpu_resident", peak_memory_bytes=1, median_step_seconds=0.1,
        tokens_per_second=1.0, load_seconds=0.0, train_seconds=seconds, eval_seconds=0.0,
    )  # fmt: skip


def test_of_several_that_are_better_the_cheapest_is_taken_that_is_not_behind_another(study_of):
    # c needs the least memory, but b and d are ahead of it by half; between those two nothing can be told.
    table = {"a": (2.0, 1, 9), "b": (1.0, 2, 9), "c": (1.5, 3, 1), "d": (1.001, 4, 5)}
    found = recommendation(analyse(study_of(table), criterion=Criterion(reference="a")))
    assert found.arm == "d"
    assert "better than a, as b and c are; c is behind; of the others it needs the least memory" in found.why
    # Where nobody named a reference it is the best that is sought, and being told from nothing makes no arm the best.
    unnamed = recommendation(analyse(study_of(table)))
    assert unnamed.arm is None
    assert unnamed.why.startswith(
        "Not decided: it is still between d and b. Meanwhile use d: it is shown to be better than a"
    )
    assert "What would decide: for b about " in unnamed.why


def test_a_rank_that_is_better_than_the_largest_is_taken_for_that(study_of):
    study = study_of({"r2": (0.5, 1, 1), "r4": (1.0, 1.5, 2), "r8": (1.0, 2, 3)}, kind="rank_ablation")
    analysis = analyse(study, criterion=Criterion(margin=0.1))
    assert analysis.comparison("r2").verdict_words == "r2 is better"
    assert recommendation(analysis).answer == "Take r2: it is shown to be better than r8."


def test_better_than_the_reference_comes_before_as_good_as_it(study_of):
    """The largest rank is ahead of the suite's own reference by ten margins: a smaller one that is as good is no answer."""
    study = study_of({"r2": (1.0, 1, 1), "r4": (1.0, 1.5, 2), "r8": (0.5, 2, 3)}, kind="rank_ablation")
    asked = Criterion(margin=0.05, reference="r4")
    assert analyse(study, criterion=asked).comparison("r2").is_as_good
    assert (
        recommendation(analyse(study, criterion=asked)).answer == "Take r8: it is shown to be better than r4."
    )


def test_only_what_was_validly_compared_counts_as_every_other_arm(study_of):
    study = study_of({"a": (1.0, 1, 9), "b": (2.0, 2, 1), "c": (1.3, 3, 1)})
    analysis = analyse(study, criterion=Criterion(reference="a"))
    blocked = [
        replace(c, verdict="invalid", ahead=None) if c.arm == "b" else c for c in analysis.primary_comparisons
    ]
    with_one_more = [*blocked, replace(blocked[1], arm="d")]
    found = replace(
        analysis, comparisons={**analysis.comparisons, analysis.primary.key: tuple(with_one_more)}
    )
    assert "better than every arm that it is validly compared with; " in recommendation(found).why


def test_of_an_untuned_arm_no_other_is_called_worse(study_of):
    table = {"a": (1.0, 1, 9), "b": (2.0, 2, 1), "c": (1.3, 3, 1)}
    page = " ".join(lines(analyse(study_of(table, tuned=False))))
    assert "a was ahead of b and c" in page
    assert "worse" not in page
    assert "better than" not in page


def test_a_reference_that_beats_every_arm_is_taken_with_the_price_of_the_next(study_of):
    found = recommendation(analyse(study_of({"a": (1.0, 1, 9), "b": (2.0, 2, 1), "c": (1.3, 3, 1)})))
    assert found.arm == "a"
    assert "better than every other arm; c comes nearest, 0.30" in found.why


def test_within_the_margin_the_cheapest_is_taken(study_of):
    study = study_of({"a": (1.0, 1, 9), "b": (1.001, 1.5, 3), "c": (1.002, 2, 5)})
    found = recommendation(analyse(study, criterion=Criterion(margin=0.2, reference="a")))
    assert found.arm == "b"
    of_the_best = recommendation(analyse(study, criterion=Criterion(margin=0.2)))
    assert of_the_best.answer == (
        "Take b: b, c and a are shown to be within the margin of 0.2 nats per token of the best arm, and of these it needs the "
        "least memory."
    )
    assert (
        "b and c are each as good as a within the margin of 0.2 nats per token, and of these and a it needs the least memory"
        in found.why
    )


def test_the_smallest_sufficient_rank_answers_a_rank_ablation_with_a_margin(study_of):
    study = study_of({"r2": (2.0, 1, 1), "r4": (1.01, 1.5, 2), "r8": (1.0, 2, 3)}, kind="rank_ablation")
    analysis = analyse(study, criterion=Criterion(margin=0.1))
    assert analysis.smallest_sufficient is not None
    found = recommendation(analysis)
    assert found.arm == analysis.smallest_sufficient.name == "r4"
    assert "the smallest rank shown to be as good as r8 within the margin of 0.1 nats per token" in found.why
    question = next(line for line in lines(analysis, BEFOREHAND) if line.startswith("Question."))
    assert "Stated beforehand: held-out loss decides" in question
    assert question.endswith("with a margin of 0.1 nats per token.")


def changed_late(study, now, *, num_completed=6, at_first=BEFOREHAND):
    """The page of a study whose question became `now` when so many results already existed."""
    later = StatedQuestion(question=now, stated_at="2026-01-03T13:00:00+00:00", num_completed=num_completed)
    asked = replace(criterion_of(study, now), late=set_late([at_first, later]))
    analysis = analyse(study, criterion=asked)
    return analysis, lines(analysis, at_first, later)


def test_a_margin_that_was_changed_with_results_at_hand_is_never_called_beforehand(study_of):
    study = study_of({"r2": (2.0, 1, 1), "r4": (1.01, 1.5, 2), "r8": (1.0, 2, 3)}, kind="rank_ablation")
    analysis, page = changed_late(study, replace(BEFOREHAND.question, margin=Margin(amount=0.6)))
    when = "2026-01-03 13:00 UTC, when 6 results already existed"
    assert page[0].endswith(
        "Stated beforehand: held-out loss decides, against the reference that the design names, with a margin of 0.1. "
        f"What holds now, as changed on {when}: held-out loss decides, against the reference that the design names, "
        "with a margin of 0.6 nats per token."
    )
    gravest = page[page.index("What limits this.") + 1]
    assert gravest.startswith(
        f"The margin was changed on {when}: margin 0.1 became margin 0.6. It could have been chosen"
    )
    assert plain(front_page(analysis).summary("study").limits[0]) == gravest
    caption = pairs_figure(analysis).caption
    assert caption.endswith(f"Band: the margin as changed on {when}.")
    rule = str(comparison_blocks(analysis, level=2))
    assert f"as changed on {when}, when the 95 % interval of" in rule
    assert "before the run" not in caption + rule


def test_a_reference_that_was_changed_late_is_a_limit_too(study_of):
    study = study_of({"a": (1.0, 1, 9), "b": (2.0, 2, 1)})
    _, page = changed_late(study, replace(BEFOREHAND.question, reference="b"), num_completed=1)
    assert any(
        line.startswith("The reference was changed on 2026-01-03 13:00 UTC, when 1 result already existed")
        for line in page
    )


def test_metrics_that_were_added_to_a_finished_suite_are_told(study_of):
    study = study_of({"a": (1.0, 1, 9), "b": (2.0, 2, 1)})
    added = replace(BEFOREHAND.question, metrics=(BUILT_IN["token_f1"],))
    _, page = changed_late(study, added)
    (line,) = [line for line in page if "also measured: nothing became also measured: " in line]
    assert "token_f1" in line or "token F1" in line.lower()
    _, page = changed_late(
        study, BEFOREHAND.question, at_first=replace(BEFOREHAND, question=added)
    )  # and taken out again
    assert any("became also measured: nothing" in line for line in page)


def test_an_arm_that_raised_the_loss_is_not_said_to_have_lowered_it(make_result):
    scores = {("eval", "loss"): 2.2, ("eval_before", "loss"): 2.0}
    results = [make_result(arm, seed, scores=scores) for arm in ("a", "b") for seed in range(6)]
    (line,) = dict.fromkeys(line for line in lines(analyse(tuned_study(results))) if "LS305" in line)
    assert "raised the base model's held-out loss of 2 by 0.2 nats per token, 10.0 % of it" in line


def test_what_was_changed_before_any_result_or_back_again_limits_nothing(study_of):
    study = study_of({"a": (1.0, 1, 9), "b": (2.0, 2, 1)})
    wider = replace(BEFOREHAND.question, margin=Margin(amount=0.6))
    _, page = changed_late(study, wider, num_completed=0)
    assert "as changed on 2026-01-03 13:00 UTC, before any result: " in page[0]
    assert not any(line.startswith("The margin was") for line in page)
    back = StatedQuestion(
        question=BEFOREHAND.question, stated_at="2026-01-04T13:00:00+00:00", num_completed=9
    )
    assert set_late([BEFOREHAND, replace(back, question=wider), back]) == ()


def test_a_question_that_was_first_stated_with_results_at_hand_says_when(study_of):
    study = study_of({"a": (1.0, 1, 9), "b": (2.0, 2, 1)})
    late = replace(BEFOREHAND, num_completed=3)
    asked = replace(criterion_of(study, late.question), late=set_late([late]))
    analysis = analyse(study, criterion=asked)
    page = lines(analysis, late)
    assert "Stated 2026-01-02 12:00 UTC, when 3 results already existed: held-out loss decides" in page[0]
    assert any(line.startswith("The margin was set on 2026-01-02 12:00 UTC, when 3 results") for line in page)
    assert "Band: the margin that was set on 2026-01-02 12:00 UTC, when 3" in pairs_figure(analysis).caption


def test_what_the_runs_leave_open_is_not_recommended(study_of):
    table = {"a": (1.0, 1, 9), "b": (1.004, 6, 3), "c": (2.0, 2, 1)}
    found = recommendation(analyse(study_of(table)))
    assert found.arm is None
    assert found.why.startswith(
        "Not decided: it is still between b and a. Meanwhile use a: it is the suite's first arm, and no other arm is shown to be "
        "better. "
    )
    assert "What would decide" in found.why


def test_with_one_seed_no_arm_is_named_for_being_cheap(study_of):
    found = recommendation(analyse(study_of({"a": (1.0, 1, 9), "b": (3.0, 1, 1)}, seeds=1)))
    assert found.why == (
        "Not decided: no arm was distinguished from a. Meanwhile use a: it is the suite's first arm, and no other arm is shown to be better. "
        "What would decide: for b at least 5 more seeds."
    )


def test_nothing_completed_or_one_arm_is_said(study_of):
    alone = study_of({"a": (1.0, 1, 9)}, tuned=False)
    assert recommendation(analyse(alone)).why == (
        "None: only one arm completed, so there is nothing to choose between."
    )
    failed = [replace(r, status="failed", failure_kind="out_of_memory", scores={}) for r in alone.results]
    (study,) = split_studies(failed)
    page = lines(analyse(study))
    assert "Recommendation. None: no experiment completed." in page
    assert "6 of 6 experiments did not complete: 6 out of memory." in page


def test_invalid_comparisons_recommend_nothing(study_of, make_result):
    study = study_of({"a": (1.0, 1, 9), "b": (3.0, 1, 1)}, tuned=False)
    longer = [
        replace(r, settings={**r.settings, "max_steps": 9}) if r.arm == "b" else r for r in study.results
    ]
    (unequal,) = split_studies(longer)
    analysis = analyse(unequal)
    assert not analysis.primary_comparisons[0].is_valid
    assert recommendation(analysis).arm is None
    assert "no comparison is valid" in recommendation(analysis).why


def test_the_page_is_short_and_its_limits_are_named(rank_study):
    page = lines(analyse(split_studies(rank_study)[0]))
    assert "No question was stated beforehand" in page[0]
    first = ["What was", "Verdict. Held-out", "Recommendation. None:", "Cannot tell"]
    assert [" ".join(line.split()[:2]) for line in page[1:5]] == first
    shown = page[page.index("What limits this.") + 1 :]
    assert len([line for line in shown if shown.count(line) == 1]) <= 1, "three limits and how many more"
    assert any("(LS101, all 6 arms)" in line for line in page)
    assert any("say little about a GPU" in line for line in page)


def test_a_choice_in_sample_is_a_limit(make_result):
    results = [
        make_result(
            f"r{rank}_{rate:g}",
            seed,
            settings={"lora_rank": rank, "lora_alpha": "2r", "learning_rate": rate},
            scores={("eval", "loss"): 1 + 1 / rank + extra + NOISE[seed] * rank},
        )
        for rank in (2, 4)
        for rate, extra in ((1e-4, 0.2), (1e-3, 0.0), (1e-2, 0.3))
        for seed in range(6)
    ]
    page = lines(analyse(split_studies(results)[0]))
    assert any(line.startswith("Learning rates were chosen on the same held-out rows") for line in page)


def test_of_one_scored_row_nothing_is_told_and_more_seeds_are_not_asked_for(make_result):
    """No number of seeds replaces rows; and it is not that scores were not stored item by item."""
    data = {"format": "text", "num_refused_rows": 0, "num_truncated_rows": 0, "num_tokens": 9}
    one_row = DataSummary(split="eval", num_rows=1, num_completion_tokens=9, **data)

    def analysis_of(num_items, summaries):
        results = [
            make_result(
                arm, seed, settings={"lora_rank": rank}, data=summaries,
                scores={("eval", "loss"): rank * (1 + NOISE[seed])},
            )
            for arm, rank in (("a", 1), ("b", 2))
            for seed in range(3)
        ]  # fmt: skip
        scored = [
            replace(
                run, scores={key: replace(score, num_items=num_items) for key, score in run.scores.items()}
            )
            for run in results
        ]
        return analyse(tuned_study(scored))

    told = analysis_of(1, (one_row,))
    (comparison,) = told.primary_comparisons
    assert (comparison.verdict, comparison.reason, comparison.more) == (
        "invalid",
        "few rows to score, LS505",
        None,
    )
    assert any("one row to score: it says nothing about other rows" in line for line in lines(told))
    assert why_these_items_alone(told) == "only one row is scored"
    assert why_these_items_alone(analysis_of(9, ())) == "scores by item are not stored for all arms"


def test_arms_that_hardly_learnt_are_told_on_the_page(make_result):
    def page(before):
        results = [
            make_result(
                arm, seed, settings={"lora_rank": rank},
                scores={("eval", "loss"): 1.99 + NOISE[seed] / 10, ("eval_before", "loss"): before},
            )
            for arm, rank in (("a", 1), ("b", 2))
            for seed in range(6)
        ]  # fmt: skip
        return list(dict.fromkeys(line for line in lines(analyse(tuned_study(results))) if "LS305" in line))

    (line,) = page(2.0)
    assert line.startswith("Hardly anything learnt (LS305, ")
    assert line.endswith("lowered the base model's held-out loss of 2 by 0.01 nats per token, 0.5 % of it.")
    assert page(2.2) == []


def test_a_metric_that_contradicts_the_primary_one_is_on_the_page(make_result):
    """The loss says b, exact match says a: .9 against .3."""
    means = {"a": (1.2, 0.9), "b": (1.0, 0.3)}
    results = [
        make_result(
            arm, seed, experiment_type="own", settings={"lora_rank": rank},
            scores={("eval", "loss"): loss + NOISE[seed] * rank, ("eval", "exact_match"): right + NOISE[seed] / rank},
        )
        for rank, (arm, (loss, right)) in enumerate(means.items(), start=1)
        for seed in range(6)
    ]  # fmt: skip
    page = lines(analyse(tuned_study(results)))
    (told,) = {
        line for line in page if line.startswith("Exact match puts a ahead: 0.9, b 0.3 (a minus b: +0.6")
    }
    assert told.endswith("Held-out loss decides, as stated.")
    by_match = lines(analyse(tuned_study(results), criterion=Criterion(primary_metric="exact_match")))
    assert any(line.startswith("Held-out loss puts b ahead: 1, a 1.2") for line in by_match)
    asked = Question(primary_metric="exact_match")
    late = SetLate(key="primary_metric", first=Question(), now=asked, stated_at="2026-01-03", num_completed=6)
    changed = lines(
        analyse(tuned_study(results), criterion=Criterion(primary_metric="exact_match", late=(late,)))
    )
    assert any(line.endswith("Exact match decides, which was set when results existed.") for line in changed)


def test_training_that_did_harm_is_called_so_and_never_recommended(make_result):
    def page(losses):
        results = [
            make_result(
                arm, seed, experiment_type="own", settings={"lora_rank": rank},
                scores={("eval", "loss"): loss + NOISE[seed] * rank, ("eval_before", "loss"): 2.0},
            )
            for rank, (arm, loss) in enumerate(losses.items(), start=1)
            for seed in range(6)
        ]  # fmt: skip
        analysis = analyse(tuned_study(results))
        return recommendation(analysis), lines(analysis)

    none, told = page({"a": 3.0, "b": 2.5})
    assert none.answer == (
        "None: training made every arm worse than the base model, which is harm. Use the base model as it is."
    )
    assert "Harm: training made a and b worse than the base model, by mean held-out loss." in told
    some, told = page({"a": 3.0, "b": 1.0})
    assert some.arm == "b"
    assert "Harm: training made a worse than the base model, by mean held-out loss." in told


def loses_by_loss(make_result, *, metric="exact_match"):
    """Two arms that train worse than the base model (2.0) by loss, of which b is better than a by another metric."""
    found = [
        make_result(
            arm, seed, experiment_type="own", settings={"lora_rank": rank},
            scores={
                ("eval", "loss"): 2.5 + NOISE[seed] * rank, ("eval_before", "loss"): 2.0,
                ("eval", "exact_match"): right + NOISE[seed] / rank,
            },
        )
        for rank, (arm, right) in enumerate({"a": 0.3, "b": 0.9}.items(), start=1)
        for seed in range(6)
    ]  # fmt: skip
    named = [
        replace(each, scores={(split, metric if name == "exact_match" else name): score for (split, name), score in each.scores.items()})
        for each in found
    ]  # fmt: skip
    return tuned_study(named)


def test_by_another_metric_a_rise_in_held_out_loss_is_a_limit_and_no_harm(make_result):
    analysis = analyse(loses_by_loss(make_result), criterion=Criterion(primary_metric="exact_match"))
    assert decide(analysis).harmed == ()
    assert headline(analysis).answer == "Use b: better than a."
    told = lines(analysis)
    assert (
        "Held-out loss rose above the base model's in a and b, by its mean; Exact match decides, as stated."
        in told
    )
    assert not any("Harm" in line for line in told)
    assert not any("Guessing without a model" in line for line in told)


def test_guessing_is_not_known_by_a_metric_that_the_suite_adds(make_result):
    added = BUILT_IN["rouge_l"]
    criterion = Criterion(primary_metric="rouge_l", definitions=(added,))
    told = lines(analyse(loses_by_loss(make_result, metric="rouge_l"), criterion=criterion))
    assert f"Guessing without a model was not scored by {added.title}, so no arm is shown to beat it." in told
