"""What a run is worth to the search for a learning rate."""

from lorastudy.planning.design import merit
from lorastudy.protocol.scoring import FailedRow
from lorastudy.stats.summary import metric_of
from lorastudy.store.views import FailedRows, ScoreValue
from lorastudy.suite.metrics import BUILT_IN
from lorastudy.suite.rate_search import DIVERGED

F1 = metric_of(BUILT_IN["token_f1"])


def run(make_result, value, *, num_failed):
    loss = ScoreValue(value=1.5, unit="nats", version=1, num_items=9)
    scores = {("eval", "loss"): loss}
    if value is not None:
        scores["eval", "token_f1"] = ScoreValue(
            value=value, unit="share", version=1, num_items=9 - num_failed
        )
    rows = tuple(FailedRow(where=f"rows:{number}", message="no number") for number in range(num_failed))
    failed = {("eval", "token_f1"): FailedRows(num_rows=9, version=1, rows=rows)} if rows else {}
    return make_result("a", 0, scores=scores, failed_rows=failed)


def test_a_run_with_fewer_failed_rows_is_better_whatever_its_mean(make_result):
    good, poor = run(make_result, 0.2, num_failed=0), run(make_result, 1.0, num_failed=8)
    assert merit(good, F1) == (0, -0.2, 1.5)
    assert merit(poor, F1) == (8, -1.0, 1.5)
    assert merit(good, F1) < merit(poor, F1)


def test_a_run_without_any_value_is_as_bad_as_one_that_diverged(make_result):
    assert merit(run(make_result, None, num_failed=9), F1) == DIVERGED
    assert merit(make_result("a", 0, None, status="failed", failure_kind="diverged"), F1) == DIVERGED
    assert merit(make_result("a", 0, None, status="failed", failure_kind="error"), F1) is None
