"""The two-way estimate against statsmodels' analysis of variance, scipy's t test and hand arithmetic."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.anova import anova_lm

from lorastudy.analysis.overview import scores_by_item
from lorastudy.protocol.records import DataSummary
from lorastudy.stats.twoway import ItemScores, common_weights, groups_of, paired_items, seeds_only, two_way

STORED_GROUPS = (0, 0, 1, 2)


def drawn(*, num_seeds=5, num_items=12, seeds=0.3, items=0.5, cells=0.4, rng=0):
    draw = np.random.default_rng(rng)
    return (
        1.0
        + draw.normal(0, seeds, (num_seeds, 1))
        + draw.normal(0, items, (1, num_items))
        + draw.normal(0, cells, (num_seeds, num_items))
    )


def test_parts_with_equal_weights_are_the_mean_squares_of_an_analysis_of_variance():
    differences = drawn()
    num_seeds, num_items = differences.shape
    table = pd.DataFrame(
        [(s, i, d) for (s, i), d in np.ndenumerate(differences)], columns=["seed", "item", "difference"]
    )
    squares = anova_lm(smf.ols("difference ~ C(seed) + C(item)", table).fit())["mean_sq"]
    estimate, cells = two_way(differences, np.full(num_items, 3.0)), num_seeds * num_items
    assert estimate.mean == pytest.approx(differences.mean())
    assert estimate.seed_variance == pytest.approx(squares["C(seed)"] / cells)
    assert estimate.item_variance == pytest.approx(squares["C(item)"] / cells)
    assert estimate.cell_variance == pytest.approx(squares["Residual"] / cells)


def test_weighted_parts_by_hand():
    # Weights 1, 3, shares .25, .75. Seed means .25 x 1 + .75 x 2 = 1.75 and .25 x 3 + .75 x 6 = 5.25; mean 3.5.
    # Item means 2 and 4. V(seeds) = (1.75**2 + 1.75**2) / (2 x 1) = 3.0625.
    # V(items) = 2 / 1 x ((.25 x -1.5)**2 + (.75 x .5)**2) = 2 x (.140625 + .140625) = .5625.
    # Left over, seed 1: 1 - 1.75 - 2 + 3.5 = .75 and 2 - 1.75 - 4 + 3.5 = -.25; seed 2: -.75 and .25.
    # V(cells) = 2 / 1 x 2 x ((.25 x .75)**2 + (.75 x .25)**2) / (2 x 1) = 2 x .0703125 = .140625.
    estimate = two_way(np.array([[1.0, 2.0], [3.0, 6.0]]), np.array([1.0, 3.0]))
    assert estimate.mean == 3.5
    assert estimate.seed_variance == pytest.approx(3.0625)
    assert estimate.item_variance == pytest.approx(0.5625)
    assert estimate.cell_variance == pytest.approx(0.140625)
    # 3.0625 + .5625 - .140625. In the degrees the seeds' part counts (2 + 3) / (2 - 1) = 5 times: 15.3125; items .421875.
    assert estimate.variance == pytest.approx(3.484375)
    assert estimate.degrees_of_freedom == pytest.approx(15.734375**2 / (15.3125**2 + 0.421875**2))


def test_interval_and_p_values_are_those_of_t_with_satterthwaites_degrees():
    estimate = two_way(drawn(), np.ones(12))
    t = stats.t(df=estimate.degrees_of_freedom, loc=estimate.mean, scale=estimate.standard_error)
    assert estimate.interval() == pytest.approx(t.interval(0.95))
    assert estimate.p_value() == pytest.approx(2 * min(t.cdf(0), t.sf(0)))
    assert estimate.p_below(1.2) == pytest.approx(t.sf(1.2))


def test_degrees_run_from_seeds_to_items():
    noisy_seeds = two_way(drawn(seeds=9.0, items=0.01, cells=0.01), np.ones(12))
    noisy_items = two_way(drawn(seeds=0.001, items=9.0, cells=0.001), np.ones(12))
    assert noisy_seeds.degrees_of_freedom == pytest.approx(4, abs=0.01)
    assert noisy_items.degrees_of_freedom == pytest.approx(11, abs=0.01)


def test_items_that_differ_by_nothing_but_chance_take_nothing_off():
    # The cells' part exceeds the items' in about half of such studies.
    estimates = [two_way(drawn(items=0.0, cells=1.0, rng=rng), np.ones(12)) for rng in range(50)]
    assert all(estimate.variance >= estimate.seed_variance for estimate in estimates)
    assert any(estimate.items_alone == 0.0 for estimate in estimates)


GROUPS = (4, 1, 1, 4, 2, 2, 2, 9, 9, 4, 1, 9)


def parts_of_clusters_by_loops(differences, weights, *, groups):
    """The obvious twin: sums over the items of each group, one after another."""
    num_seeds = len(differences)
    total = sum(weights)
    seed_means = [sum(w * d for w, d in zip(weights, row, strict=True)) / total for row in differences]
    mean = sum(seed_means) / num_seeds
    items = dict.fromkeys(groups, 0.0)
    cells = {(seed, group): 0.0 for seed in range(num_seeds) for group in groups}
    for i, (weight, group) in enumerate(zip(weights, groups, strict=True)):
        item_mean = sum(row[i] for row in differences) / num_seeds
        items[group] += weight / total * (item_mean - mean)
        for seed, row in enumerate(differences):
            cells[seed, group] += weight / total * (row[i] - seed_means[seed] - item_mean + mean)
    correction = len(items) / (len(items) - 1)
    return (
        correction * sum(part**2 for part in items.values()),
        correction * sum(part**2 for part in cells.values()) / (num_seeds * (num_seeds - 1)),
    )


def test_groups_of_items_are_added_up_before_they_are_squared():
    differences, weights = drawn(), np.arange(1.0, 13.0)
    estimate = two_way(differences, weights, groups=GROUPS)
    items, cells = parts_of_clusters_by_loops(differences, weights, groups=GROUPS)
    assert estimate.item_variance == pytest.approx(items)
    assert estimate.cell_variance == pytest.approx(cells)
    assert (estimate.num_items, estimate.num_groups) == (12, 4)
    assert estimate.mean == two_way(differences, weights).mean
    assert estimate.seed_variance == two_way(differences, weights).seed_variance


def test_item_part_of_groups_is_statsmodels_cluster_robust_variance():
    # Of the item means on a constant, weighted: WLS with clusters, and its own factor (m - 1) / (m - k) for k = 1 undone.
    differences, weights = drawn(), np.arange(1.0, 13.0)
    fit = sm.WLS(differences.mean(axis=0), np.ones(12), weights=weights).fit(
        cov_type="cluster", cov_kwds={"groups": np.array(GROUPS), "use_correction": True}
    )
    assert two_way(differences, weights, groups=GROUPS).item_variance == pytest.approx(fit.cov_params()[0, 0])


def test_items_each_in_a_group_of_its_own_change_nothing():
    differences, weights = drawn(), np.arange(1.0, 13.0)
    alone, numbered = two_way(differences, weights), two_way(differences, weights, groups=np.arange(12)[::-1])
    for name in ("mean", "seed_variance", "item_variance", "cell_variance", "num_groups"):
        assert getattr(numbered, name) == pytest.approx(getattr(alone, name))


def test_copies_of_rows_in_their_groups_are_no_new_evidence():
    differences = drawn()
    copied = two_way(np.tile(differences, 3), np.ones(36), groups=np.tile(np.arange(12), 3))
    alone = two_way(differences, np.ones(12))
    assert copied.interval() == pytest.approx(alone.interval())
    taken_as_new = two_way(np.tile(differences, 3), np.ones(36))
    assert taken_as_new.items_alone < 0.5 * alone.items_alone


@pytest.mark.parametrize(
    "differences", [[0.11, 0.08, 0.13, 0.02], [-3.0, 1.0], [5.0, 5.1, 4.9, 5.0, 5.2, 5.1]]
)
def test_seeds_alone_give_scipys_t_test(differences):
    estimate, expected = seeds_only(differences), stats.ttest_1samp(differences, 0.0)
    assert estimate.p_value() == pytest.approx(expected.pvalue, rel=1e-9)
    assert estimate.interval() == pytest.approx(expected.confidence_interval(0.95))
    assert estimate.p_below(0.1) == pytest.approx(
        stats.ttest_1samp(differences, 0.1, alternative="less").pvalue
    )


def test_a_batch_gives_what_each_study_gives():
    studies = np.stack([drawn(rng=rng) for rng in range(4)])
    weights = np.random.default_rng(9).integers(1, 9, (4, 12)).astype(float)
    batch = two_way(studies, weights)
    for index in range(4):
        assert batch.p_value()[index] == pytest.approx(two_way(studies[index], weights[index]).p_value())


def test_pairs_are_laid_out_by_seed_and_item():
    ours = [ItemScores(values=(1.0, 2.0), weights=(1, 3)), ItemScores(values=(3.0, 4.0), weights=(1, 3))]
    theirs = [ItemScores(values=(0.0, 1.0), weights=(1, 3)), ItemScores(values=(1.0, 1.0), weights=(1, 3))]
    pairs = paired_items(ours, theirs)
    assert pairs.differences.tolist() == [[1.0, 1.0], [2.0, 3.0]]
    assert pairs.weights.tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    "other",
    [None, ItemScores(values=(1.0, 2.0, 3.0)), ItemScores(values=(1.0, 2.0), weights=(1, 2))],
)
def test_runs_without_the_same_items_have_no_pairs_of_items(other):
    one = ItemScores(values=(1.0, 2.0))
    assert paired_items([one, one], [one, other]) is None
    assert paired_items([ItemScores(values=(1.0,))] * 2, [ItemScores(values=(2.0,))] * 2) is None


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
        make_result("a", 0, data=(summary("eval", None), summary("test", STORED_GROUPS))),
        make_result("a", 1),
    ]
    tracker = StoredItems({"a/0": ((1.0, 2.0, 3.0, 4.0), (5, 6, 7, 8)), "a/1": ((1.0, 2.0), None)})
    found = scores_by_item(tracker, results, split="test", metric="loss")
    assert found == {
        "a/0": ItemScores(values=(1.0, 2.0, 3.0, 4.0), weights=(5, 6, 7, 8), groups=STORED_GROUPS),
        "a/1": ItemScores(values=(1.0, 2.0)),
    }


@pytest.mark.parametrize("split", ["eval", "eval_before", "eval_at_25"])
def test_scores_before_training_and_on_the_way_are_of_the_same_rows(make_result, split):
    result = make_result("a", 0, data=(summary("eval", STORED_GROUPS), summary("test", (9, 9, 9, 9))))
    assert groups_of(result, split=split) == STORED_GROUPS


@pytest.mark.parametrize(("num_items", "expected"), [(2, (0, 0)), (1, None), (4, STORED_GROUPS), (5, None)])
def test_exact_match_asks_the_first_rows(make_result, num_items, expected):
    tracker = StoredItems({"a/0": ((1.0,) * num_items, None)})
    results = [make_result("a", 0, data=(summary("test", STORED_GROUPS),))]
    found = scores_by_item(tracker, results, split="test", metric="loss")
    assert found["a/0"].groups == expected


def test_runs_whose_rows_are_grouped_differently_have_no_items_in_common():
    one, other = (ItemScores(values=(1.0,) * 4, groups=groups) for groups in (STORED_GROUPS, (0, 1, 1, 2)))
    assert common_weights([one, one]) is not None
    assert common_weights([one, other]) is None
    assert common_weights([ItemScores(values=(1.0,) * 4, groups=(3,) * 4)] * 2) is None


def test_an_item_that_a_run_has_no_value_for_is_left_out_of_all():
    ours = [ItemScores(values=(1.0, None, 3.0, 5.0), weights=(1, 2, 3, 4)) for _ in range(2)]
    theirs = [
        ItemScores(values=(0.0, 9.0, 1.0, None), weights=(1, 2, 3, 4)),
        ItemScores(values=(0.5, 9.0, 1.0, 2.0), weights=(1, 2, 3, 4)),
    ]
    pairs = paired_items(ours, theirs)
    assert pairs is not None
    assert pairs.has_gaps
    assert pairs.weights.tolist() == [1.0, 3.0]
    assert pairs.differences.tolist() == [[1.0, 2.0], [0.5, 2.0]]
    assert pairs.by_seed == pytest.approx([7 / 4, 6.5 / 4])
    only_one = [ItemScores(values=(1.0, None, None, None), weights=(1, 2, 3, 4))]
    assert paired_items(only_one, theirs[1:]) is None
