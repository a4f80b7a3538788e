"""The finals of a suite with a time budget: who takes part, when they begin, and that a resumed suite repeats them."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.executors import WorkerExit
from lorastudy.executors.executor import Event
from lorastudy.planning.design import Designer
from lorastudy.protocol.records import Pack, Record, Score
from lorastudy.running.finals import (
    CLEARLY_BEHIND,
    MAX_FINALISTS,
    SEARCH_SHARE,
    Candidate,
    choose_finalists,
    is_behind,
    tolerance_of,
)
from lorastudy.running.phase_runner import Callbacks
from lorastudy.running.results import seconds_of_work
from lorastudy.running.study import StudyOutcome, run_study
from lorastudy.store import ExperimentTracker
from lorastudy.suite.question import MIN_SEEDS, Margin
from lorastudy.suite.rate_search import Merit
from lorastudy.suite.suite import Suite
from lorastudy.suite.suite_file import load_suite
from planned import options_in, planned
from tests.unit.running.test_phase_runner import completed
from tests.unit.running.test_search_phases import Curves, environment


def candidate(arm: int, cost: float, *, parameters: int = 1, failed: int = 0) -> Candidate:
    return Candidate(arm=arm, learning_rate=1e-3, merit=Merit(failed, cost, cost), num_parameters=parameters)


def arms(chosen: tuple[list[Candidate], int]) -> list[int]:
    return [one.arm for one in chosen[0]]


def test_the_best_comes_first_then_cheaper_arms_then_the_nearest() -> None:
    found = [
        candidate(0, 1.00, parameters=8),
        candidate(1, 1.02, parameters=64),
        candidate(2, 1.09, parameters=2),
        candidate(3, 1.30, parameters=1),
    ]
    chosen = choose_finalists(found, tolerance=0.1, num_runs=30, max_seeds=20)
    assert arms(chosen) == [0, 2, 1]  # arm 3 is clearly behind; 2 is cheaper than the best, 1 dearer
    assert chosen[1] == 10


def test_the_nearest_takes_part_if_all_others_are_clearly_behind() -> None:
    found = [candidate(0, 3.0), candidate(1, 1.0), candidate(2, 2.0)]
    assert arms(choose_finalists(found, tolerance=0.1, num_runs=100, max_seeds=8)) == [1, 2]


@pytest.mark.parametrize(
    ("num_runs", "number", "num_seeds"),
    [
        (48, 4, 12),  # four arms, twelve seeds each
        (24, 4, 6),
        (23, 3, 7),  # four arms would have five seeds each
        (17, 2, 8),
        (5, 2, 2),  # too few for a verdict: two arms all the same
        (0, 2, 1),
    ],
)
def test_as_many_arms_take_part_as_can_have_six_seeds(num_runs: int, number: int, num_seeds: int) -> None:
    found = [candidate(arm, 1 + arm / 100) for arm in range(6)]
    chosen, seeds = choose_finalists(found, tolerance=1.0, num_runs=num_runs, max_seeds=12)
    assert (len(chosen), seeds) == (number, num_seeds)


@given(
    costs=st.lists(
        st.tuples(st.floats(0.1, 9), st.integers(1, 99), st.integers(0, 2)), min_size=1, max_size=9
    ),
    tolerance=st.floats(0, 5) | st.just(math.inf),
    num_runs=st.integers(0, 200),
    max_seeds=st.integers(1, 20),
)
def test_finals_keep_to_the_time_left_and_leave_out_only_what_is_behind(
    costs: list[tuple[float, int, int]], tolerance: float, num_runs: int, max_seeds: int
) -> None:
    found = [candidate(arm, *one[:1], parameters=one[1], failed=one[2]) for arm, one in enumerate(costs)]
    chosen, num_seeds = choose_finalists(found, tolerance=tolerance, num_runs=num_runs, max_seeds=max_seeds)
    best = min(found, key=lambda one: one.merit)
    assert chosen[0].merit == best.merit
    assert min(2, len(found)) <= len(chosen) <= MAX_FINALISTS
    assert len({one.arm for one in chosen}) == len(chosen)
    assert 1 <= num_seeds <= max_seeds
    assert len(chosen) * num_seeds <= max(num_runs, len(chosen))
    near = [one for one in found if not is_behind(one, chosen[0], tolerance=tolerance)]
    assert all(one in near for one in chosen) or len(near) == 1
    # the order in which arms are listed decides nothing but ties
    again, _ = choose_finalists(found[::-1], tolerance=tolerance, num_runs=num_runs, max_seeds=max_seeds)
    assert [one.merit for one in again] == [one.merit for one in chosen]


def test_more_failed_rows_are_behind_whatever_the_score() -> None:
    assert is_behind(candidate(1, 0.1, failed=1), candidate(0, 1.0), tolerance=math.inf)


def test_clearly_behind_is_so_many_margins() -> None:
    found = [candidate(0, 2.0), candidate(1, 2.4)]
    # a margin of 5 % of the gain 6.0 - 2.0
    share = tolerance_of(found, margin=Margin(amount=0.05, is_share=True), base_cost=6.0)
    assert share == pytest.approx(CLEARLY_BEHIND * 0.2)
    assert tolerance_of(found, margin=Margin(amount=0.3), base_cost=None) == pytest.approx(
        CLEARLY_BEHIND * 0.3
    )
    assert tolerance_of(found, margin=None, base_cost=None) == math.inf


# --- elapsed time -----------------------------------------------------------------------------------------

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def interval(begun: int, over: int) -> tuple[str, str]:
    return (FIRST + timedelta(seconds=begun)).isoformat(), (FIRST + timedelta(seconds=over)).isoformat()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=12))
def test_seconds_of_work_are_those_that_any_run_covers(runs: list[tuple[int, int]]) -> None:
    spans = [(begun, begun + long) for begun, long in runs]
    second_by_second = {second for begun, over in spans for second in range(begun, over)}
    assert seconds_of_work(interval(*span) for span in spans) == len(second_by_second)


# --- a whole suite, without training ----------------------------------------------------------------------

SUITE = """
suite_name: timed
base_model: lab
learning_rate: auto
max_steps: 200
time_budget_hours: 1
seeds: [0, 1, 2, 3, 4, 5, 6, 7]
experiments:
  - {name: low, lora_rank: 8}
  - {name: high, lora_rank: 1}
  - {name: bad, lora_rank: 2}
"""
#: The lowest loss of each rank: that of rank 2 is clearly behind.
LOWEST = {8: 1.0, 1: 1.01, 2: 3.0}
BASE_LOSS = 5.0


class Timed(Curves):
    """Serves packs; a run takes `seconds`, and its loss is lowest at the rate 6e-3."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.now = seconds, 0.0

    def clock(self) -> float:
        return self.now

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        for folder in folders:
            for event in self._timed(Pack.read(folder), folder):
                yield folder, event

    def _timed(self, pack: Pack, folder: Path) -> Iterator[Record | WorkerExit]:
        yield environment(self._torch())
        for each in pack.experiments:
            if self.stop_after is not None and len(self.served) >= self.stop_after:
                raise KeyboardInterrupt
            self.served.append(f"{each.settings.lora_rank}:{each.settings.learning_rate:g}:{each.seed}")
            self.now += self.seconds
            loss = LOWEST[each.settings.lora_rank] + math.log10(each.settings.learning_rate / 6e-3) ** 2
            for split, value in (("eval_before", BASE_LOSS), ("eval", loss), ("test", loss)):
                yield Score(
                    experiment_id=each.id, split=split, metric="loss", version=1, unit="nats/token",
                    value=value, items=(value,),
                )  # fmt: skip
            yield completed(each, folder)
        yield WorkerExit(returncode=None)


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SUITE)
    return load_suite(Path("s.yaml"))


@pytest.fixture
def run(suite: Suite) -> Iterator[Callable[[Timed], StudyOutcome]]:
    with ExperimentTracker("experiments.db", writable=True) as tracker:

        def run(executor: Timed) -> StudyOutcome:
            designer = Designer(
                suite=suite,
                fingerprint_dataset=str,
                fingerprint_base=str,
                num_steps=lambda one: one.max_steps,
            )
            return run_study(
                planned(designer, executor=executor), tracker=tracker, executor=executor,
                options=options_in(Path()), callbacks=Callbacks(clock=executor.clock),
            )  # fmt: skip

        yield run


def test_only_the_finalists_report_and_their_seeds_fill_the_time(
    run: Callable[[Timed], StudyOutcome],
) -> None:
    executor = Timed(seconds=60)
    design = run(executor).design
    searched = len(design.tuning)
    assert len(design.reporting) == len(executor.served) - searched
    assert {each.settings.lora_rank for each in design.reporting} == {8, 1}  # rank 2 is clearly behind
    # an hour is 60 runs, of which two arms could have more than the eight seeds that the suite lists
    assert {each.seed for each in design.reporting} == set(range(8))
    assert design.finals is not None
    assert design.finals.finalists[0].arm == 0


def test_the_seeds_are_as_many_as_the_time_left_allows(run: Callable[[Timed], StudyOutcome]) -> None:
    executor = Timed(seconds=150)  # an hour is 24 runs
    design = run(executor).design
    left = 24 - len(design.tuning)
    assert len(design.finals.seeds) == left // 2 >= MIN_SEEDS
    assert executor.now <= 3600


def test_no_round_of_the_search_begins_that_ends_too_late(run: Callable[[Timed], StudyOutcome]) -> None:
    executor = Timed(
        seconds=400
    )  # an hour is 9 runs: three rates of the arm that begins, and no further round
    design = run(executor).design
    assert len(design.tuning) == 3
    assert {each.settings.lora_rank for each in design.experiments} == {2}
    assert 3 * 400 < SEARCH_SHARE * 3600 < 6 * 400


@pytest.mark.parametrize("stop_after", [2, 5, 12, 17])
def test_a_suite_that_was_cut_off_goes_on_to_the_same_finals(
    run: Callable[[Timed], StudyOutcome], stop_after: int
) -> None:
    first = Timed(seconds=60)
    first.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        run(first)
    second = Timed(seconds=60)
    design = run(second).design
    assert not set(first.served) & set(second.served)
    assert {each.settings.lora_rank for each in design.reporting} == {8, 1}


def test_finals_are_decided_once(run: Callable[[Timed], StudyOutcome]) -> None:
    before = run(Timed(seconds=150)).design
    again = Timed(seconds=1)  # with so little time a run, more seeds would fit
    assert run(again).design == before
    assert again.served == []
