"""When a checkpoint is due, and what the time between steps counts as."""

import pytest

from lorastudy.protocol.records import PackStep
from lorastudy.train.timing import MAX_CHECKPOINT_SHARE, CheckpointSchedule, Stopwatch, TrainingTimes


def run(schedule: CheckpointSchedule, *, num_steps: int, step_seconds: float, cost: float) -> list[int]:
    """After which steps a checkpoint was written."""
    now = 0.0
    times = TrainingTimes(watch=Stopwatch(clock=lambda: now))
    written = []
    for step in range(1, num_steps + 1):
        now += step_seconds
        times.step(10)
        if schedule.is_due(times):
            written.append(step)
            now += cost
            schedule.took(cost, num_bytes=5, times=times)
            times.watch.lap()
    assert times.train_seconds == pytest.approx(num_steps * step_seconds)
    return written


def test_steps_or_minutes_whichever_comes_first() -> None:
    assert run(
        CheckpointSchedule(every_steps=10, every_seconds=None), num_steps=35, step_seconds=1, cost=0
    ) == [10, 20, 30]  # fmt: skip
    assert run(
        CheckpointSchedule(every_steps=None, every_seconds=12), num_steps=35, step_seconds=5, cost=0
    ) == list(range(3, 36, 3))  # fmt: skip
    assert run(
        CheckpointSchedule(every_steps=20, every_seconds=15), num_steps=45, step_seconds=1, cost=0
    ) == [15, 30, 45]  # fmt: skip
    assert (
        run(CheckpointSchedule(every_steps=None, every_seconds=None), num_steps=99, step_seconds=99, cost=0)
        == []
    )


@pytest.mark.parametrize("cost", [0.01, 0.3, 2.0, 30.0])
def test_a_slow_disk_makes_the_interval_longer_so_that_the_share_holds(cost: float) -> None:
    schedule = CheckpointSchedule(every_steps=1, every_seconds=None)
    written = run(schedule, num_steps=5000, step_seconds=1, cost=cost)
    assert schedule.num_checkpoints == len(written) > 1
    assert schedule.profile().seconds == pytest.approx(len(written) * cost)
    # Only the very first, of whose cost nothing is known yet, may be more than its share; later ones make up for it.
    assert schedule.seconds <= MAX_CHECKPOINT_SHARE * 5000
    # And it is not rarer than that: another one would soon be due.
    assert schedule.seconds >= MAX_CHECKPOINT_SHARE * 5000 - 2 * cost or len(written) == 5000


def test_steps_of_an_earlier_attempt_count_as_training() -> None:
    times = TrainingTimes()
    for step in (1, 2):
        times.carry(
            PackStep(step=step, num_steps=3, num_tokens=40, num_completion_tokens=9, seconds=2.0, arms=())
        )
    assert (times.train_seconds, times.median_step_seconds, times.tokens_per_second) == (4.0, 2.0, 20.0)


def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(time, "time", lambda: -1e9)
    assert 0 <= Stopwatch().lap() < 60
