"""What the runner writes is what readers get: once, from the current attempt, in order."""

import dataclasses
import json

import pytest

from lorastudy.errors import StoreError
from lorastudy.protocol.records import Generation, Outcome, PackProfile, PackStep
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import ScoreValue, StepRow


def start(tracker, experiments, *, attempt=1, pack_id="pack-1"):
    for experiment in experiments:
        tracker.start_run(
            experiment.id,
            attempt=attempt,
            pack_id=pack_id,
            engine="packed",
            run_folder=f"runs/{pack_id}/{attempt}",
        )


def take_all(tracker, records, *, attempt=1, pack_id="pack-1"):
    return [tracker.take(record, pack_id=pack_id, attempt=attempt) for record in records]


@pytest.fixture
def pair(tracker, make_experiment):
    """Two registered experiments whose first attempt runs in one pack."""
    experiments = [make_experiment(8), make_experiment(16)]
    tracker.register("ranks", experiments, description="Which rank?")
    start(tracker, experiments)
    return experiments


def test_every_kind_of_record_comes_back_as_it_was_written(tracker, pair, make_records):
    records = make_records(*(experiment.id for experiment in pair))
    (
        environment,
        of_train,
        of_eval,
        _,
        _,
        _,
        _,
        frequencies,
        constant,
        generation,
        profile,
        *_,
        pack_profile,
    ) = records
    assert all(take_all(tracker, records))

    first, second = tracker.get_all_experiments()
    assert (first.name, first.arm, first.seed, first.suite_name) == ("r8_s0", "r8", 0, "ranks")
    assert first.settings == json.loads(pair[0].settings.model_dump_json())
    assert first.sources == vars(pair[0].sources)
    assert (first.status, first.attempt, first.engine, first.run_folder) == (
        "completed",
        1,
        "packed",
        "runs/pack-1/1",
    )
    assert first.started_at == first.finished_at == "2026-01-02T12:00:00+00:00"
    assert first.adapter_path == f"{pair[0].id}/final_model"
    assert first.num_steps == 2
    assert first.scores == {
        ("eval", "loss"): ScoreValue(value=1.6, unit="nats/token", version=1, num_items=2),
        ("eval", "exact_match"): ScoreValue(value=0.5, unit="share", version=1, num_items=2),
    }
    assert (first.profile, second.profile) == (profile, None)
    assert first.pack_profile == second.pack_profile == pack_profile
    assert first.train_seconds == 15.0  # 30 s of the pack by its 2 arms
    assert first.data == second.data == (of_eval, of_train)
    assert first.trivial == second.trivial == (constant, frequencies)
    assert first.environment == second.environment == environment
    assert tracker.get_items(pair[0].id, split="eval", metric="loss") == ((1.0, 1.8), (1, 3))
    assert tracker.get_items(pair[0].id, split="eval", metric="exact_match") == ((0.0, 1.0), None)
    every = tracker.get_all_items([pair[0].id, "unknown"], split="eval", metric="loss")
    assert every == {pair[0].id: ((1.0, 1.8), (1, 3))}
    assert tracker.get_generations(pair[0].id) == [generation]
    assert tracker.get_steps(pair[1].id) == [
        StepRow(step=1, loss=0.1 + 0.2, learning_rate=1e-3, grad_norm=None),
        StepRow(step=2, loss=0.1 + 0.4, learning_rate=5e-4, grad_norm=None),
    ]
    assert tracker.verify() == []


def test_taking_the_same_records_again_changes_nothing(tracker, pair, make_records):
    records = make_records(*(experiment.id for experiment in pair))
    take_all(tracker, records)
    before = tracker.get_all_experiments()
    assert not any(take_all(tracker, records))
    assert tracker.get_all_experiments() == before
    assert len(tracker.get_steps(pair[0].id)) == 2
    assert len(tracker.get_generations(pair[0].id)) == 1


def test_a_stale_attempt_is_refused_but_only_for_experiments_that_moved_on(tracker, pair, make_records):
    retried, staying = pair
    start(tracker, [retried], attempt=2, pack_id="pack-2")
    records = make_records(retried.id, staying.id)
    step = next(record for record in records if isinstance(record, PackStep))
    assert not tracker.take(
        Outcome(experiment_id=retried.id, status="completed"), pack_id="pack-1", attempt=1
    )
    assert tracker.take(step, pack_id="pack-1", attempt=1)
    assert tracker.take(Outcome(experiment_id=staying.id, status="completed"), pack_id="pack-1", attempt=1)
    assert [result.status for result in tracker.get_all_experiments()] == ["running", "completed"]
    assert tracker.get_steps(retried.id) == []
    assert len(tracker.get_steps(staying.id)) == 1

    start(tracker, [staying], attempt=2, pack_id="pack-2")
    assert not any(take_all(tracker, make_records(retried.id, staying.id)))


def test_records_of_a_run_that_was_never_started_are_refused(tracker, pair, make_records, make_experiment):
    stranger = make_experiment(64)
    assert not any(take_all(tracker, make_records(pair[0].id), pack_id="pack-9"))
    assert not tracker.take(
        Generation(experiment_id=stranger.id, prompt="", reference="", answer=""), pack_id="pack-1", attempt=1
    )


def test_status_goes_from_pending_over_running_to_its_end(tracker, make_experiment):
    experiments = [make_experiment(rank) for rank in (1, 2, 4, 8)]
    tracker.register("ranks", experiments)
    start(tracker, experiments[1:])
    diverged = Outcome(
        experiment_id=experiments[2].id,
        status="failed",
        failure_kind="diverged",
        message="loss is not finite",
        traceback="Traceback ...",
        step=17,
    )
    assert tracker.take(diverged, pack_id="pack-1", attempt=1)
    assert tracker.fail_run(experiments[3].id, attempt=1, kind="crashed", message="killed by signal 9")
    results = tracker.get_all_experiments()
    assert [result.status for result in results] == ["pending", "running", "failed", "failed"]
    assert (results[0].attempt, results[0].started_at, results[1].finished_at) == (None, None, None)
    assert (results[2].failure_kind, results[2].failure_message) == ("diverged", "loss is not finite")
    assert (results[2].num_steps, results[2].traceback) == (17, "Traceback ...")
    assert (results[3].failure_kind, results[3].failure_message) == ("crashed", "killed by signal 9")
    assert [result.name for result in tracker.get_all_experiments(status="failed")] == ["r4_s0", "r8_s0"]
    assert [result.name for result in tracker.get_all_experiments(status="pending")] == ["r1_s0"]


def test_the_first_end_of_a_run_is_its_only_one(tracker, pair):
    assert tracker.fail_run(pair[0].id, attempt=1, kind="crashed", message="gone")
    assert not tracker.fail_run(pair[0].id, attempt=1, kind="crashed", message="again")
    assert not tracker.take(
        Outcome(experiment_id=pair[0].id, status="completed"), pack_id="pack-1", attempt=1
    )
    assert tracker.get_experiment(pair[0].id).failure_message == "gone"


def test_a_later_attempt_without_a_result_never_hides_an_earlier_completed_run(tracker, pair, make_records):
    records = make_records(*(experiment.id for experiment in pair))
    take_all(tracker, records)
    start(tracker, pair, attempt=2)
    assert tracker.get_experiment(pair[0].id).status == "completed"
    tracker.fail_run(pair[0].id, attempt=2, kind="out_of_memory", message="no")
    tracker.take(Outcome(experiment_id=pair[1].id, status="stopped"), pack_id="pack-1", attempt=2)
    assert [(result.status, result.attempt) for result in tracker.get_all_experiments()] == [
        ("completed", 1)
    ] * 2
    assert tracker.get_experiment(pair[0].id).scores
    assert len(tracker.get_steps(pair[0].id)) == 2

    start(tracker, pair, attempt=3)
    tracker.take(Outcome(experiment_id=pair[0].id, status="completed"), pack_id="pack-1", attempt=3)
    assert tracker.get_experiment(pair[0].id).attempt == 3


def test_without_a_completed_run_the_last_failure_is_shown(tracker, pair):
    tracker.fail_run(pair[0].id, attempt=1, kind="crashed", message="one")
    start(tracker, pair[:1], attempt=2)
    tracker.fail_run(pair[0].id, attempt=2, kind="crashed", message="two")
    assert tracker.get_experiment(pair[0].id).failure_message == "two"


def test_completed_gives_the_environment_of_the_latest_completed_run(tracker, pair, make_records):
    records = make_records(*(experiment.id for experiment in pair))
    ids = [experiment.id for experiment in pair]
    assert tracker.completed(ids) == {}
    take_all(tracker, records)
    start(tracker, pair[:1], attempt=2)
    newer = dataclasses.replace(records[0], torch="2.14.0")
    take_all(tracker, [newer, Outcome(experiment_id=ids[0], status="completed")], attempt=2)
    assert tracker.completed(ids) == {ids[0]: newer, ids[1]: records[0]}
    assert tracker.completed(ids[1:]) == {ids[1]: records[0]}


def test_a_completed_run_of_unknown_environment_counts_as_none(tracker, pair):
    tracker.take(Outcome(experiment_id=pair[0].id, status="completed"), pack_id="pack-1", attempt=1)
    assert tracker.completed([pair[0].id]) == {}


def test_next_attempt_is_beyond_every_member(tracker, pair, make_experiment):
    new = make_experiment(64)
    assert tracker.next_attempt([new.id]) == 1
    start(tracker, pair[:1], attempt=5)
    assert tracker.next_attempt([pair[1].id]) == 2
    assert tracker.next_attempt([pair[0].id, pair[1].id, new.id]) == 6


def test_start_run_refuses_what_would_mix_up_runs(tracker, pair, make_experiment):
    start(tracker, pair)  # again: nothing changes
    with pytest.raises(StoreError, match="not registered"):
        start(tracker, [make_experiment(64)])
    with pytest.raises(StoreError, match="already runs in runs/pack-1/1"):
        tracker.start_run(pair[0].id, attempt=1, pack_id="pack-1", engine="packed", run_folder="elsewhere")
    with pytest.raises(StoreError, match="belongs to another pack"):
        start(tracker, pair, pack_id="pack-2")
    start(tracker, pair, attempt=3)
    with pytest.raises(StoreError, match="older than its attempt 3"):
        start(tracker, pair, attempt=2)


def test_an_experiment_in_two_suites_appears_in_each_and_runs_once(
    tracker, pair, make_experiment, make_records
):
    shared = make_experiment(8, name="baseline", arm="base", experiment_type="module_ablation")
    assert shared.id == pair[0].id
    tracker.register("modules", [make_experiment(4, experiment_type="module_ablation"), shared])
    take_all(tracker, make_records(*(experiment.id for experiment in pair)))
    everything = [(result.suite_name, result.name, result.status) for result in tracker.get_all_experiments()]
    assert everything == [
        ("modules", "r4_s0", "pending"),  # both suites were made at noon: then by name
        ("modules", "baseline", "completed"),
        ("ranks", "r8_s0", "completed"),
        ("ranks", "r16_s0", "completed"),
    ]
    assert [result.name for result in tracker.get_all_experiments(suite_name="ranks")] == ["r8_s0", "r16_s0"]
    assert [result.name for result in tracker.get_experiments_by_type("module_ablation")] == [
        "r4_s0",
        "baseline",
    ]
    assert [(suite.suite_name, suite.num_experiments) for suite in tracker.get_suites()] == [
        ("modules", 2),
        ("ranks", 2),
    ]


def test_registering_again_keeps_runs_and_takes_the_new_names_and_order(tracker, pair, make_experiment):
    tracker.register("ranks", pair)
    assert [result.name for result in tracker.get_all_experiments()] == ["r8_s0", "r16_s0"]
    assert tracker.get_suites()[0].description == "Which rank?"
    renamed = [make_experiment(32), make_experiment(16, name="large"), make_experiment(8)]
    tracker.register("ranks", renamed, description="Now?")
    results = tracker.get_all_experiments()
    assert [(r.name, r.status) for r in results] == [
        ("r32_s0", "pending"),
        ("large", "running"),
        ("r8_s0", "running"),
    ]
    assert tracker.get_suites()[0].description == "Now?"
    assert tracker.verify() == []


def test_experiments_added_one_by_one_stay_in_their_order(tracker, make_experiment):
    for rank in (16, 4, 8, 4):
        tracker.register("single", [make_experiment(rank)])
    assert [result.settings["lora_rank"] for result in tracker.get_all_experiments()] == [16, 4, 8]


def test_two_names_for_one_experiment_are_refused(tracker, make_experiment):
    with pytest.raises(StoreError, match="one and two are the same experiment"):
        tracker.register("ranks", [make_experiment(8, name="one"), make_experiment(8, name="two")])
    assert tracker.get_suites() == []


def test_whole_numbers_and_unicode_keep_their_hash(tracker, pair):
    profile = PackProfile(
        engine="packed",
        num_arms=2,
        memory_kind="cpu_resident",
        peak_memory_bytes=None,
        median_step_seconds=None,
        tokens_per_second=None,
        load_seconds=1,  # a whole number in a column of doubles comes back as 1.0
        train_seconds=0.1 + 0.2,
        eval_seconds=0,
    )
    answer = Generation(experiment_id=pair[0].id, prompt="Grüße 😀", reference='"', answer="\n\t\\")
    assert all(take_all(tracker, [profile, answer]))
    assert tracker.verify() == []
    assert tracker.get_generations(pair[0].id) == [answer]


def test_a_missing_score_names_those_that_are_there(tracker, pair, make_records):
    with pytest.raises(StoreError, match="no score eval/loss; it has: none"):
        tracker.get_items(pair[0].id, split="eval", metric="loss")
    take_all(tracker, make_records(pair[0].id))
    with pytest.raises(StoreError, match="no score eval/rouge; it has: eval/exact_match, eval/loss"):
        tracker.get_items(pair[0].id, split="eval", metric="rouge")
    with pytest.raises(StoreError, match="has no experiment exp-0"):
        tracker.get_experiment("exp-0")


def test_export_holds_what_the_reads_give(tracker, pair, make_records, tmp_path):
    take_all(tracker, make_records(*(experiment.id for experiment in pair)))
    path = tmp_path / "new" / "my_experiments.json"
    tracker.export_to_json(path)
    once = path.read_bytes()
    tracker.export_to_json(path)
    assert path.read_bytes() == once
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    body = json.loads(once)
    assert body["format"] == 1
    assert body["suites"][0]["suite_name"] == "ranks"
    first = body["experiments"][0]
    assert (first["name"], first["status"], first["train_seconds"]) == ("r8_s0", "completed", 15.0)
    assert first["settings"]["lora_rank"] == 8
    assert first["environment"]["torch"] == "2.13.0"
    assert {
        "split": "eval",
        "metric": "loss",
        "value": 1.6,
        "unit": "nats/token",
        "version": 1,
        "num_items": 2,
        "step": None,
        "train_seconds": None,
    } in first["scores"]


def test_the_snippet_of_the_readme_works_as_written(tmp_path, monkeypatch, make_experiment):
    monkeypatch.chdir(tmp_path)
    with ExperimentTracker(writable=True) as writing:
        writing.register("ranks", [make_experiment(8)])
    tracker = ExperimentTracker()
    assert tracker.get_all_experiments(status="completed") == []
    assert [result.arm for result in tracker.get_experiments_by_type("rank_ablation")] == ["r8"]
    tracker.export_to_json("my_experiments.json")
    assert json.loads((tmp_path / "my_experiments.json").read_text())["experiments"][0]["status"] == "pending"
    tracker.close()


def test_a_suite_narrowed_keeps_the_runs_of_what_left_it(tracker, pair, make_records):
    take_all(tracker, make_records(*(experiment.id for experiment in pair)))
    suite_name = tracker.get_suites()[0].suite_name
    assert tracker.keep_only(suite_name, pair[:1]) == 1
    assert [result.experiment_id for result in tracker.get_all_experiments()] == [pair[0].id]
    assert set(tracker.completed([experiment.id for experiment in pair])) == {each.id for each in pair}
    tracker.register(suite_name, pair)
    assert [result.status for result in tracker.get_all_experiments()] == ["completed", "completed"]
