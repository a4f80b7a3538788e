"""A suite that grows: rounds against a store, with an executor whose runs follow a curve instead of training."""

import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorastudy.executors import WorkerExit
from lorastudy.executors.executor import Event
from lorastudy.planning.design import Designer, merits_of
from lorastudy.protocol.records import Outcome, Pack, Record, Score
from lorastudy.running.phase_runner import Callbacks, RunOptions
from lorastudy.running.phases import Phase
from lorastudy.running.study import StudyOutcome, run_study
from lorastudy.stats.summary import LOSS
from lorastudy.store import ExperimentTracker
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.rate_search import Design
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Suite
from lorastudy.suite.suite_file import load_suite
from planned import options_in, planned
from tests.unit.running.test_phase_runner import completed, environment, failed

pytestmark = pytest.mark.long

SUITE = """
suite_name: grows
learning_rate: auto
max_steps: 200
seeds: [0, 1]
experiments:
  - {name: low, lora_rank: 8}
  - {name: high, lora_rank: 1}
"""
#: What its question is asked of, by names for fingerprints.
SUBJECT = (("base_model", "lab"), ("dataset", "lab:facts"))
#: Where the loss of each is lowest: one inside the first grid, one beyond it.
BEST = {8: 6e-3, 1: 3e-2}


class Curves:
    """Serves packs; the loss on the held-out rows is lowest at `BEST`, that on the test rows elsewhere."""

    num_packs_at_once = 1
    hands_over = False

    def __init__(self, **fails: str) -> None:
        self.fails = fails
        self.served: list[str] = []
        self.packs: list[set[str]] = []
        self.stop_after: int | None = None

    def run(self, folders: Sequence[Path]) -> Generator[Event]:
        for folder in folders:
            for event in self._serve(Pack.read(folder), folder):
                yield folder, event

    def _serve(self, pack: Pack, folder: Path) -> Iterator[Record | WorkerExit]:
        yield environment(self._torch())
        self.packs.append({each.name for each in pack.experiments})
        for each in pack.experiments:
            if self.stop_after is not None and len(self.served) >= self.stop_after:
                raise KeyboardInterrupt
            self.served.append(each.name)
            kind = next((kind for name, kind in self.fails.items() if each.name.startswith(name)), None)
            if kind:
                yield failed(each, kind)
                continue
            yield from scores(each)
            yield completed(each, folder)
        yield WorkerExit(returncode=None)

    @staticmethod
    def _torch() -> str:
        from importlib.metadata import version

        return version("torch")


def scores(experiment: Experiment) -> Iterator[Score]:
    settings = experiment.settings
    held_out = math.log10(settings.learning_rate / BEST[settings.lora_rank]) ** 2
    for split, value in (("eval", held_out), ("test", settings.learning_rate)):
        yield Score(
            experiment_id=experiment.id, split=split, metric="loss", version=1, unit="nats/token", value=value, items=(value,),
        )  # fmt: skip


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SUITE)
    return load_suite(Path("s.yaml"))


def designing(suite: Suite, *, base: str | None = None) -> Designer:
    return Designer(
        suite=suite, fingerprint_dataset=str, fingerprint_base=lambda name: base or name, num_steps=max_steps
    )


def max_steps(settings: Settings) -> int | None:
    return settings.max_steps


def running(
    designer: Designer,
    executor: Curves,
    *,
    tracker: ExperimentTracker,
    options: RunOptions | None = None,
    **calls: Any,
) -> StudyOutcome:
    return run_study(
        planned(designer, executor=executor), tracker=tracker, executor=executor,
        options=options or options_in(Path()), callbacks=Callbacks(**calls),
    )  # fmt: skip


@pytest.fixture
def tracker(suite: Suite) -> Iterator[ExperimentTracker]:
    with ExperimentTracker("experiments.db", writable=True) as tracker:
        yield tracker


@pytest.fixture
def run(suite: Suite, tracker: ExperimentTracker) -> Callable[..., tuple[Design, StudyOutcome]]:
    def run(executor: Curves, *, continue_on_error: bool = False) -> tuple[Design, StudyOutcome]:
        options = options_in(Path(), continue_on_error=continue_on_error)
        outcome = running(designing(suite), executor, tracker=tracker, options=options)
        return outcome.design, outcome

    return run


def in_store(tracker: ExperimentTracker, status: str = "completed") -> set[str]:
    return {result.name for result in tracker.get_all_experiments(status=status)}


def test_a_suite_grows_until_every_arm_has_run_at_its_rate(run, tracker) -> None:
    executor = Curves()
    last, outcome = run(executor)
    assert {(each.arm, each.seed) for each in last.reporting} == {
        (arm, seed) for arm in ("low_lr0.006", "high_lr0.03") for seed in (0, 1)
    }
    # 3 rates of low, 5 of high (those around low's and two beyond); then two seeds that report, each
    assert len(outcome.completed) == 3 + 5 + 2 * 2 == len(executor.served)
    assert in_store(tracker) == {each.name for each in last.experiments}
    assert (outcome.failed, outcome.not_run, outcome.done_before) == ((), (), ())


def test_each_round_is_announced_with_its_packs(suite, tracker) -> None:
    phases: list[Phase] = []
    running(designing(suite), Curves(), tracker=tracker, on_phase=phases.append)
    # low tries 3 rates; it reports with 2 seeds while high tries 3 around its rate; high looks on twice, and reports
    assert [(each.name, sum(len(pack.experiments) for pack in each.packs)) for each in phases] == [
        ("round 1, looking for learning rates", 3),
        ("round 2, looking on for learning rates (3) and at those found (2)", 5),
        ("round 3, looking for learning rates", 1),
        ("round 4, looking for learning rates", 1),
        ("round 5, at the learning rates found", 2),
    ]


def test_a_suite_that_is_done_runs_nothing_again(run) -> None:
    run(Curves())
    again = Curves()
    last, outcome = run(again)
    assert again.served == []
    assert len(outcome.done_before) == len(last.experiments)


@pytest.mark.parametrize(
    "stop_after", [1, 4, 9, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 8, 11))]
)
def test_an_interrupted_suite_goes_on_to_the_same_end(run, tracker, stop_after: int) -> None:
    whole = {"low_lr0.006_seed0", "high_lr0.03_seed1"}
    first = Curves()
    first.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        run(first)
    second = Curves()
    last, outcome = run(second)
    assert len(first.served) + len(second.served) == 12  # as without an interruption
    assert not set(first.served) & set(second.served)
    assert whole <= in_store(tracker) == {each.name for each in last.experiments}
    assert outcome.failed == ()


def test_what_goes_on_keeps_the_company_that_it_would_have_had(run, tracker, suite, tmp_path) -> None:
    """Bits depend on it: runs of two rounds never share a pack, however much of a round was done before."""
    first, second = Curves(), Curves()
    first.stop_after = 4  # the three of the first round, and one of the second
    with pytest.raises(KeyboardInterrupt):
        run(first)
    run(second)
    with ExperimentTracker("whole.db", writable=True) as other:
        whole = Curves()
        running(designing(suite), whole, tracker=other, options=options_in(Path("whole")))
    assert all(any(pack <= company for company in whole.packs) for pack in second.packs)


def test_a_rate_that_diverges_is_an_answer_and_is_not_asked_for_again(run, tracker) -> None:
    last, outcome = run(Curves(**{"high_lr0.05": "diverged"}))
    assert {each.arm for each in last.reporting} == {"low_lr0.006", "high_lr0.02"}
    assert outcome.failed == ()
    assert len(outcome.diverged_in_search) == 1
    again = Curves()
    _, outcome = run(again)
    assert again.served == []
    assert in_store(tracker, "failed") == {"high_lr0.05"}


def test_a_run_that_reports_and_diverges_is_a_failure(run) -> None:
    class Later(Curves):
        def _serve(self, pack: Pack, folder: Path) -> Iterator[Record | WorkerExit]:
            for event in super()._serve(pack, folder):
                seeds = {each.id: each.seed for each in pack.experiments}
                ended = isinstance(event, Outcome) and event.status == "completed"
                if ended and seeds[event.experiment_id] == 0:
                    yield replace(event, status="failed", failure_kind="diverged", adapter_path=None)
                else:
                    yield event

    _, outcome = run(Later())
    assert {end.failure_kind for end in outcome.failed} == {"diverged"}


def test_a_failure_stops_the_search_unless_told_to_go_on(run) -> None:
    _, outcome = run(Curves(high_lr="user"))
    assert {end.failure_kind for end in outcome.failed} == {"user"}
    executor = Curves(high_lr="user")
    last, outcome = run(executor, continue_on_error=True)
    assert {each.arm for each in last.reporting} == {"low_lr0.006"}
    assert last.num_open == 1
    assert executor.served.count("high_lr0.01") == 1  # not again in every round


def test_a_run_that_is_lost_in_the_search_costs_the_arm_nothing(run, tracker) -> None:
    """The loss is a parabola, so the rates beside the lost one place the lowest point as well; and it is not tried again."""
    last, outcome = run(Curves(**{"high_lr0.02": "error"}), continue_on_error=True)
    assert {each.arm for each in last.reporting} == {"low_lr0.006", "high_lr0.03"}
    assert [end.failure_kind for end in outcome.failed] == ["error"]
    again = Curves()
    same, outcome = run(again)
    assert (again.served, same.reporting) == ([], last.reporting)
    assert (outcome.failed, outcome.not_run) == ((), ())


def test_the_choice_reads_the_held_out_rows_and_never_the_test_rows(run, tracker, suite) -> None:
    last, _ = run(Curves())
    merits = merits_of({e.id for e in last.experiments}, tracker=tracker, metric=LOSS)
    for each in last.experiments:
        loss = math.log10(each.settings.learning_rate / BEST[each.settings.lora_rank]) ** 2
        assert merits[each.id] == pytest.approx((0, loss, loss))


def test_the_question_is_stated_before_anything_runs(run, tracker, suite) -> None:
    run(Curves())
    (stated,) = tracker.get_suites()[0].questions
    assert stated.question == replace(suite.question, subject=SUBJECT)
    assert stated.num_completed == 0
    assert stated.question.tuning_seeds == (1_000_000, 1_000_001)


def test_on_another_base_model_the_question_is_stated_anew_with_what_was_known(run, tracker, suite) -> None:
    run(Curves())

    running(designing(suite, base="another"), Curves(), tracker=tracker)
    first, second = tracker.get_suites()[0].questions
    assert first.question.id != second.question.id
    assert second.question.subject_of("base_model") == ("another",)
    assert (first.num_completed, second.num_completed) == (0, 12)


def test_results_of_other_libraries_choose_nothing(run, tracker, suite, monkeypatch) -> None:
    run(Curves())
    experiments = designing(suite).design().experiments
    ids = {experiment.id for experiment in experiments}
    assert merits_of(ids, tracker=tracker, metric=LOSS)
    monkeypatch.setattr("lorastudy.planning.design.installed_version", lambda name: "another")
    assert merits_of(ids, tracker=tracker, metric=LOSS) == {}


def test_a_search_ends_although_other_libraries_began_one_of_its_runs_again(
    run, tracker, monkeypatch
) -> None:
    """Completed, begun again under another version and cut off, then back: the newest run has no merit, so it runs again."""
    run(Curves())

    class Another(Curves):
        @staticmethod
        def _torch() -> str:
            return "another"

    cut_off = Another()
    cut_off.stop_after = 1
    with monkeypatch.context() as patch:
        patch.setattr("lorastudy.planning.design.installed_version", lambda name: "another")
        with pytest.raises(KeyboardInterrupt):
            run(cut_off)
    back = Curves()
    last, outcome = run(back)
    assert last.num_open == 0
    assert outcome.not_run == ()
    assert back.served, "what was begun again has run again"


def test_a_suite_goes_on_from_the_store_without_its_file(run, tracker, suite) -> None:
    first, second = Curves(), Curves()
    first.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        run(first)
    Path("s.yaml").unlink()
    kept = Suite.from_json(tracker.get_designs()["grows"])
    outcome = running(designing(kept), second, tracker=tracker)
    last = outcome.design
    assert len(first.served) + len(second.served) == 12  # as with the file
    assert not set(first.served) & set(second.served)
    assert outcome.failed == ()
    assert {each.id for each in last.experiments} == {
        each.id for each in designing(suite).by_now(tracker).experiments
    }
    (stated,) = tracker.get_suites()[0].questions  # asked once, and the same
    assert stated.question == replace(suite.question, subject=SUBJECT)


def test_a_suite_is_the_same_from_its_own_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = SUITE.replace(
        "learning_rate: auto", "learning_rate: auto\nmargin: 2%\nreference: low\ntuning_seeds: [7, 8]"
    )
    Path("s.yaml").write_text(text.replace("{name: high, ", "{target_modules: [q_proj], lora_alpha: 2r, "))
    suite = load_suite(Path("s.yaml"))
    again = Suite.from_json(json.loads(json.dumps(suite.to_json())))
    lines = tuple(replace(arm, line=None) for arm in suite.arms)
    assert again == replace(suite, path=None, notes=(), arms=lines)
    assert again.question == suite.question
