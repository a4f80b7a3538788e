"""Imported results under the rules for one's own: what is judged, paired, and left open."""

from dataclasses import replace

import pytest

from lorastudy.analysis.imported import analyse_imported
from lorastudy.tracker.views import ImportedResult, ImportedScore


def imported(arm, seed=0, *, right=500, items=1000, metric="accuracy", unit="share", lower=False, **changes):
    value = right / items if unit == "share" else right
    score = ImportedScore(
        metric=metric,
        value=value,
        unit=unit,
        lower_is_better=lower,
        num_items=items if unit == "share" else None,
    )
    result = ImportedResult(
        suite_name="public", arm=arm, seed=seed, settings={"lora_rank": 8, "learning_rate": 1e-4, "name": arm},
        sources={"environment": "torch 2.9"}, scores=(score,), costs={}, tool="a tool", file="f.csv",
        file_sha256="0", location=f"f.csv:{arm}{seed}", imported_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return replace(result, **changes)


def names(arms):
    return [arm.name for arm in arms]


def test_arms_that_cannot_be_told_from_the_best():
    # against .560 of 1000: .530 differs by 1.35 standard errors (p .18), .512 by 2.15 (p .031), .400 by 7.2
    analysis = analyse_imported(
        [imported(name, right=right) for name, right in {"a": 400, "b": 560, "c": 530, "d": 512}.items()]
    )
    assert names(analysis.arms) == ["b", "c", "d", "a"]
    assert names(analysis.not_told_from_best(of_all=False)) == ["b", "c"]
    # Holm over three: .031 is doubled, above .05
    assert names(analysis.not_told_from_best(of_all=True)) == ["b", "c", "d"]
    # neighbours: b-c no, c-d no, d-a yes
    assert analysis.neighbours_told_apart == 1


def test_one_seed_gives_no_verdict():
    analysis = analyse_imported([imported("a"), imported("b", right=900)])
    assert analysis.comparisons == ()
    assert [finding.code for finding in analysis.lint] == ["LS101", "LS401"]


def test_several_seeds_are_paired_and_judged_as_one_s_own():
    results = [
        imported(
            arm, seed, right=loss + 0.01 * seed + wobble * seed * seed, metric="loss", unit="nats", lower=True
        )
        for arm, loss, wobble in (("first", 2.0, 0.0), ("second", 1.0, 0.001))
        for seed in range(6)
    ]
    (comparison,) = analyse_imported(results).comparisons
    assert (comparison.arm, comparison.reference, comparison.n) == ("second", "first", 6)
    # the differences are -1 + .001 seed**2, of mean -1 + .055 / 6
    assert comparison.mean == pytest.approx(-1 + 0.055 / 6)
    # each arm has one learning rate, so the one ahead is not called better
    assert (comparison.verdict, comparison.ahead, comparison.winner) == ("untuned", "second", None)
    assert analyse_imported(results).shares == ()


def test_a_metric_of_which_higher_is_better_is_turned():
    results = [
        imported(
            arm, seed, right=score + 0.001 * seed * seed * (arm == "b"), metric="reward", unit="", lower=False
        )
        for arm, score in (("a", 1.0), ("b", 2.0))
        for seed in range(6)
    ]
    analysis = analyse_imported(results)
    assert names(analysis.arms) == ["b", "a"]
    assert analysis.comparisons[0].ahead == "b"


def test_runs_without_a_recorded_seed_are_not_paired():
    results = [
        imported(
            arm,
            None,
            right=score + 0.01 * number,
            metric="loss",
            unit="nats",
            lower=True,
            location=f"{arm}{number}",
        )
        for arm, score in (("a", 2.0), ("b", 1.0))
        for number in range(6)
    ]
    analysis = analyse_imported(results)
    assert analysis.comparisons == ()
    assert [len(arm.results) for arm in analysis.arms] == [6, 6]


def test_pairs_of_two_environments_are_left_out():
    other = {"environment": "torch 2.10"}
    results = [
        imported(arm, seed, right=1.0 + seed, metric="loss", unit="nats", lower=True, **changes)
        for arm, changes in (("a", {}), ("b", {"sources": other}))
        for seed in range(6)
    ]
    analysis = analyse_imported(results)
    assert analysis.comparisons == ()
    assert "LS601" in {finding.code for finding in analysis.lint}


def test_the_linter_knows_full_fine_tuning():
    adapter = imported("adapter", settings={"method": "lora", "learning_rate": 1e-4, "lora_rank": 8})
    full = imported("full", settings={"method": "full", "learning_rate": 1e-4})
    analysis = analyse_imported([adapter, full])
    assert [(f.code, f.arms) for f in analysis.lint if f.code == "LS103"] == [("LS103", ("full",))]
    slower = replace(full, settings={"method": "full", "learning_rate": 1e-5})
    assert "LS103" not in {finding.code for finding in analyse_imported([adapter, slower]).lint}


def test_the_best_rate_is_told_by_the_imported_metric():
    results = [
        imported(f"r8-{rate}", right=right, settings={"lora_rank": 8, "learning_rate": rate})
        for rate, right in ((1e-4, 500), (2e-4, 600), (4e-4, 700))
    ]
    analysis = analyse_imported(results)
    assert [f.found for f in analysis.lint if f.code == "LS102"] == [
        "best at 0.0004, the largest of 3 learning rates tried"
    ]
