"""How the page on laws decides whether the lab agrees with a law."""

import importlib
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import documents


@pytest.fixture(scope="module")
def laws() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(documents.ROOT / "docs"))
        return importlib.import_module("laws")


@pytest.mark.parametrize(
    ("values", "expected", "outcome"),
    [
        ((-1.0, -1.1, -0.9), -1, "agrees"),
        ((-1.0, -1.1, -0.9), 1, "disagrees"),
        ((-1.0, 1.1, 0.1), 1, "cannot tell"),
    ],
)
def test_the_law_says_which_way_a_difference_goes(
    laws: ModuleType, values: tuple[float, ...], expected: int, outcome: str
) -> None:
    assert laws.Paired(values=values).outcome(expected) == outcome


def test_the_interval_is_scipys(laws: ModuleType) -> None:
    values = (0.3, -0.1, 0.25, 0.4, 0.05, 0.2)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert laws.Paired(values=values).interval == pytest.approx(tuple(expected))


@given(st.floats(-1, 1), st.floats(0.1, 5), st.floats(-3, 3))
def test_the_vertex_of_a_parabola_is_found(best: float, bend: float, height: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(documents.ROOT / "docs"))
        vertex = importlib.import_module("laws").vertex
    points = [(x, bend * (x - best) ** 2 + height) for x in (-2.0, -1.2, -0.5, 0.1, 0.7, 1.5, 2.0)]
    assert vertex(points) == pytest.approx(best, abs=1e-6)


def test_the_vertex_is_that_of_numpys_fit_through_the_three_lowest(laws: ModuleType) -> None:
    points = [(0.0, 3.0), (0.3, 1.0), (0.7, 1.4), (1.0, 5.0)]
    a, b, _ = np.polyfit([x for x, _ in points[:3]], [y for _, y in points[:3]], 2)
    assert laws.vertex(points) == pytest.approx(-b / (2 * a))
    assert laws.vertex([(0.0, 1.0), (1.0, 2.0), (2.0, 4.0)]) == 0.0
