"""Packs have the most arms that fit, or the fastest measured number of them."""

from dataclasses import dataclass, field

import pytest

from lorastudy.errors import StudyError
from lorastudy.planning.answers import Calibration, PacePoint
from lorastudy.planning.estimate import MARGIN, memory_size, within_margin
from lorastudy.planning.predictions import arms_per_pack

GIB = 1024**3


@dataclass
class Linear:
    """An estimator for which every arm takes 100 bytes on a base of 1,000."""

    experiments: tuple[int, ...]
    pace: Calibration | None = None
    asked: list[int] = field(default_factory=list)

    def calibration(self):
        return self.pace

    def fits(self, experiments, *, budget_bytes):
        self.asked.append(len(experiments))
        return 1000 + 100 * len(experiments) <= budget_bytes


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(5000, 7), (1700, 7), (1699, 4), (1399, 3), (1100, 1), (500, 1)],
)
def test_as_many_arms_as_fit(budget, expected):
    """Parts are even: where six fit, seven arms make parts of four and three, and four is as good as six."""
    size = arms_per_pack(Linear(experiments=tuple(range(7))), budget_bytes=budget)
    assert -(-7 // -(-7 // size)) == expected


def test_without_a_known_memory_all_train_together():
    assert arms_per_pack(Linear(experiments=(1, 2, 3)), budget_bytes=None) == 3


def test_the_fastest_measured_number_of_arms_is_taken_where_steps_were_timed():
    points = ((1, 100, 0.1), (2, 200, 0.1), (4, 400, 0.9))
    pace = Calibration(points=tuple(PacePoint(num_arms=k, num_tokens=n, seconds=s) for k, n, s in points))
    assert arms_per_pack(Linear(experiments=tuple(range(8)), pace=pace), budget_bytes=5000) == 2
    assert arms_per_pack(Linear(experiments=tuple(range(8)), pace=pace), budget_bytes=1100) == 1


def test_a_tenth_of_the_memory_is_left_free():
    assert MARGIN == 0.1
    assert within_margin(8 * GIB) == int(7.2 * GIB)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * GIB),
        ("80 GiB", 80 * GIB),
        ("512mb", 512 * 1024**2),
        ("1.5G", int(1.5 * GIB)),
        ("4096", 4096),
    ],
)
def test_sizes_as_people_write_them(text, expected):
    assert memory_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "8 gigabytes", "-8GB", "0GB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(StudyError, match="--vram"):
        memory_size(text)
