"""`next_phase` from values alone: nothing trains, and no store is read."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorastudy.planning.packing import PlannedPack
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.protocol.records import Outcome
from lorastudy.protocol.scoring import Scoring, StoredAdapter
from lorastudy.running.phases import CUT_OFF, Phase, next_phase
from lorastudy.running.results import Results
from lorastudy.running.study import left_to_score
from lorastudy.suite.experiment import Experiment
from lorastudy.suite.metrics import BUILT_IN
from planned import experiments, plan_of

FIVE = ("a", "b", "c", "d", "e")


class Workers:
    """As far as a plan asks an executor."""

    def __init__(self, num_packs_at_once: int) -> None:
        self.num_packs_at_once = num_packs_at_once
        self.hands_over = num_packs_at_once > 1


@pytest.fixture
def five() -> list[Experiment]:
    return experiments(*FIVE, max_steps=8, max_arms_per_pack=5)


def plan_for(wanted: list[Experiment], *, workers: int = 1, rungs: tuple[float, ...] = ()) -> StudyPlan:
    return plan_of(wanted, suite_name="suite", executor=Workers(workers), rungs=rungs)


def results_of(plan: StudyPlan, **changes: object) -> Results:
    return replace(Results(design=plan.design), **changes)


def arms(phase: Phase | None) -> list[str]:
    assert phase is not None
    return ["".join(experiment.name for experiment in pack.experiments) for pack in phase.packs]


def ended(experiment: Experiment, status: str, kind: str | None = None) -> Outcome:
    return Outcome(experiment_id=experiment.id, status=status, failure_kind=kind)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_packs_that_a_plan_shows_are_those_that_run(five: list[Experiment], workers: int) -> None:
    plan = plan_for(five, workers=workers)
    phase = next_phase(plan, results_of(plan))
    assert phase is not None
    assert [pack.id for pack in phase.packs] == [pack.id for pack in plan.packs]


def test_nothing_open_is_no_phase(five: list[Experiment]) -> None:
    plan = plan_for(five)
    assert next_phase(plan, results_of(plan, done=frozenset(e.id for e in five))) is None


def test_what_failed_in_this_call_is_left_and_the_rest_keeps_its_pack(five: list[Experiment]) -> None:
    plan = plan_for(five)
    a, b, *_ = five
    results = results_of(plan, ended={a.id: ended(a, "failed", "user"), b.id: ended(b, "completed")})
    assert arms(next_phase(plan, results)) == ["cde"]


def test_packs_are_balanced_at_one_pause(five: list[Experiment]) -> None:
    """Two workers, five arms: (a b) pauses at 3/4, (c d e) at 1/2; then e goes on in a pack of its own."""
    plan = plan_for(five, workers=2)
    first = next_phase(plan, results_of(plan))
    assert first is not None
    assert arms(first) == ["ab", "cde"]
    assert [pack.pause_at for pack in first.packs] == [0.75, 0.5]
    paused = {e.id: pack.pause_at for pack in first.packs for e in pack.experiments}
    second = next_phase(plan, results_of(plan, paused_at=paused))
    assert second is not None
    assert arms(second) == ["ab", "cd", "e"]
    assert [(pack.pause_at, pack.begun) for pack in second.packs] == [(None, 0.75), (None, 0.5), (None, 0.5)]


def test_only_what_has_not_paused_runs_to_the_pause(five: list[Experiment]) -> None:
    plan = plan_for(five, workers=2)
    a, b, *_ = five
    assert arms(next_phase(plan, results_of(plan, paused_at={a.id: 0.75, b.id: 0.75}))) == ["cde"]


def test_where_racing_decides_nothing_is_balanced(five: list[Experiment]) -> None:
    plan = plan_for(five, workers=2, rungs=(0.25,))
    phase = next_phase(plan, results_of(plan))
    assert phase is not None
    assert [pack.pause_at for pack in phase.packs] == [0.25, 0.25]
    assert phase.name == "racing to 25 % of the steps"


def test_a_race_goes_on_from_rung_to_rung(five: list[Experiment]) -> None:
    """No losses are stored here, so nobody is behind; who paused at a rung in this call has reached it."""
    plan = plan_for(five, rungs=(0.25, 0.5))
    shares = []
    reached: dict[str, float] = {}
    while True:
        paused = {e.id: ended(e, "paused") for e in five} if reached else {}
        phase = next_phase(plan, results_of(plan, paused_at=dict(reached), ended=paused))
        assert phase is not None
        shares.append(phase.packs[0].pause_at)
        if phase.packs[0].pause_at is None:
            break
        reached = {e.id: phase.packs[0].pause_at for e in five}
    assert shares == [0.25, 0.5, None]


def test_experiments_with_checkpoints_in_two_folders_go_on_apart(five: list[Experiment]) -> None:
    plan = plan_for(five)
    a, b, *rest = five
    one, other = (Path("attempt-1"),), (Path("attempt-2"), Path("attempt-1"))
    results = results_of(
        plan, checkpoints={a.id: one, b.id: one, **{e.id: other for e in rest}}, cut_off=frozenset({b.id})
    )
    phase = next_phase(plan, results)
    assert phase is not None
    assert arms(phase) == ["ab", "cde"]
    assert [(pack.resume_from, pack.reason) for pack in phase.packs] == [(one, CUT_OFF), (other, None)]


def test_the_same_results_ask_for_the_same_phase(five: list[Experiment]) -> None:
    plan = plan_for(five, workers=2)
    results = results_of(plan, paused_at={five[0].id: 0.75})
    assert next_phase(plan, results) == next_phase(plan, results)


def scoring_pack(wanted: list[Experiment]) -> PlannedPack:
    adapters = {each.id: StoredAdapter(attempt=1, folder=f"adapters/{each.id}") for each in wanted}
    scoring = Scoring(metrics=(BUILT_IN["token_f1"], BUILT_IN["rouge_l"]), adapters=adapters)
    return PlannedPack(experiments=tuple(wanted), scoring=scoring)


def test_adapters_that_lack_a_score_are_scored_once_their_round_has_trained(five: list[Experiment]) -> None:
    plan = plan_for(five)
    pack = scoring_pack(five[:2])
    phase = next_phase(plan, results_of(plan, to_score=(pack,)))
    assert phase is not None
    assert not phase.is_scoring
    done = frozenset(experiment.id for experiment in five)
    phase = next_phase(plan, results_of(plan, done=done, to_score=(pack,)))
    assert phase is not None
    assert (phase.name, phase.packs, phase.is_scoring) == ("scoring by token_f1 and rouge_l", (pack,), True)
    assert next_phase(plan, results_of(plan, done=done)) is None


def test_a_scoring_pack_is_no_pack_that_trains(five: list[Experiment]) -> None:
    pack = scoring_pack(five[:2])
    assert pack.id.startswith("score-")
    assert pack.id == scoring_pack(five[1::-1]).id
    assert pack.id != scoring_pack(five[:1]).id


def test_what_a_stop_left_to_score_is_told(five: list[Experiment]) -> None:
    plan = plan_for(five)
    results = results_of(
        plan,
        to_score=(scoring_pack(five[2:3]),),
        scored={five[0].id: ended(five[0], "completed"), five[1].id: ended(five[1], "stopped")},
    )
    assert left_to_score(results) == (five[1].id, five[2].id)
