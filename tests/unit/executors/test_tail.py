"""How long a worker may be silent."""

import time

import pytest

from lorastudy.executors.tail import LEAST_SECONDS, NUM_MEDIANS, QUIET_SECONDS, HangTimeout
from lorastudy.protocol.records import Generation, PackStep

WORD = Generation(experiment_id="e", prompt="", reference="", answer="")


def step(number: int, *, seconds: float, num_steps: int = 10) -> PackStep:
    return PackStep(
        step=number, num_steps=num_steps, num_tokens=1, num_completion_tokens=1, seconds=seconds, arms=()
    )


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_in_training_the_median_step_is_the_measure(clock: Clock) -> None:
    timeout = HangTimeout(clock)
    for number, seconds in enumerate([30.0, 40.0, 500.0], start=1):
        timeout.record_seen(step(number, seconds=seconds))
    assert timeout.limit == NUM_MEDIANS * 40
    clock.now += NUM_MEDIANS * 40
    assert timeout.problem() is None
    clock.now += 1
    assert timeout.problem() == "hung: no step for 801 s, its median step took 40 s"
    timeout.record_seen(step(4, seconds=40))
    assert timeout.problem() is None


def test_quick_steps_have_a_floor(clock: Clock) -> None:
    timeout = HangTimeout(clock)
    timeout.record_seen(step(1, seconds=0.01))
    assert timeout.limit == LEAST_SECONDS


@pytest.mark.parametrize("last", [None, WORD, step(10, seconds=0.01)])
def test_before_and_after_training_silence_means_little(
    clock: Clock, last: Generation | PackStep | None
) -> None:
    timeout = HangTimeout(clock)
    if last is not None:
        timeout.record_seen(last)
    clock.now += QUIET_SECONDS
    assert timeout.problem() is None
    clock.now += 1
    assert "no record" in str(timeout.problem())


def test_a_wall_clock_that_jumps_makes_nobody_late(monkeypatch: pytest.MonkeyPatch) -> None:
    timeout = HangTimeout()
    timeout.record_seen(step(1, seconds=0.01))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e9)
    assert timeout.problem() is None
