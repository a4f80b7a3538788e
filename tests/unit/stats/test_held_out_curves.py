"""Where an arm was best during training: by hand, and how often noise alone makes a claim."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from lorastudy.stats.held_out_curves import RISE_LEVEL, HeldOutCurve, held_out_curves, is_above_zero
from lorastudy.stats.study import split_studies
from lorastudy.store.views import ExperimentResult, ScoreValue


def curve(*means: float, noise: float = 0.002, num_seeds: int = 3, seed: int = 0) -> HeldOutCurve:
    """Scored every ten steps; each seed is above or below the mean as a whole, with a little noise at each step."""
    draw = np.random.default_rng(seed)
    of_seeds = draw.normal(size=(num_seeds, 1)) * 0.05
    losses = np.array(means) + of_seeds + draw.normal(size=(num_seeds, len(means))) * noise
    steps = tuple(10 * number for number in range(1, len(means) + 1))
    return HeldOutCurve(steps=steps, losses_ST=losses, num_planned_steps=steps[-1])


def test_a_mean_and_its_lowest_point_and_the_rise_after_it() -> None:
    exact = HeldOutCurve(
        steps=(10, 20, 30), losses_ST=np.array([[3.0, 1.9, 2.2], [3.2, 2.1, 2.2]]), num_planned_steps=30
    )
    assert [point.mean for point in exact.points] == pytest.approx([3.1, 2.0, 2.2])
    assert exact.lowest.step == 20
    assert exact.lowest.low == pytest.approx(2.0 - 0.1 * 2**0.5)  # sd of 1.9 and 2.1, divisor 1
    assert exact.rise == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (curve(3.0, 2.5, 2.6, 2.8), "rose"),
        (curve(3.0, 2.5, 2.3, 2.2), "still falling"),
        (curve(3.0, 2.5, 2.5, 2.5), "level"),
        (curve(3.0, 2.5, 2.6, 2.8, noise=0.3), "level"),
        (curve(3.0, 2.5, 2.6, 2.8, num_seeds=1), "one seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_claims_what_the_seeds_support(made: HeldOutCurve, shape: str) -> None:
    assert made.shape == shape


def test_the_test_is_scipys() -> None:
    draw = np.random.default_rng(1)
    for _ in range(200):
        differences = draw.normal(loc=0.5, size=draw.integers(2, 8))
        p = stats.ttest_1samp(differences, 0, alternative="greater").pvalue
        assert is_above_zero(differences, level=0.05) == (p < 0.05)


@pytest.mark.parametrize("num_seeds", [3, 6, 10])
@pytest.mark.parametrize("kind", ["independent", "random walk"])
def test_a_flat_curve_is_rarely_said_to_rise(num_seeds: int, kind: str) -> None:
    """At most 5 % of 1,000 studies, with 20 points to choose among."""
    draw = np.random.default_rng(7)
    claims = 0
    for _ in range(1000):
        noise = draw.normal(size=(num_seeds, 20))
        losses = (
            100
            + draw.normal(size=(num_seeds, 1))
            + (noise if kind == "independent" else noise.cumsum(axis=1))
        )
        made = HeldOutCurve(steps=tuple(range(1, 21)), losses_ST=losses, num_planned_steps=20)
        claims += made.shape == "rose"
    assert claims / 1000 <= 0.05
    assert RISE_LEVEL < 0.05


def result(arm: str, seed: int, losses: dict[int, float], *, end: float, **more: object) -> ExperimentResult:
    def score(value: float, step: int | None = None) -> ScoreValue:
        return ScoreValue(value=value, unit="nats", version=1, num_items=10, step=step)

    scores = {(f"eval_after_{step}", "loss"): score(value, step) for step, value in losses.items()}
    values: dict[str, Any] = {
        "experiment_id": f"{arm}-{seed}", "suite_name": "suite", "name": f"{arm}-{seed}", "arm": arm,
        "experiment_type": "custom", "seed": seed, "settings": {"lora_rank": 8}, "status": "completed",
        "num_steps": 40, "num_planned_steps": 40, "scores": scores | {("eval", "loss"): score(end)},
    }  # fmt: skip
    return ExperimentResult(**(values | more))


def curves_of(*results: ExperimentResult) -> dict[str, HeldOutCurve]:
    (study,) = split_studies(results)
    return dict(held_out_curves(study))


def test_the_end_is_a_point_unless_another_adapter_was_scored_there() -> None:
    last = curves_of(result("a", 0, {10: 2.0, 20: 1.5}, end=1.4))["a"]
    assert (last.steps, last.losses_ST.tolist(), last.selected) == ((10, 20, 40), [[2.0, 1.5, 1.4]], ())
    best = curves_of(result("a", 0, {20: 1.5, 40: 1.8}, end=1.5, selected_step=20))["a"]
    assert (best.steps, best.losses_ST.tolist(), best.selected) == ((20, 40), [[1.5, 1.8]], (20,))


def test_a_curve_ends_where_its_first_seed_stopped() -> None:
    found = curves_of(
        result("a", 0, {10: 2.0, 20: 2.1, 30: 2.2}, end=2.2, num_steps=30),
        result("a", 1, {10: 2.0, 20: 1.9, 30: 1.8}, end=1.7),
    )["a"]
    assert found.steps == (10, 20, 30)
    assert found.stopped == (30, 40)
    assert found.num_planned_steps == 40


def test_arms_without_scores_on_the_way_have_no_curve() -> None:
    assert curves_of(result("a", 0, {}, end=1.0)) == {}
    lost = result("b", 1, {}, end=1.0, status="failed")
    assert list(curves_of(result("b", 0, {10: 2.0}, end=1.0), lost)) == ["b"]
