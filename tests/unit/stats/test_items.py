"""Scores item by item as they come from a store, with the groups of rows that share a prompt."""

import pytest

from lorastudy.analysis.overview import scores_by_item
from lorastudy.protocol.records import DataSummary
from lorastudy.stats.items import ItemScores, common_weights, groups_of

GROUPS = (0, 0, 1, 2)


class StoredItems:
    """Stands for a tracker: it hands out the items that it was given."""

    def __init__(self, items):
        self.items = items

    def get_all_items(self, ids, *, split, metric):
        assert (split, metric) == ("test", "loss")
        return {key: value for key, value in self.items.items() if key in ids}


def summary(split, groups):
    return DataSummary(
        split=split,
        format="alpaca",
        num_rows=4,
        num_refused_rows=0,
        num_truncated_rows=0,
        num_tokens=40,
        num_completion_tokens=20,
        groups=groups,
    )


def test_scores_come_with_the_groups_that_their_run_recorded(make_result):
    results = [
        make_result("a", 0, data=(summary("eval", None), summary("test", GROUPS))),
        make_result("a", 1),
    ]
    tracker = StoredItems({"a/0": ((1.0, 2.0, 3.0, 4.0), (5, 6, 7, 8)), "a/1": ((1.0, 2.0), None)})
    found = scores_by_item(tracker, results, split="test", metric="loss")
    assert found == {
        "a/0": ItemScores(values=(1.0, 2.0, 3.0, 4.0), weights=(5, 6, 7, 8), groups=GROUPS),
        "a/1": ItemScores(values=(1.0, 2.0)),
    }


@pytest.mark.parametrize("split", ["eval", "eval_before", "eval_at_25"])
def test_scores_before_training_and_on_the_way_are_of_the_same_rows(make_result, split):
    result = make_result("a", 0, data=(summary("eval", GROUPS), summary("test", (9, 9, 9, 9))))
    assert groups_of(result, split=split) == GROUPS


@pytest.mark.parametrize(("num_items", "expected"), [(2, (0, 0)), (1, None), (4, GROUPS), (5, None)])
def test_exact_match_asks_the_first_rows(make_result, num_items, expected):
    tracker = StoredItems({"a/0": ((1.0,) * num_items, None)})
    results = [make_result("a", 0, data=(summary("test", GROUPS),))]
    found = scores_by_item(tracker, results, split="test", metric="loss")
    assert found["a/0"].groups == expected


def test_runs_whose_rows_are_grouped_differently_have_no_items_in_common():
    one, other = (ItemScores(values=(1.0,) * 4, groups=groups) for groups in (GROUPS, (0, 1, 1, 2)))
    assert common_weights([one, one]) is not None
    assert common_weights([one, other]) is None
    assert common_weights([ItemScores(values=(1.0,) * 4, groups=(3,) * 4)] * 2) is None
