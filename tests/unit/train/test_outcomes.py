"""What a worker makes of scores that are not numbers."""

import math
from dataclasses import replace

import pytest

from lorastudy.protocol.records import Generation, Outcome, Pack, Score
from lorastudy.train.outcomes import PackRun, failed

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


def test_a_failure_that_quotes_a_traceback_says_what_it_ends_with_and_keeps_the_whole():
    told = 'a child died:\nTraceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\nValueError: no'
    outcome = failed("bad", "error", error=RuntimeError(told))
    assert outcome.message == "ValueError: no"
    assert outcome.traceback is not None
    assert told in outcome.traceback
    assert failed("bad", "error", error=RuntimeError()).message == "RuntimeError"
    assert failed("bad", "user", error=ValueError("one\n  two")).message == "one\n  two"
