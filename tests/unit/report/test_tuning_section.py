"""What a report says of arms that racing stopped, and that it takes them for no failure and for no winner."""

import re
from dataclasses import replace

import pytest

from lorastudy.analysis.overview import Criterion, analyse
from lorastudy.report.findings.recommendation import recommendation
from lorastudy.report.sections.tuning import racing_blocks, steps_spent
from lorastudy.report.write import write_report
from lorastudy.stats.racing import measured_races
from lorastudy.stats.study import split_studies
from lorastudy.store.views import ScoreValue
from lorastudy.suite.question import rung_split

pytestmark = pytest.mark.long

WHY = "stopped by racing after 25 % of the steps: its held-out loss is 0.6 nats per token above that of r16"


def stopped(result, *, step=63):
    """The result as it is where racing stopped it: a score at the rung, and none at the end."""
    score = replace(result.scores["eval", "loss"], value=9.0)
    return replace(
        result, status="stopped", failure_kind="pruned", failure_message=WHY, num_steps=step, adapter_path=None,
        scores={(rung_split(0.25), "loss"): score}, train_seconds=None,
    )  # fmt: skip


@pytest.fixture
def raced(make_rank_results):
    """Ranks 1 to 32, of which rank 1 was stopped after a quarter of 250 steps."""
    return [stopped(r) if r.arm == "r1" else r for r in make_rank_results()]


def test_the_steps_that_were_spent(raced):
    (study,) = split_studies(raced)
    # five arms of six seeds with 250 steps, and six runs of 63
    assert steps_spent(study) == (5 * 6 * 250 + 6 * 63, 6 * 6 * 250)
    assert steps_spent(split_studies([r for r in raced if r.arm == "r1"])[0]) is None


def test_the_report_of_a_race(raced, make_tracker, tmp_path):
    write_report(make_tracker(raced), output=tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "30 of 36 experiments completed, 6 were stopped by racing." in text
    assert "r=1 was stopped by racing, without a final score." in text
    assert "## Stopped by racing" in text
    assert "The runs took 7,878 of the 9,000 steps of the full grid (88 %)." in text
    assert re.search(rf"\| r=1 +\| +63 \| +6 \| {re.escape(WHY)} +\|", text)
    assert re.search(r"\| r=1 \(untuned, stopped by racing\) +\| +0 of 6 \|", text)
    assert "Failures and divergences" not in text
    assert "did not complete" not in text
    for one in measured_races():
        assert f"of {one['num_stops']:,} stops in {one['num_studies']:,} races were wrong" in text


def test_a_suite_without_a_race_has_no_such_part(rank_study):
    (study,) = split_studies(rank_study)
    assert racing_blocks(study, rungs=(), level=2) == []
    (_, paragraph) = racing_blocks(study, rungs=(0.25, 0.5), level=2)
    assert "Arms were compared after 25 % and 50 % of the steps" in paragraph.text[0]
    assert paragraph.text[0].endswith("Here no arm was stopped.")


def test_what_was_stopped_is_compared_with_nothing(raced):
    analysis = analyse(split_studies(raced)[0])
    assert "r1" not in {comparison.arm for comparison in analysis.primary_comparisons}
    assert recommendation(analysis).arm != "r1"


def test_where_racing_left_one_arm_it_is_taken(make_rank_results):
    results = [stopped(r) if r.arm == "r1" else r for r in make_rank_results(ranks=(1, 32))]
    found = recommendation(analyse(split_studies(results)[0]))
    assert found.arm is None  # at one rate no arm is called best, raced or not
    assert "it would be r32: every other arm was stopped by racing, clearly behind" in found.why


def test_a_rank_that_was_stopped_ends_the_sequence_of_margins(make_rank_results):
    """With a margin of 9 every rank is as good as the largest; the ones below a stopped rank are not tested."""
    results = make_rank_results(ranks=(1, 4, 8, 16))
    whole = analyse(split_studies(results)[0], criterion=Criterion(margin=9.0))
    assert {c.arm for c in whole.primary_comparisons if c.no_worse} == {"r1", "r4", "r8"}
    raced = [stopped(r) if r.arm == "r4" else r for r in results]
    analysis = analyse(split_studies(raced)[0], criterion=Criterion(margin=9.0))
    assert {c.arm for c in analysis.primary_comparisons if c.no_worse} == {"r8"}
    assert analysis.smallest_no_worse.name == "r8"
    # where the one next to the reference was stopped, nothing is tested, and the others do not become a family of their own
    next_to_it = [stopped(r) if r.arm == "r8" else r for r in results]
    analysis = analyse(split_studies(next_to_it)[0], criterion=Criterion(margin=9.0))
    assert not [c for c in analysis.primary_comparisons if c.no_worse]


def test_a_paused_run_is_not_finished(make_rank_results, make_tracker, tmp_path):
    results = [replace(r, status="paused") if r.arm == "r1" else r for r in make_rank_results(ranks=(1, 8))]
    write_report(make_tracker(results), output=tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "Not finished: “r=1, seed 0”, " in text


def test_an_arm_of_which_every_rate_was_stopped_stands_at_the_one_that_was_last_ahead(make_result):
    score = ScoreValue(value=1.0, unit="nats", version=1, num_items=2)
    results = [
        make_result("a", seed, settings={"lora_rank": 8, "learning_rate": 1e-3}) for seed in range(6)
    ] + [
        replace(
            stopped(make_result(f"b_lr{rate}", seed, settings={"lora_rank": 1, "learning_rate": rate})),
            scores={(rung_split(0.25), "loss"): replace(score, value=loss)},
        )
        for rate, loss in ((1e-3, 2.0), (1e-2, 1.5), (1e-1, 1.2))
        for seed in range(6)
    ]
    found = {finding.code: finding for finding in analyse(split_studies(results)[0]).lint}
    assert "best at 0.1, the largest of 3 learning rates tried" in found["LS102"].found
