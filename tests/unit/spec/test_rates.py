"""The ladder of rates, the published rule, and where a search begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.spec.base_folder import read_config
from lorastudy.spec.rates import first_rungs, nearest_rung, published_rate, rate_of


def rates(config, *, num_steps=1000):
    return [rate_of(rung) for rung in first_rungs(config, num_steps=num_steps)]


def test_the_ladder_is_one_two_five():
    assert [rate_of(rung) for rung in range(-12, 1)] == [
        1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
    ]  # fmt: skip


@given(st.integers(-30, 6))
def test_every_rate_is_its_own_nearest(rung: int) -> None:
    assert nearest_rung(rate_of(rung)) == rung


@given(st.floats(1e-8, 5))
def test_no_rung_is_nearer_by_ratio(rate: float) -> None:
    nearest = nearest_rung(rate)
    far = max(rate_of(nearest) / rate, rate / rate_of(nearest))
    assert all(far <= max(rate_of(r) / rate, rate / rate_of(r)) for r in (nearest - 1, nearest + 1))


@pytest.mark.parametrize(
    ("hidden_size", "power", "num_steps", "rate"),
    [
        (2000, 0.781, 1000, 5e-4),  # 5e-5 * 10 * 1 ** p
        (4096, 0.781, 1000, 2.8564e-4),  # python -c "print(5e-4 * (2000 / 4096) ** 0.781)"
        (96, 0.781, 1000, 5.3567e-3),  # python -c "print(5e-4 * (2000 / 96) ** 0.781)"
        (896, 0.0775, 1000, 5.3210e-4),  # python -c "print(5e-4 * (2000 / 896) ** 0.0775)"
        (2000, 0.781, 99, 7.5e-4),  # fifteen times below a hundred steps
        (2000, 0.781, None, 5e-4),
    ],
)
def test_the_published_rule(hidden_size: int, power: float, num_steps: int | None, rate: float) -> None:
    found = published_rate(hidden_size=hidden_size, power=power, num_steps=num_steps)
    assert found == pytest.approx(rate, rel=1e-4)


def test_a_family_that_the_rule_knows_starts_with_a_rate_to_each_side():
    assert rates(read_config("lab")) == [2e-3, 5e-3, 1e-2]  # 5.36e-3 is nearest to 5e-3
    assert rates({"model_type": "qwen2", "hidden_size": 896}) == [2e-4, 5e-4, 1e-3]
    assert rates({"model_type": "llama", "hidden_size": 4096}) == [
        1e-4,
        2e-4,
        5e-4,
    ]  # 2.86e-4 is nearest to 2e-4


def test_an_unknown_family_starts_wide():
    """At 2,560 Llama's power gives 4.12e-4 and Qwen's 4.90e-4: both nearest to 5e-4, then two to each side."""
    assert rates({"model_type": "phi", "hidden_size": 2560}) == [1e-4, 2e-4, 5e-4, 1e-3, 2e-3]
    assert rates(None) == [1e-4, 2e-4, 5e-4, 1e-3, 2e-3]
    # at 96 from 5e-4 * 20.8 ** .0775 = 6.3e-4 to 5.4e-3, each to its nearest, then two more
    assert rates({"model_type": "own", "hidden_size": 96}) == [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2]


def test_few_steps_start_higher():
    config = {"model_type": "llama", "hidden_size": 1500}
    assert rates(config, num_steps=100) == [2e-4, 5e-4, 1e-3]  # 6.26e-4
    assert rates(config, num_steps=99) == [5e-4, 1e-3, 2e-3]  # 9.39e-4
