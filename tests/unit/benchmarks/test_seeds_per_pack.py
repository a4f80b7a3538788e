"""What the benchmark of orders of the rows makes of its rounds."""

from pathlib import Path

import pytest

from benchmarks.seeds_per_pack import APART, ONE_ORDER, OWN_ORDERS, settings, step_summary


def test_ratios_are_medians_of_the_rounds_ratios() -> None:
    """Rounds are compared with their own neighbours in time: 90 / 100, 40 / 50, 7 / 10; 90 / 60, 40 / 40, 7 / 10."""
    rounds = [
        {ONE_ORDER: 100.0, OWN_ORDERS: 90.0, APART: 60.0},
        {ONE_ORDER: 50.0, OWN_ORDERS: 40.0, APART: 40.0},
        {ONE_ORDER: 10.0, OWN_ORDERS: 7.0, APART: 10.0},
    ]
    found = step_summary(rounds)[OWN_ORDERS]
    assert found["tokens_per_second"] == 40.0
    assert found["to_one_order"] == pytest.approx(0.8)
    assert found["to_apart"] == pytest.approx(1.0)


def test_the_order_of_the_rows_is_no_part_of_a_setting() -> None:
    assert all("data_seed" not in each.suite for each in settings(None, None))


def test_a_model_of_yours_is_a_second_setting() -> None:
    assert [each.name for each in settings(Path("models/field"), Path("rows.json"))] == ["lab", "field"]
