"""Time from timed steps, disk from what files will hold."""

from types import SimpleNamespace
from typing import Any

import pytest

from lorastudy.planning.answers import Calibration, PacePoint
from lorastudy.planning.plan_summary import (
    adapter_file_bytes,
    adapters_bytes,
    checkpoint_bytes,
    records_bytes,
)
from lorastudy.planning.validation_cost import (
    FORWARD_SHARE,
    ValidationCost,
    total,
    validation_cost,
    without_points,
)
from lorastudy.protocol.records import DataSummary
from planned import experiments


def calibration(*points):
    return Calibration(
        points=tuple(PacePoint(num_arms=arms, num_tokens=tokens, seconds=seconds) for arms, tokens, seconds in points)
    )  # fmt: skip


def test_a_step_is_a_fixed_part_and_a_part_per_token():
    exact = calibration((1, 100, 0.3), (2, 200, 0.4), (4, 400, 0.6))  # 0.2 + tokens / 1000
    assert exact.step_seconds(0) == pytest.approx(0.2)
    assert exact.step_seconds(1000) == pytest.approx(1.2)


def test_a_line_that_would_start_below_zero_goes_through_the_origin():
    # through the origin: (100 x 0.1 + 200 x 0.3) / (100^2 + 200^2) = 70 / 50000
    assert calibration((1, 100, 0.1), (2, 200, 0.3)).step_seconds(100) == pytest.approx(0.14)


def test_one_point_is_taken_as_proportional():
    assert calibration((2, 200, 0.5)).step_seconds(400) == pytest.approx(1.0)


def test_the_fastest_measured_number_of_arms_is_chosen_among_those_that_fit():
    measured = calibration((1, 100, 0.1), (2, 200, 0.15), (4, 400, 0.5))  # 1000, 1333, 800 tokens a second
    assert measured.best_num_arms(at_most=8) == 2
    assert measured.best_num_arms(at_most=1) == 1


def test_an_adapter_is_four_bytes_a_parameter_and_its_header():
    assert adapter_file_bytes(4000, num_modules=3) == 4000 + 6 * 150
    assert adapters_bytes(4000, num_modules=3) == 2 * 4900  # in the run folder and in the output folder
    assert checkpoint_bytes(1000) == 2 * 3 * 4000


def test_records_grow_with_steps_and_arms():
    one, ten = records_bytes(num_steps=10, num_arms=1), records_bytes(num_steps=10, num_arms=10)
    assert records_bytes(num_steps=20, num_arms=1) == pytest.approx(2 * one, rel=0.02)
    assert ten > 5 * one


def cost(
    timed: Calibration | None, *, rungs: tuple[float, ...] = (), **settings: Any
) -> ValidationCost | None:
    """For two arms on the rows of `reading`."""
    estimate: Any = SimpleNamespace(calibration=timed)
    return validation_cost(experiments("a", "b", **settings), reading(), estimate=estimate, rungs=rungs)


def reading() -> Any:
    """An estimator that has read 40 training rows, for batches of 4, and 100 tokens of validation rows."""
    counts = dict.fromkeys(("num_refused_rows", "num_truncated_rows", "num_completion_tokens"), 0)
    summaries = (
        DataSummary(split="train", format="text", num_rows=40, num_tokens=400, **counts),
        DataSummary(split="eval", format="text", num_rows=10, num_tokens=100, **counts),
    )
    return SimpleNamespace(rows_read=[SimpleNamespace(summary=one) for one in summaries])


def test_scoring_on_the_way_costs_a_share_of_a_step_over_as_many_tokens():
    exact = calibration((1, 100, 0.3), (2, 200, 0.4), (4, 400, 0.6))  # 0.2 + tokens / 1000
    every_third = cost(exact, eval_steps=3)  # of 10 steps: after 3, 6 and 9; 200 tokens of both arms
    assert every_third == ValidationCost(num_passes=3, seconds=pytest.approx(3 * FORWARD_SHARE * 0.4))
    assert str(every_third) == "scores on the way: 3 times, about 600 ms"


def test_a_pass_serves_a_rung_and_a_point_alike_and_no_score_costs_nothing():
    both = cost(None, eval_steps=5, rungs=(0.25, 0.5))  # after 3 and 5
    assert both == ValidationCost(num_passes=2, seconds=None)
    assert cost(None) is None
    assert total([both, None, both]) == ValidationCost(num_passes=4, seconds=None)


def test_an_arm_without_a_point_is_named_with_its_steps():
    assert without_points(experiments("a", "b", eval_steps=10), reading()) == [("a", 10), ("b", 10)]
    assert without_points(experiments("a", eval_steps=9), reading()) == []
    assert without_points(experiments("a"), reading()) == []
