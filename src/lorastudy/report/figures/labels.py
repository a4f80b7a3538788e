"""Names beside points, moved out of each other's way."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

#: Offsets in points with the alignment that goes with them, tried in this order. Above-left comes late: there the
#: frontier's step comes down to its point.
_PLACES: tuple[tuple[float, float, str], ...] = (
    (8, 4, "left"),
    (8, -14, "left"),
    (-8, -14, "right"),
    (-8, 4, "right"),
    (8, 20, "left"),
    (-8, 20, "right"),
    (8, -30, "left"),
    (-8, -30, "right"),
)
_MARKER_PIXELS = 6.0


def place_labels(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name beside its point, at the first place that touches no other name and no point.

    Where no place is free the first is taken: a name that overlaps is still better than none.
    """
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    dots = [_around(*axes.transData.transform((x, y))) for x, y, _ in points]
    taken: list[Bbox] = []
    for index, (x, y, name) in enumerate(points):
        others = dots[:index] + dots[index + 1 :] + taken
        taken.append(_place(axes, (x, y), name=name, others=others))


def _place(axes: Axes, point: tuple[float, float], *, name: str, others: Sequence[Bbox]) -> Bbox:
    boxes: list[Bbox] = []
    for dx, dy, align in (*_PLACES, _PLACES[0]):
        label = axes.annotate(name, point, xytext=(dx, dy), textcoords="offset points", ha=align)
        box = label.get_window_extent()
        free = axes.bbox.padded(12).containsx(box.x0) and axes.bbox.padded(12).containsx(box.x1)
        if (free and not any(box.overlaps(other) for other in others)) or len(boxes) == len(_PLACES):
            return box
        boxes.append(box)
        label.remove()
    raise AssertionError("the last place is always taken")


def _around(x: float, y: float) -> Bbox:
    return Bbox.from_extents(x - _MARKER_PIXELS, y - _MARKER_PIXELS, x + _MARKER_PIXELS, y + _MARKER_PIXELS)
