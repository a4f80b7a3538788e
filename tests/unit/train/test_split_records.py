"""The part of earlier records that a pack takes over when it goes on with fewer arms."""

from lorastudy.protocol.records import ArmStep, PackStep
from lorastudy.train.checkpointing import part_of


def test_a_step_keeps_its_share_of_everything_that_is_a_sum_over_arms() -> None:
    arms = tuple(ArmStep(experiment_id=key, loss=1.0, learning_rate=0.1, grad_norm=1.0) for key in "abcd")
    step = PackStep(step=3, num_steps=9, num_tokens=400, num_completion_tokens=120, seconds=2.0, arms=arms)
    kept = part_of(step, frozenset("ac"), num_steps=8)
    assert kept == PackStep(
        step=3, num_steps=8, num_tokens=200, num_completion_tokens=60, seconds=1.0, arms=(arms[0], arms[2])
    )
    assert part_of(step, frozenset("z"), num_steps=8) is None
