"""What the benchmark of one seed per pack makes of its rounds."""

import pytest

from benchmarks.seeds_per_pack import SIDES, summary


def a_round(side: str, seconds: float) -> dict:
    keys = ("train_seconds", "load_seconds", "eval_seconds", "wall_seconds", "cpu_seconds")
    return {"side": side, "num_packs": 6} | dict.fromkeys(keys, seconds)


def test_steps_a_second_are_of_the_median_round_of_one_side() -> None:
    rounds = [a_round("one seed", seconds) for seconds in (2.0, 90.0, 4.0)] + [a_round("all seeds", 1.0)]
    found = summary(rounds, side="one seed", num_run_steps=1200)
    assert found["train_seconds"] == 4.0
    assert found["run_steps_per_second"] == pytest.approx(300.0)


def test_the_sides_differ_in_the_order_of_the_rows_alone() -> None:
    assert SIDES == {"all seeds": {"data_seed": 0}, "one seed": {}}
