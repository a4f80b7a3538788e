"""The ladder of rates, the published rule, and where a search begins."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.suite.base_model import read_config
from lorastudy.suite.rates import first_rungs, nearest_rung, parabola, published_rate, rate_of


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


@given(
    st.lists(st.floats(0.3, 2.0), min_size=2, max_size=2),
    st.floats(-0.45, 0.45),
    st.floats(0.05, 5.0),
    st.floats(-3.0, 3.0),
)
def test_a_parabola_is_found_as_a_least_squares_fit_finds_it(
    steps: list[float], place: float, curvature: float, lowest: float
) -> None:
    """Its twin is `numpy.polyfit` of the second degree, through the same three points."""
    x = [math.log(5e-3) - steps[0], math.log(5e-3), math.log(5e-3) + steps[1]]
    at = x[1] + place * min(steps)
    losses = [lowest + curvature * (one - at) ** 2 for one in x]
    found = parabola([(math.exp(one), loss) for one, loss in zip(x, losses, strict=True)])
    assert found is not None
    a, b, _ = np.polyfit(np.array(x) - x[1], losses, 2)
    assert math.log(found.rate) == pytest.approx(x[1] - b / (2 * a), abs=1e-6)
    assert math.log(found.rate) == pytest.approx(at, abs=1e-6)
    assert found.curvature == pytest.approx(curvature, rel=1e-6)


def test_the_spread_of_a_parabolas_lowest_point_is_that_of_noisy_losses():
    """Against 20,000 draws of three losses with noise: log rates -0.9, 0 and 0.7, noise a hundredth of the curvature."""
    rng = np.random.default_rng(0)
    x = np.array([-0.9, 0.0, 0.7])
    true = 2.0 * (x - 0.1) ** 2
    draws = true + rng.normal(0, 0.02, (20_000, 3))
    places = [
        math.log(found.rate) for row in draws if (found := parabola(list(zip(np.exp(x), row, strict=True))))
    ]
    exact = parabola(list(zip(np.exp(x), true, strict=True)))
    assert exact is not None
    assert exact.spread(0.02) == pytest.approx(float(np.std(places)), rel=0.03)


def test_a_rate_is_tuned_to_within_its_noise_the_shape_and_its_distance():
    """Steps of h = ln 2, losses .1 above the lowest: curvature .1 / h^2, and slopes of h / .4, 0 and -h / .4.

    Noise .01: .01 * sqrt(2) * h / .4 = .0245. Shape: .37 * h = .2565. exp(1.96 * sqrt(.0245^2 + .2565^2)) = 1.657.
    """
    found = parabola([(1e-3, 1.1), (2e-3, 1.0), (4e-3, 1.1)])
    assert found is not None
    assert found.spread(0.01) == pytest.approx(0.0245, abs=1e-4)
    assert found.factor(0.01, taken=2e-3) == pytest.approx(1.657, abs=1e-3)
    # Half the rate was taken: the factor is twice as large.
    assert found.factor(0.01, taken=1e-3) == pytest.approx(2 * 1.657, abs=2e-3)


@pytest.mark.parametrize(
    "losses",
    [(1.0, 1.0, 1.0), (1.0, 0.5, math.inf), (math.inf, 0.5, 1.0), (0.0, 1.0, 1.2), (0.0, 1.0, 0.0)],
    ids=["level", "diverged above", "diverged below", "bent down", "a hill"],
)
def test_without_a_lowest_point_there_is_no_parabola(losses: tuple[float, float, float]) -> None:
    assert parabola(list(zip((2e-3, 5e-3, 1e-2), losses, strict=True))) is None
