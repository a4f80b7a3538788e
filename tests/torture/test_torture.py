"""The torture table in short: a few seconds of faults for every row. `make torture` injects more of them."""

import json
from pathlib import Path

import pytest

from torture import harness, run

SEED = 1


@pytest.mark.torture
@pytest.mark.parametrize("name", harness.names())
def test_what_must_hold_does(name: str, tmp_path: Path) -> None:
    reason = harness.unavailable(name)
    if reason is not None:
        pytest.skip(reason)
    row = harness.module(name).ROW
    result = harness.module(name).run(amount=row.short, seed=SEED, folder=tmp_path)
    assert result.fault == row.fault
    assert result.num_faults > 0
    assert result.num_violations == 0, result.detail


@pytest.mark.parametrize("name", harness.names())
def test_every_row_has_a_test_that_plants_a_bug(name: str) -> None:
    assert (Path(__file__).parent / f"test_planted_{name}.py").is_file()


def test_counts_of_all_rounds_are_added_and_a_late_violation_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rigged:
        ROW = harness.Row(fault="rigged", must="hold", short=1, default=2, kept=3)

        @staticmethod
        def run(*, amount: int, seed: int, folder: Path) -> harness.FaultResult:
            is_bad = seed == 7
            return harness.FaultResult(
                fault="rigged", num_faults=amount, num_violations=int(is_bad), detail=f"seed {seed}"
            )

    for place in (run, harness):
        monkeypatch.setattr(place, "module", lambda _: Rigged)
    seconds = iter([0.0, 1.0, 2.0, 30.0, 30.0])
    monkeypatch.setattr(run.time, "monotonic", lambda: next(seconds))
    row = run.run_row("rigged", amount=2, seed=5, seconds=10.0)  # seeds 5, 6 and 7, then the time is over
    assert (row["num_faults"], row["num_violations"], row["num_rounds"]) == (6, 1, 3)
    assert row["detail"] == "seed 5; seed 7; 3 rounds"
    run.keep(tmp_path / "kept.json", {"rigged": row})
    run.keep(tmp_path / "kept.json", {"another": row})
    assert list(json.loads((tmp_path / "kept.json").read_text())) == ["another", "rigged"]
    assert "| rigged | 6 | hold | 1 |" in run.table({"rigged": row})


def test_progress_says_how_far_it_is_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 0.0, 3.0, 6.0, 7.0])
    assert list(harness.counted("abcd", total=4, clock=lambda: next(clock))) == list("abcd")
    # before the third item, 6 s have gone for two: 3 s each, two are left
    assert capsys.readouterr().err == "  2 of 4, about 6 s left\n"


def test_the_first_violations_are_named() -> None:
    assert harness.listed([]) == ""
    assert harness.listed(list("abcde")) == "VIOLATED: a; b; c (and 2 more)"
