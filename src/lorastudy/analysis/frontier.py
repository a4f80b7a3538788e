"""The efficiency frontier: arms that no other arm beats on both counts."""

from collections.abc import Mapping


def pareto_frontier(points: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Names of the points that no other point beats, ordered by the first coordinate. Lower is better.

    To beat is to be at least as good in both and better in one. These are means only: the frontier does not
    know the spread over seeds.
    """
    kept = [
        name for name, point in points.items() if not any(_beats(other, point) for other in points.values())
    ]
    return tuple(sorted(kept, key=lambda name: points[name]))


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other
