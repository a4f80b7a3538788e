"""What a worker makes of scores that are not numbers."""

import math
from dataclasses import replace

import pytest

from lorastudy.records import Generation, Outcome, Pack, Score
from lorastudy.training.outcomes import PackRun

SCORE = Score(
    experiment_id="good",
    split="eval",
    metric="loss",
    version=1,
    unit="nats/token",
    value=1.0,
    items=(1.0, 1.0),
)


@pytest.fixture
def emitted():
    return []


@pytest.fixture
def run(tmp_path, emitted):
    return PackRun(
        pack=Pack(id="p", attempt=1, engine="packed", experiments=()), folder=tmp_path, emit=emitted.append
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("in_items", [True, False])
def test_an_arm_whose_last_step_broke_it_ends_as_diverged_and_takes_no_other_with_it(
    run, emitted, value, in_items
):
    bad = replace(SCORE, experiment_id="bad", **({"items": (1.0, value)} if in_items else {"value": value}))
    run.emit_open(
        [
            bad,
            SCORE,
            replace(bad, metric="perplexity"),
            Generation(experiment_id="bad", prompt="", reference="", answer=""),
        ]
    )
    assert [type(record).__name__ for record in emitted] == ["Outcome", "Score"]
    outcome = emitted[0]
    assert isinstance(outcome, Outcome)
    assert (outcome.experiment_id, outcome.status, outcome.failure_kind) == ("bad", "failed", "diverged")
    assert outcome.message == "eval loss was not finite"
    assert emitted[1] == SCORE
    assert run.ended == {"bad"}
