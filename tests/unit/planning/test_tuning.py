"""What `tune` tries, from the pace of the machine alone; nothing is loaded."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.errors import StudyError
from lorastudy.planning import unfinished
from lorastudy.planning.tuning import (
    ARMS_IF_SHORT,
    FEWEST_STEPS,
    FINAL_RUNS,
    LADDER,
    OVERHEAD,
    SEARCH_RUNS,
    START_SECONDS,
    Pace,
    _too_little_time,
    hours_needed,
    scope_of,
    tune_request,
)
from lorastudy.running import tuned

LAB = {"base_model": "lab", "dataset_path": "data/my rows.csv"}


def pace(step_seconds: float = 0.1, *, num_steps: int = 1000, scoring_seconds: float = 0.0) -> Pace:
    return Pace(step_seconds=step_seconds, scoring_seconds=scoring_seconds, num_steps=num_steps)


def test_a_whole_training_costs_its_steps_its_scores_and_the_overhead() -> None:
    assert pace(scoring_seconds=20.0).run_seconds() == pytest.approx(OVERHEAD * 120)
    assert pace(scoring_seconds=20.0).steps_within(OVERHEAD * 120) == pytest.approx(1000, abs=1)


def test_more_time_tries_more_arms() -> None:
    """A run takes 130 s. Eight arms look for rates in 32 runs, for which half of the time must suffice."""
    assert scope_of(pace(), seconds=2 * 32 * 130 + 15, max_arms=8).num_arms == 8
    assert scope_of(pace(), seconds=2 * 31 * 130 + 15, max_arms=8).num_arms == 7
    # two arms need 8 runs for the search and 12 for a verdict: the verdict decides
    assert scope_of(pace(), seconds=2 * 12 * 130 + 16, max_arms=8).num_arms == 3


def test_with_less_time_trainings_are_cut_short() -> None:
    scope = scope_of(pace(), seconds=2000, max_arms=8)
    assert scope.num_arms == ARMS_IF_SHORT[0]
    assert FEWEST_STEPS <= scope.num_steps < 1000


def test_with_too_little_time_there_is_no_plan() -> None:
    assert scope_of(pace(step_seconds=5.0), seconds=3600, max_arms=8) is None


@given(
    step_seconds=st.floats(1e-3, 100), num_steps=st.integers(1, 10_000), scoring=st.floats(0, 100),
    seconds=st.floats(1, 1e6), max_arms=st.integers(2, len(LADDER)),
)  # fmt: skip
def test_the_search_and_a_verdict_fit_into_the_time(
    step_seconds: float, num_steps: int, scoring: float, seconds: float, max_arms: int
) -> None:
    here = pace(step_seconds, num_steps=num_steps, scoring_seconds=scoring)
    scope = scope_of(here, seconds=seconds, max_arms=max_arms)
    if scope is None:
        # the hours that are named as enough are more than were given
        assert hours_needed(here, num_steps=min(FEWEST_STEPS, num_steps)) * 3600 > seconds * (1 - 1e-9)
        return
    assert 2 <= scope.num_arms <= max_arms
    assert scope.num_steps <= num_steps
    half = (seconds - START_SECONDS) / 2
    run_seconds = here.run_seconds(scope.num_steps)
    assert max(SEARCH_RUNS * scope.num_arms, FINAL_RUNS) * run_seconds <= half * (1 + 1e-9)


def test_the_hours_that_are_named_are_enough() -> None:
    here = pace(step_seconds=7.0)
    nearly = 1 + 1e-9  # sums are rounded
    assert scope_of(here, seconds=3600 * hours_needed(here) * nearly, max_arms=2).num_steps == 1000
    short = scope_of(here, seconds=3600 * hours_needed(here, num_steps=FEWEST_STEPS) * nearly, max_arms=2)
    assert short.num_steps in {FEWEST_STEPS, FEWEST_STEPS + 1}


def test_a_refusal_speaks_of_no_more_steps_than_a_whole_training_has() -> None:
    words = _too_little_time(tune_request(LAB, hours=0.001), pace(num_steps=41))
    assert "for trainings of 41 steps;" in words
    assert "50 steps" not in words


def test_the_command_names_what_was_asked_for() -> None:
    request = tune_request({**LAB, "num_train_epochs": 2.0, "max_seq_length": None}, hours=0.5, vram="24GB")
    assert request.command == (
        "lorastudy tune --base-model lab --dataset 'data/my rows.csv' --num-epochs 2.0 --hours 0.5 --vram 24GB "
        "--margin 5% --metric loss --name tune_my_rows"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hours": 0}, "--hours: 0: give a number greater than 0"),
        ({"hours": float("inf")}, "--hours: inf"),
        ({"hours": 1, "margin": "much"}, "--margin: 'much' is neither a number"),
    ],
)
def test_values_that_cannot_be_used_are_refused(options: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        tune_request(LAB, **options)


def test_a_number_as_margin_is_in_the_metrics_unit() -> None:
    assert tune_request(LAB, hours=1, margin="0.02").margin == 0.02
    assert tune_request(LAB, hours=1).margin == "5%"


def test_the_file_of_an_own_metric_is_found_from_any_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tune_request(LAB, hours=1, metric="my.py:score").primary_metric == f"{tmp_path}/my.py:score"


def test_a_file_in_the_adapters_place_is_kept_and_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tuned, "original_folder", lambda _: tmp_path / "adapter")
    (tmp_path / "best").write_text("mine", encoding="utf-8")
    taken = SimpleNamespace(taken=object())
    with pytest.raises(StudyError, match=r"best: is not an adapter of lorastudy; move it away"):
        tuned.publish_best(taken, output=tmp_path)
    assert (tmp_path / "best").read_text(encoding="utf-8") == "mine"


def test_a_search_without_any_score_waits_for_no_finals(monkeypatch) -> None:
    """They cannot be decided, so a resumed store would offer the suite for ever."""
    design = SimpleNamespace(finals=None, standings=(), experiments=())
    monkeypatch.setattr(unfinished, "Designer", lambda **_: SimpleNamespace(by_now=lambda _: design))
    monkeypatch.setattr(unfinished, "missing_of", lambda *_, **__: ())
    monkeypatch.setattr(unfinished, "missing_scores", lambda *_, **__: ())
    suite = SimpleNamespace(time_budget_hours=1.0, metrics=())
    assert not unfinished._has_rounds_left(suite, None)
    design.standings = (object(),)
    assert unfinished._has_rounds_left(suite, None)
