"""What a suite will be in all: runs, and times that are the sum of their parts."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorastudy.planning.design import Designer
from lorastudy.planning.packing import PlannedPack
from lorastudy.planning.plan_summary import forecast, size_line
from lorastudy.planning.study_plan import StudyPlan
from lorastudy.suite.suite import Suite
from lorastudy.suite.suite_file import load_suite

AUTO = """
experiment_type: rank_ablation
dataset_path: lab:facts
max_steps: 200
learning_rate: auto
seeds: [0, 1, 2]
max_arms_per_pack: 5
factors: {lora_rank: [1, 8]}
"""


AUTO_FULL = """
dataset_path: lab:facts
max_steps: 200
learning_rate: auto
seeds: [0, 1, 2]
experiments:
  - {lora_rank: 1}
  - {lora_rank: 2}
  - {method: full}
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(AUTO, encoding="utf-8")
    return load_suite(Path("s.yaml"))


def predicting(
    seconds_by_run: float | None, *, is_predicted: bool = True, engine: str = "packed"
) -> SimpleNamespace:
    """A plan by which a pack trains as long as so many runs."""

    def estimate(pack: PlannedPack) -> SimpleNamespace:
        of_pack = None if seconds_by_run is None else seconds_by_run * len(pack.experiments)
        return SimpleNamespace(train_seconds=of_pack, engine=SimpleNamespace(name=engine))

    return SimpleNamespace(
        estimate=estimate,
        estimator=lambda _: None,
        estimators={"pack": None} if is_predicted else {},
        arms_per_pack={},
    )


def plan_of(suite: Suite, predicted: SimpleNamespace, *, num_at_once: int = 1) -> StudyPlan:
    designer = Designer(suite=suite)
    planned = designer.design()
    stand_in: Any = predicted
    return StudyPlan(
        suite=suite,
        designer=designer,
        design=planned,
        missing=planned.experiments,
        predicted=stand_in,
        num_packs_at_once=num_at_once,
    )


def said(suite: Suite, predicted: SimpleNamespace, *, num_at_once: int = 1) -> list[str]:
    return forecast(plan_of(suite, predicted, num_at_once=num_at_once))


def test_a_search_says_how_many_runs_it_comes_to_and_times_that_add_up(suite: Suite) -> None:
    """3 runs begin, 3 of the other arm follow, 6 report, and 2 x 6 further rates may come, each with one seed."""
    search, time = said(suite, predicting(10.0))
    assert "and then report at it: 12 experiments in all" in search
    assert search.endswith("so the total may be up to 24")
    assert time.startswith("training time: about 30.0 s for these packs, one after another")  # 3 x 10 s
    assert "with the packs to come 2.00 min, or up to 4.00 min if the search goes on" in time
    assert "side by side" not in time
    assert "2 packs train side by side" in said(suite, predicting(10.0), num_at_once=2)[1]


def test_without_timed_steps_the_way_to_time_them_is_named(suite: Suite) -> None:
    (_, time) = said(suite, predicting(None))
    assert time.endswith("lorastudy estimate --suite s.yaml --calibrate")


def test_packs_with_a_known_time_are_added_up_though_others_have_none(tmp_path: Path) -> None:
    """Six runs in three packs, of which only the first was timed: two runs of 10 s."""
    text = AUTO.replace("learning_rate: auto", "learning_rate: 1e-3").replace(
        "arms_per_pack: 5", "arms_per_pack: 2"
    )
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    suite, predicted = load_suite(tmp_path / "s.yaml"), predicting(10.0)
    first, *others = plan_of(suite, predicted).packs
    whole = predicted.estimate
    predicted.estimate = lambda pack: whole(pack) if pack == first else SimpleNamespace(train_seconds=None)
    (time,) = said(suite, predicted)
    assert len(others) == 2
    assert time.startswith("training time: about 20.0 s for 1 of 3 packs; that of the others is not known")


def test_the_same_command_times_the_reference_engine(suite: Suite) -> None:
    (_, time) = said(suite, predicting(None, engine="reference"))
    assert time.endswith("lorastudy estimate --suite s.yaml --calibrate")


def test_where_nothing_was_predicted_nothing_is_said_of_time(suite: Suite) -> None:
    assert len(said(suite, predicting(None, is_predicted=False))) == 1


def test_what_full_fine_tuning_takes_is_said_before_its_packs_are_known(tmp_path: Path) -> None:
    """1 GiB of weights: the run and the output folder have one each; two checkpoints hold the weights and both moments."""
    (tmp_path / "s.yaml").write_text(AUTO_FULL, encoding="utf-8")
    suite = load_suite(tmp_path / "s.yaml")
    (waiting,) = [each for each in Designer(suite=suite).design().waiting if each.settings.arm_method.is_full]
    num_bytes = 1 << 30
    estimate = SimpleNamespace(
        prediction=SimpleNamespace(terms=SimpleNamespace(total=5 * num_bytes)),
        saved_bytes={waiting.id: num_bytes},
        num_trainable={waiting.id: num_bytes // 4},
    )
    for budget, room in (
        (6 * num_bytes, ""),
        (num_bytes, " (more than the 1.00 GiB that this machine has for it)"),
    ):
        machine = SimpleNamespace(budget_bytes=lambda num_workers, budget=budget: budget // num_workers)
        estimator = SimpleNamespace(estimate=lambda _: estimate, machine=machine)
        predicted = predicting(None)
        predicted.estimators = {waiting.pack_key: estimator}
        assert said(suite, predicted)[-1] == (
            f"full fine-tuning: a run is predicted to take 5.00 GiB of memory{room}. It leaves 2.00 GiB on disk, its model and a "
            "copy of it, and 6.00 GiB of checkpoints while it trains"
        )


def test_what_is_known_by_now_is_counted(suite: Suite) -> None:
    plan = plan_of(suite, predicting(None))
    line = size_line(replace(plan, missing=plan.missing[:1]))
    assert line.startswith(
        "12 to 24 experiments in all, most likely close to 12: the search for a learning rate ends once the best one lies between two others. 3 are known now, 2 of them done; 1 to run in 1 pack."
    )


def test_a_notebook_shows_a_row_for_each_arm_and_each_pack_and_every_note(suite: Suite) -> None:
    """Three rates of one rank are three arms of one seed, in one pack of which nothing is predicted."""
    first_round = Designer(suite=suite).design().experiments
    plan = StudyPlan(
        suite=suite,
        designer=Designer(suite=suite, registered=first_round),
        design=Designer(suite=suite, registered=first_round).design(),
        missing=first_round[:2],
        notes=("rows.jsonl: <b>odd</b>",),
    )
    page = plan._repr_html_()
    assert page.startswith("<h4>s</h4><p>3 experiments, 1 of them done; 2 to run in 1 pack.")
    arms, packs = page.split("<table>")[1:]
    assert [arms.count(f"<td>{plan.labels[experiment.arm]}</td>") for experiment in first_round] == [1, 1, 1]
    assert "<tr><td>1</td><td>2</td><td>not known</td><td>not known</td><td>not known</td></tr>" in packs
    assert "<li>note: rows.jsonl: &lt;b&gt;odd&lt;/b&gt;</li>" in packs
