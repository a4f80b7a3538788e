"""What a running suite shows, whether its packs come one after another or side by side."""

from dataclasses import replace
from pathlib import Path

import pytest

from lorastudy.cli.progress import Progress
from lorastudy.executors import WorkerExit
from lorastudy.planning.packing import PlannedPack
from lorastudy.protocol.records import (
    ArmProfile,
    Environment,
    FailureKind,
    Incident,
    IncidentKind,
    Outcome,
    PackStep,
    Score,
)
from lorastudy.protocol.scoring import AddedScore, FailedRow
from lorastudy.running.phases import Phase
from lorastudy.suite.experiment import Experiment, Sources
from lorastudy.suite.settings import Settings

ENVIRONMENT = Environment(
    python="3", torch="2", transformers="5", peft="0", bitsandbytes="0", lorastudy="0", device="cpu",
    device_name="a processor", num_threads=1,
)  # fmt: skip


def pack(*ranks: int) -> PlannedPack:
    experiments = tuple(
        Experiment(
            name=f"r{rank}", arm=f"r{rank}", experiment_type="custom", seed=0, settings=Settings(lora_rank=rank),
            sources=Sources(base_model="lab", dataset="lab"),
        )
        for rank in ranks
    )  # fmt: skip
    return PlannedPack(experiments=experiments)


def score(of: PlannedPack) -> Score:
    return Score(
        experiment_id=of.experiments[0].id, split="eval", metric="loss", version=1, unit="", value=1.0, items=(1.0,)
    )  # fmt: skip


def profile(of: PlannedPack) -> ArmProfile:
    return ArmProfile(
        experiment_id=of.experiments[0].id, num_trainable_parameters=1, num_total_parameters=1, adapter_bytes=1,
        memory_kind="cpu_tensors", peak_memory_bytes=None, step_seconds=None, tokens_per_second=None,
    )  # fmt: skip


def refused(of: PlannedPack, *, kind: FailureKind = "user") -> list[Outcome]:
    return [
        Outcome(experiment_id=each.id, status="failed", failure_kind=kind, message="[no] such")
        for each in of.experiments
    ]


def phase(*packs: PlannedPack, name: str = "", going_on: frozenset[str] = frozenset()) -> Phase:
    resumed = {key: (Path("attempt-1"),) for key in going_on}
    return Phase(name=name, packs=tuple(replace(p, resume_from=resumed.get(p.id, ())) for p in packs))


def step(number: int) -> PackStep:
    return PackStep(step=number, num_steps=3, num_tokens=1, num_completion_tokens=1, seconds=0.1, arms=())


@pytest.mark.parametrize("order", ["aaabbb", "ababab", "aabbab"])
def test_packs_in_any_order(capsys: pytest.CaptureFixture[str], order: str) -> None:
    packs, steps = {"a": pack(1), "b": pack(2)}, {"a": 0, "b": 0}
    with Progress() as progress:
        progress.on_phase(phase(*packs.values()))
        for name in order:
            if not steps[name]:
                progress.on_event(packs[name], ENVIRONMENT)
            steps[name] += 1
            progress.on_event(packs[name], step(steps[name]))
            if steps[name] == 3:
                progress.on_event(packs[name], WorkerExit(returncode=None))
    said = capsys.readouterr().err
    assert "pack 1/2 (1 experiment): loading the base model and the data on a processor\n" in said
    assert "pack 2/2 (1 experiment): loading the base model and the data\n" in said


def test_the_time_left_counts_the_scores_to_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine steps of 0.1 s, scored after every second: a pass of 5 s is followed by three more."""
    now = [0.0]
    monkeypatch.setattr("lorastudy.cli.progress.time.monotonic", lambda: now[0])
    (one,) = pack(1).experiments
    settings = one.settings.model_copy(update={"eval_steps": 2, "max_steps": 9})
    scored = PlannedPack(experiments=(replace(one, settings=settings),))

    def steps(number: int, *, at: float) -> None:
        now[0] = at
        progress.on_event(scored, replace(step(number), num_steps=9))

    with Progress() as progress:
        progress.on_phase(phase(scored))
        steps(1, at=1.0)
        steps(2, at=20.0)
        now[0] = 25.0
        progress.on_event(scored, replace(score(scored), split="eval_after_2", step=2))
        steps(3, at=40.0)
    said = capsys.readouterr().err
    assert "step 2 of 9, about 1 s of training left\n" in said
    assert "step 3 of 9, about 1 s of training and 15 s of scoring left\n" in said
    assert "evaluating" not in said


def test_packs_side_by_side_say_each_phase_once(capsys: pytest.CaptureFixture[str]) -> None:
    packs = pack(1), pack(2)
    with Progress() as progress:
        progress.on_phase(phase(*packs))
        for _ in range(3):
            for each in packs:
                progress.on_event(each, profile(each))
        for _ in range(3):
            for each in packs:
                progress.on_event(each, score(each))
    assert capsys.readouterr().err.splitlines() == [
        f"pack {number}/2 (1 experiment): {phase}"
        for phase in ("measured what each arm costs alone; training", "trained; evaluating")
        for number in (1, 2)
    ]


def test_each_phase_is_named_and_counts_its_own_packs(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = pack(1), pack(2), pack(3)
    with Progress() as progress:
        progress.on_phase(phase(first, second, name="round 1, looking for learning rates"))
        progress.on_event(second, profile(second))  # side by side, the second may be the first to speak
        progress.on_event(first, profile(first))
        progress.on_phase(
            phase(third, name="round 2, at the learning rates found", going_on=frozenset({third.id}))
        )
        progress.on_event(third, profile(third))
    assert capsys.readouterr().err.splitlines() == [
        "round 1, looking for learning rates: 2 experiments in 2 packs",
        "pack 2/2 (1 experiment): measured what each arm costs alone; training",
        "pack 1/2 (1 experiment): measured what each arm costs alone; training",
        "round 2, at the learning rates found: 1 experiment in 1 pack",
        "pack 1/1 (1 experiment): resuming from its checkpoint",
    ]


@pytest.mark.parametrize(
    ("gives_reasons", "kind", "said"),
    [
        (False, "user", "all failed (user)"),  # the end of the suite follows, and has the reason
        (True, "user", "all failed (user): [no] such"),
        (False, "error", "all failed (error): [no] such"),  # tried again in halves: nobody else says why
        (False, "diverged", "all diverged: [no] such"),
    ],
)
def test_what_failed_alike_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], gives_reasons: bool, kind: FailureKind, said: str
) -> None:
    two = pack(1, 2)
    with Progress(gives_reasons=gives_reasons) as progress:
        progress.on_phase(phase(two))
        for event in (*refused(two, kind=kind), WorkerExit(returncode=None)):
            progress.on_event(two, event)
    assert capsys.readouterr().err == f"pack 1/1 (2 experiments): {said}\n"


def test_a_failure_of_one_among_several_is_told_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    two = pack(1, 2)
    with Progress(gives_reasons=True) as progress:
        progress.on_phase(phase(two))
        progress.on_event(two, refused(two)[0])
        progress.on_event(two, step(1))
    assert "r1 failed (user): [no] such" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "said"), [("resumed", "resuming from its checkpoint after step 7"), ("not_resumed", "measured")]
)
def test_what_a_pack_did_on_its_way_is_told_by_what_its_worker_found(
    capsys: pytest.CaptureFixture[str], kind: IncidentKind, said: str
) -> None:
    progress, one = Progress(), pack(1)
    # The phase expects the opposite: a worker that dies is replaced by one that goes on, a checkpoint may not fit.
    going_on = frozenset() if kind == "resumed" else frozenset({one.id})
    progress.on_phase(phase(one, going_on=going_on))
    step = 7 if kind == "resumed" else None
    for event in (ENVIRONMENT, Incident(kind=kind, message="because", step=step), profile(one)):
        progress.on_event(one, event)
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("begun", [0.0, 0.25])
def test_incidents_of_earlier_attempts_do_not_decide_what_this_attempt_does(
    capsys: pytest.CaptureFixture[str], begun: float
) -> None:
    """An attempt was cut off while it loaded, so the next one started anew. The third resumes, and carries that over."""
    own = [] if begun else [Incident(kind="resumed", message="it goes on")]  # as planned is no incident
    progress, one = Progress(), replace(pack(1), begun=begun)
    progress.on_phase(phase(one, going_on=frozenset({one.id})))
    for event in (ENVIRONMENT, *own, Incident(kind="not_resumed", message="it starts anew"), profile(one)):
        progress.on_event(one, event)
    assert capsys.readouterr().err.splitlines()[-1].endswith("resuming from its checkpoint")


def test_a_pack_of_one_whose_worker_died_tells_why_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress, one = Progress(), pack(1)
    progress.on_phase(phase(one))
    for event in (*refused(one, kind="crashed"), WorkerExit(returncode=-9)):
        progress.on_event(one, event)
    assert "r1 failed (crashed): [no] such" in capsys.readouterr().err


def test_rows_that_a_metric_gave_no_number_for_are_told_once_a_pack(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress, one = Progress(), pack(1)
    progress.on_phase(phase(one))
    failed = (FailedRow(where="row 4 of rows.jsonl", message="ZeroDivisionError: division by zero"),)
    for split in ("eval", "test"):
        found = AddedScore(
            experiment_id="e1", attempt=1, split=split, metric="mine@0123456789ab", version=1, unit="", value=1.0,
            items=(1.0, None), failed_rows=failed,
        )  # fmt: skip
        progress.on_event(one, found)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "pack 1/1 (1 experiment): mine gave no number for 1 of 2 rows of an arm, such as row 4 of rows.jsonl: "
        "ZeroDivisionError: division by zero"
    )
