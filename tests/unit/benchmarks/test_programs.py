"""Where and in what order programs run, how rows are laid out, what a fit says; nothing here trains."""

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks import machine, processes
from benchmarks.baseline_jobs import laid_out, trainer_order
from benchmarks.gpu import ROWS
from benchmarks.growth import straight_line, study
from benchmarks.job import AlpacaRequest, Budget, Job, Row, Run
from benchmarks.processes import TUNING, agreement, interleaved, plain_environment, run_timed
from benchmarks.results import BASELINE, OURS, Sample
from benchmarks.suite_rows import baseline_arguments, suite_of
from lorastudy.data.batches import micro_batches, row_order
from lorastudy.suite.suite import expand
from lorastudy.suite.suite_file import load_suite

REQUEST = AlpacaRequest(
    model="lab",
    data="rows.json",
    num_train=40,
    num_eval=9,
    ranks=(4, 16),
    alpha=16.0,
    targets=("q_proj", "v_proj"),
    steps=5,
    batch_size=4,
    max_length=64,
    learning_rate=2e-4,
    seed=0,
    quantization="bf16",
)


def a_side(name: str, log: list[str]):
    def side(number: int) -> Sample:
        log.append(f"{name} {number}")
        return Sample(side=name, round=number, train_seconds=1.0)

    return side


def test_sides_take_turns_and_ours_runs_once_more():
    log: list[str] = []
    said: list[str] = []
    sides = {OURS: a_side(OURS, log), BASELINE: a_side(BASELINE, log)}
    samples, repeats = interleaved(sides, num_rounds=2, say=said.append)
    assert log == ["lorastudy 0", "baseline 0", "lorastudy 1", "baseline 1", "lorastudy 1"]
    assert [sample.side for sample in samples] == [OURS, BASELINE] * 2
    assert [(sample.side, sample.round) for sample in repeats] == [(OURS, 1)]
    assert said[0] == "round 1: lorastudy: 1.0 s training"


def test_a_baseline_gets_the_users_environment_and_none_of_our_tuning():
    shell = {"PATH": "/bin", "OMP_NUM_THREADS": "2", "PYTHONPATH": "/mine", **dict.fromkeys(TUNING, "x")}
    plain = plain_environment(shell)
    assert not plain.keys() & TUNING.keys()
    assert plain["OMP_NUM_THREADS"] == "2"
    assert plain["PYTHONPATH"].endswith(":/mine")
    assert plain_environment(shell, extra=TUNING).items() >= TUNING.items()


def test_a_program_that_fails_says_why(tmp_path):
    assert run_timed(["-c", "print('hello')"], folder=tmp_path).output == "hello\n"
    with pytest.raises(RuntimeError, match="ended with 3:\nthe reason"):
        run_timed(["-c", "import sys; sys.stderr.write('the reason'); sys.exit(3)"], folder=tmp_path)


def test_agreement_compares_equal_starts_for_the_tolerance_and_own_starts_beside_it():
    printed = json.dumps({"runs": [{"name": "r4_s0", "losses": {"eval": 2.0002}}]})
    theirs = Sample(side=BASELINE, round=0, train_seconds=1.0, losses={"r4_s0/eval": 2.0})
    ours = Sample(side=OURS, round=0, train_seconds=1.0, losses={"r4_s0/eval": 2.1})
    quality = agreement(printed, ours=ours, theirs=theirs, tolerance=1e-3)
    assert quality.largest_difference == pytest.approx(1e-4)
    assert quality.own_start == pytest.approx(0.05)
    assert quality.agrees


def test_the_file_is_laid_out_so_that_our_order_visits_the_rows_of_the_trainer():
    visited = trainer_order(40, num_steps=5, batch_size=4, seed=0)
    assert len(set(visited)) == 20
    assert visited != trainer_order(40, num_steps=5, batch_size=4, seed=1)
    file_rows = laid_out([f"row {number}" for number in range(40)], visited=visited)
    assert sorted(file_rows) == sorted(f"row {number}" for number in range(40))
    order = row_order(40, data_seed=0, num_rows_needed=20)
    plan = micro_batches(order, batch_size=4, accumulation=1)
    seen = [file_rows[place] for (places,) in plan for place in places]
    assert seen == [f"row {number}" for number in visited]


def test_rows_seen_twice_cannot_be_laid_out():
    with pytest.raises(ValueError, match="11 steps of 4 rows are more than one pass over 40 rows"):
        trainer_order(40, num_steps=11, batch_size=4, seed=0)


def test_both_sides_are_asked_for_the_same(tmp_path):
    for name in ("train.json", "held_out.json"):
        (tmp_path / name).write_text("[]", encoding="utf-8")
    suite = tmp_path / "suite.json"
    suite.write_text(json.dumps(suite_of(REQUEST, folder=tmp_path)), encoding="utf-8")
    experiments = expand(
        load_suite(suite), fingerprint_dataset=lambda _: "data", fingerprint_base=lambda _: "base"
    )
    options = baseline_arguments(REQUEST)

    def option(name: str) -> str:
        return options[options.index(f"--{name}") + 1]

    assert [e.settings.lora_rank for e in experiments] == [4, 16]
    for experiment in experiments:
        settings = experiment.settings
        assert settings.max_steps == int(option("steps")) == 5
        assert settings.per_device_train_batch_size == int(option("batch-size"))
        assert settings.max_seq_length == int(option("max-length"))
        assert settings.learning_rate == float(option("learning-rate"))
        assert settings.lora_alpha_value == float(option("alpha"))
        assert experiment.seed == int(option("seed"))
        assert settings.lr_scheduler_type == "constant"
        assert (settings.warmup_ratio, settings.weight_decay, settings.max_grad_norm) == (0.0, 0.0, 1.0)
    assert option("dtype") == "bfloat16"
    assert options[options.index("--targets") + 1 :][:2] == list(experiments[0].settings.target_modules)


def a_job() -> Job:
    return Job(
        model="lab", random_weights=False, device="cpu", quantization="fp32", targets=("q_proj",), batch_size=2,
        learning_rate=1e-3, lr_scheduler_type="linear", warmup_ratio=0.05,
        runs=(Run(name="r4_s0", rank=4, alpha=8.0, seed=0),),
        train=tuple(Row(input_ids=(2, n, 4), labels=(-100, n, 4)) for n in range(5)),
        scored={"eval": (Row(input_ids=(2, 3), labels=(-100, 3)),)}, prompts=((2,),), max_new_tokens=1,
    )  # fmt: skip


def test_a_job_is_read_as_it_was_written(tmp_path):
    job = a_job()
    assert Job.read(job.write(tmp_path / "job.json")) == job
    assert job.num_steps == 2
    assert [len(batch) for batch in job.batches()] == [2, 2]
    assert job.num_tokens == 15


def test_a_fit_tells_a_line_from_what_outgrows_it():
    line = straight_line([{"size": n, "seconds": [3.0 + 2.0 * n, 99.0, 0.0]} for n in (1, 2, 4, 8)])
    # medians of (3 + 2n, 99, 0) are 3 + 2n
    assert line["slope"] == pytest.approx(2.0)
    assert line["intercept"] == pytest.approx(3.0)
    assert line["r_squared"] == pytest.approx(1.0)
    square = straight_line([{"size": n, "seconds": [float(n * n)]} for n in (1, 2, 4, 8)])
    assert square["last_exponent"] == pytest.approx(2.0)  # log(64 / 16) / log(8 / 4)
    assert square["r_squared"] < 0.97


def test_the_budget_keeps_a_reserve():
    now = [100.0]
    budget = Budget(seconds=60.0, clock=lambda: now[0])
    now[0] = 130.0
    assert budget.left == 15.0  # 60 - 30 - 15 kept back


def test_the_rows_of_the_gpu_are_those_of_the_table():
    asked = json.loads((machine.ROOT / "benchmarks" / "rows.json").read_text(encoding="utf-8"))
    assert {row["id"] for row in asked if row["device"] == "cuda"} == {row.id for row in ROWS}


def test_a_study_has_as_many_experiments_as_asked_for():
    experiments = study(30)
    assert len({experiment.id for experiment in experiments}) == 30
    assert {experiment.seed for experiment in experiments} == set(range(5))


def test_the_head_names_the_machine():
    head = machine.head(now=datetime(2026, 1, 2, tzinfo=UTC))
    assert head["machine"]["memory_bytes"] > 2**28
    assert head["versions"]["torch"].startswith("2.")
    named = head | {"device": "NVIDIA H100 80GB HBM3"}
    assert machine.stem(named) == "2026-01-02-nvidia-h100-80gb-hbm3"
    assert (
        machine.stem(head | {"device": "Intel(R) Xeon(R) Processor @ 2.10GHz"})
        == "2026-01-02-intel-xeon-2-10ghz"
    )


def test_the_driver_imports_no_torch(tmp_path):
    """It waits while others are timed: what it holds would be taken from them."""
    code = "import sys, benchmarks.__main__; print('torch' in sys.modules)"
    assert run_timed(["-c", code], folder=tmp_path).output == "False\n"
    assert sys.modules


def test_a_pack_that_does_not_fit_is_cut_and_loses_no_arm():
    from benchmarks.gpu_rows import packs_of, runs_of

    runs = runs_of(16)
    assert len({(run.rank, run.seed) for run in runs}) == 16
    job = replace(a_job(), runs=runs)
    assert [len(pack.runs) for pack in packs_of(job, arms_per_pack=5)] == [5, 5, 5, 1]
    assert sum((pack.runs for pack in packs_of(job, arms_per_pack=5)), ()) == runs


def test_packs_together_take_their_sum_in_a_worker_the_slowest_of_several_and_one_leg_after_another():
    seconds = {"a": 2.0, "b": 3.0, "c": 1.0, "d": 4.0, "e": 0.5}
    served = [
        processes._Served(folder=Path("runs", name), begun=0.5 if name in "cde" else 0.0) for name in seconds
    ]

    def together(**workers):
        logs = {f"runs/{name}": Path(log) for name, log in workers.items()}
        return processes._together(served, lambda each: seconds[each.folder.name], workers=logs)

    assert together(a="1", b="1", c="1", d="1", e="1") == sum(seconds.values())
    assert together(a="1", b="2", c="1", d="2", e="1") == 3.0 + 4.0
    assert together(a="1", b="2", c="1", d="1", e="2") == 3.0 + 5.0
