"""A margin that is a share of the gain: what is tested, by hand, and that the noise of the gain counts."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lorastudy.analysis.overview import Criterion, analyse
from lorastudy.stats.items import ItemScores
from lorastudy.stats.noninferiority import Losses, retention
from lorastudy.stats.summary import LOSS, LOSS_BEFORE
from lorastudy.stats.twoway import two_way
from lorastudy.store.views import ScoreValue
from tuned import tuned_study

BASE = 3.0
#: The reference's loss by seed: its gain over the base model varies much, from 1.5 to 2.5.
REFERENCE = (1.0, 1.5, 0.5, 1.2, 0.8, 1.0)
NOISE = (0.0, 0.01, -0.01, 0.005, -0.005, 0.002)


def behind(make_result, gap, *, before=BASE):
    """An arm that is behind the reference by nearly the same on every seed."""

    def scores(loss):
        values = {LOSS.key: loss} | ({} if before is None else {LOSS_BEFORE.key: before})
        return {
            key: ScoreValue(value=value, unit="nats", version=1, num_items=9) for key, value in values.items()
        }

    results = []
    for seed, (loss, noise) in enumerate(zip(REFERENCE, NOISE, strict=True)):
        for rank, own in ((4, loss + gap + noise), (8, loss)):
            settings = {"lora_rank": rank, "lora_alpha": "2r"}
            options = {"experiment_type": "rank_ablation", "settings": settings, "scores": scores(own)}
            results.append(make_result(f"r{rank}", seed, **options))
    return tuned_study(results)


def compared(study, **criterion):
    (comparison,) = analyse(study, criterion=Criterion(**criterion)).primary_comparisons
    return comparison


def test_what_is_tested_is_the_difference_less_the_share_of_the_gain(make_result):
    comparison = compared(behind(make_result, 0.2), margin=1.0, margin_share=0.5)
    # c = A - .5 R - .5 B, for each seed
    c = [r + 0.2 + x - 0.5 * r - 0.5 * BASE for r, x in zip(REFERENCE, NOISE, strict=True)]
    assert float(comparison.kept.mean) == pytest.approx(np.mean(c))
    assert comparison.no_worse_p == pytest.approx(stats.ttest_1samp(c, 0, alternative="less").pvalue)
    assert comparison.no_worse_sign_flip_p == pytest.approx(1 / 64)
    assert comparison.margin == pytest.approx(0.5 * (BASE - np.mean(REFERENCE)))
    assert comparison.verdict == "as good within the margin"


def test_the_noise_of_the_gain_counts(make_result):
    study = behind(make_result, 0.9)
    assert compared(study, margin=1.0).verdict == "as good within the margin"
    by_share = compared(study, margin=1.0, margin_share=0.5)
    assert not by_share.no_worse
    # that it is behind is shown all the same
    assert by_share.winner == "r8"


def test_what_would_decide_takes_the_noise_of_the_gain_too(make_result):
    study = behind(make_result, 0.9)
    pairs = [run for run in study.results if run.seed < 3 or run.seed in study.tuning_seeds]
    few = replace(tuned_study([run for run in pairs if run.seed not in study.tuning_seeds]))
    fixed, by_share = compared(few, margin=1.0), compared(few, margin=1.0, margin_share=0.5)
    assert fixed.verdict == by_share.verdict == "cannot tell"
    assert by_share.more.num_seeds >= fixed.more.num_seeds


@pytest.mark.parametrize(
    ("before", "why"), [(None, "the base model was not scored"), (0.4, "nothing was gained")]
)
def test_without_a_gain_there_is_no_margin(make_result, before, why):
    comparison = compared(behind(make_result, 0.2, before=before), margin=1.0, margin_share=0.5)
    assert comparison.no_worse_p is None, why
    assert comparison.margin is None
    assert not comparison.no_worse


def test_items_are_combined_as_seeds_are():
    draw = np.random.default_rng(3)
    arm, reference, base = (mean + draw.normal(0, 0.1, (4, 30)) for mean in (1.1, 1.0, 3.0))
    weights = tuple(int(w) for w in draw.integers(1, 9, 30))
    shares = np.array(weights) / sum(weights)

    def side(values):
        items = [ItemScores(values=tuple(row), weights=weights) for row in values]
        return Losses(by_seed=dict(enumerate(values @ shares)), items=items)

    found = retention(arm=side(arm), reference=side(reference), start=side(base), seeds=range(4), share=0.2)
    expected = two_way(arm - 0.8 * reference - 0.2 * base, np.array(weights, dtype=float))
    for part in ("mean", "seed_variance", "item_variance", "cell_variance"):
        assert float(getattr(found.estimate, part)) == pytest.approx(float(getattr(expected, part)))
    assert found.estimate.num_items == 30
    assert np.mean(found.by_seed) == pytest.approx(float(expected.mean))
