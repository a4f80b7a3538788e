"""What a report says of the metrics that a suite adds."""

from types import SimpleNamespace
from typing import Any

from lorastudy.report.sections.metrics import WHERE_SCORED, metric_items
from lorastudy.suite.metrics import BUILT_IN, MetricDefinition


def analysis_of(*definitions: MetricDefinition) -> Any:
    return SimpleNamespace(criterion=SimpleNamespace(definitions=definitions))


def test_a_report_says_that_the_device_of_the_scoring_is_not_recorded() -> None:
    items = metric_items(analysis_of(BUILT_IN["token_f1"], BUILT_IN["contains"]))
    assert len(items) == 3
    assert items[-1] == (WHERE_SCORED,)
    assert metric_items(analysis_of()) == []
