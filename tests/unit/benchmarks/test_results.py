"""The arithmetic of a row: medians, pairs, ratios, the noise floor, the share of the peak; and what a file holds."""

import json
from dataclasses import replace

import pytest

from benchmarks.results import (
    BASELINE,
    BASELINE_TUNED,
    OURS,
    Quality,
    Sample,
    free_path,
    largest_relative,
    noise_floor,
    paired,
    ratios,
    sides_of,
    spread_of,
    values_of,
    write_results,
)


def test_a_spread_is_median_and_ends():
    spread = spread_of([3.0, 1.0, 2.0, 10.0])
    assert (spread.median, spread.low, spread.high) == (2.5, 1.0, 10.0)  # (2 + 3) / 2
    assert spread.values == (3.0, 1.0, 2.0, 10.0)
    assert spread_of([]) is None


def test_ratios_are_taken_pair_by_pair_and_not_of_medians(samples):
    found = ratios(samples, of=BASELINE)
    assert found["train_seconds"]["values"] == (2.0, 2.0, 3.0)
    assert found["train_seconds"]["median"] == 2.0
    # whole process: 60/20, 80/20, 60/30; the ratio of the medians, 60/20 = 3, happens to be the same
    assert found["wall_seconds"]["values"] == (3.0, 4.0, 2.0)
    assert found["step_seconds"] is None
    # A slow round slows both sides: with rounds of 1 s and of 100 s the ratio stays 2; that of the medians would too
    # only if the same round were the middle one of both sides.
    uneven = [
        Sample(side=side, round=number, train_seconds=seconds)
        for side, times in ((OURS, (1.0, 100.0, 5.0)), (BASELINE, (2.0, 200.0, 1000.0)))
        for number, seconds in enumerate(times)
    ]
    assert ratios(uneven, of=BASELINE)["train_seconds"]["median"] == 2.0
    assert spread_of([2.0, 200.0, 1000.0]).median / spread_of([1.0, 100.0, 5.0]).median == 40.0


def test_only_rounds_that_have_both_sides_make_a_pair(samples):
    without = [sample for sample in samples if (sample.side, sample.round) != (BASELINE, 1)]
    assert paired(without, of=BASELINE, quantity="train_seconds") == [(10.0, 20.0), (12.0, 36.0)]
    assert paired(list(reversed(without)), of=BASELINE, quantity="train_seconds") == [
        (10.0, 20.0),
        (12.0, 36.0),
    ]
    assert paired(samples, of=BASELINE, quantity="step_seconds") == []


def test_values_come_by_round_and_are_all_or_none(samples):
    assert values_of(list(reversed(samples)), side=OURS, quantity="train_seconds") == [10.0, 11.0, 12.0]
    torn = [replace(samples[0], wall_seconds=None), *samples[1:]]
    assert values_of(torn, side=OURS, quantity="wall_seconds") == []
    assert sides_of(samples) == [OURS, BASELINE, BASELINE_TUNED]


def test_the_noise_floor_is_one_side_against_itself_in_one_round(samples):
    repeat = Sample(side=OURS, round=2, train_seconds=15.0, wall_seconds=24.0)
    # round 2 took 12 and 30: 15 / 12 = 1.25, and 30 / 24 = 1.25, the larger on top
    assert noise_floor(samples, [repeat]) == {
        "train_seconds": 1.25,
        "wall_seconds": 1.25,
        "step_seconds": None,
    }
    assert set(noise_floor(samples, []).values()) == {None}


def test_the_share_of_the_peak_counts_four_operations_for_each_parameter_and_token(make_row):
    body = make_row().to_json()
    ours = body["medians"][OURS]
    assert ours["tokens_per_second"] == 500.0  # 5,500 tokens over the median 11 s
    assert ours["peak_share"] == pytest.approx(0.2)  # 4 * 1,000 * 500 / 10,000,000
    theirs = body["medians"][BASELINE]
    assert theirs["tokens_per_second"] == 250.0  # over 22 s: the same tokens, as padding does not count
    assert body["quality"]["agrees"] is True


def test_equal_quality_is_a_largest_difference_within_the_tolerance():
    ours, theirs = {"a/eval": 2.002, "b/eval": 4.0}, {"a/eval": 2.0, "b/eval": 4.001}
    assert largest_relative(ours, theirs) == pytest.approx(0.001)  # 0.002 / 2, more than 0.001 / 4.001
    assert not Quality(compared="losses", tolerance=9e-4, largest_difference=0.001).agrees
    with pytest.raises(AssertionError):
        largest_relative({"a/eval": 2.0}, theirs)


def test_a_file_holds_what_was_measured_and_what_follows(tmp_path, make_row, make_file):
    body = json.loads(make_file(tmp_path, "x.json", [make_row()]).read_text(encoding="utf-8"))
    assert body.keys() == {"format", "made_at", "device", "machine", "versions", "commit", "rows"}
    (row,) = body["rows"]
    assert row.keys() == {
        "id", "setting", "samples", "repeats", "num_tokens", "num_parameters", "peak_flops", "quality", "medians",
        "ratios", "noise_floor",
    }  # fmt: skip
    assert [s["train_seconds"] for s in row["samples"] if s["side"] == BASELINE] == [20.0, 22.0, 36.0]
    assert row["ratios"].keys() == {BASELINE, BASELINE_TUNED}


def test_a_file_is_replaced_whole_and_never_holds_what_is_not_a_number(tmp_path, make_row):
    path = tmp_path / "x.json"
    write_results(path, {}, rows=[make_row()])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, {}, rows=[make_row(peak_flops=float("nan"))])
    assert path.read_bytes() == before


def test_an_earlier_run_of_the_same_day_stays(tmp_path):
    for expected in ("x.json", "x-2.json", "x-3.json"):
        path = free_path(tmp_path, stem="x")
        assert path.name == expected
        path.touch()
