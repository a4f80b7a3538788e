"""`lorastudy recommend`, as a user meets it; and what it reads out of a store."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lorastudy.cli.main import main
from lorastudy.data.sources import dataset_fingerprint
from lorastudy.planning import recommendation
from lorastudy.planning.design import Designer
from lorastudy.planning.recommendation import _rate_ratio, _with_time_of_request, stored_evidence
from lorastudy.planning.recommendation_request import RecommendationRequest, read_request
from lorastudy.recommend.recommendation import Candidate, recommend
from lorastudy.report.findings.recommendation import because
from lorastudy.store import ExperimentTracker
from lorastudy.store.views import (
    ExperimentResult,
    ImportedResult,
    ImportedScore,
    ScoreValue,
    StatedQuestion,
    SuiteSummary,
)
from lorastudy.suite.base_model import base_model_fingerprint
from lorastudy.suite.question import Margin, Question
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import Arm, Suite

pytestmark = pytest.mark.long

LOSSES = {4: (1.1, 1.2, 1.15, 1.18, 1.12, 1.16), 8: (1.0, 1.01, 1.0, 0.99, 1.02, 1.0)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ended_with(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["recommend", *arguments])
    return ended.value.code, capsys.readouterr()


def test_without_a_store_published_rules_answer_in_json(capsys):
    code, told = ended_with(
        ["--base-model", "lab", "--vram", "1GB", "--max-seq-length", "32", "--json"], capsys
    )
    body = json.loads(told.out)
    assert code == 0
    assert body["grade"] == "literature only"
    assert (body["settings"]["target_modules"], body["settings"]["quantization"]) == ("all", "bf16")
    assert body["settings"]["per_device_train_batch_size"] == 16
    assert body["peak_bytes"] == sum(body["terms_bytes"].values())
    assert body["peak_bytes"] <= body["budget_bytes"] == int(1024**3 * 0.9)
    assert body["runner_up"]["settings"]["target_modules"] == "mlp"
    assert body["expected"] is None
    assert body["rules"]["precision"]["source"] == "Dettmers et al., QLoRA (arXiv 2305.14314)"


def test_data_that_the_model_cannot_read_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Frage {n}", "completion": f"Antwort {n}"} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as ended:
        main(["recommend", "--base-model", "lab", "--vram", "8GB", "--dataset", "rows.jsonl"])
    assert ended.value.code == 2
    assert (
        "error: rows.jsonl, with base_model lab: train: 100% of the answers' tokens"
        in capsys.readouterr().err
    )


def test_where_nothing_fits_one_message_says_what_would(capsys):
    code, told = ended_with(["--base-model", "lab", "--vram", "100KB"], capsys)
    assert code == 2
    assert told.err.startswith("error: --vram: 100KB: nothing fits. The weights of lab alone take ")
    assert "What would fit: more than " in told.err
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--vram", "much", "--vram: much: give a size"),
        ("--hours", "0", "--hours: 0: give a number greater than 0"),
        ("--margin", "-1", "--margin: -1: give a number greater than 0"),
        ("--base-model", "no-such/model", "no-such/model"),
        ("--database", "none.db", "none.db"),
        ("--dataset", "none.jsonl", "none.jsonl"),
    ],
)
def test_mistakes_are_told_in_one_message(option, value, message, capsys):
    values = {"--base-model": "lab", "--vram": "1KB"} | {option: value}
    code, told = ended_with([part for pair in values.items() for part in pair], capsys)
    assert code == 2
    assert message in told.err


def results(base_model="lab", sources=None, **settings):
    """Two ranks with six seeds each on a base and a data set."""
    sources = sources or {
        "base_model": base_model_fingerprint("lab"),
        "dataset": dataset_fingerprint("lab:facts"),
    }
    return [
        ExperimentResult(
            experiment_id=f"r{rank}/{seed}", suite_name="ranks", name=f"r{rank}_{seed}", arm=f"r{rank}",
            experiment_type="rank_ablation", seed=seed, status="completed", sources=sources,
            settings=Settings(
                base_model=base_model, lora_rank=rank, lora_alpha="2r", **settings
            ).model_dump(mode="json"),
            scores={("eval", "loss"): ScoreValue(value=loss, unit="nats", version=1, num_items=9)},
        )
        for rank, losses in LOSSES.items()
        for seed, loss in enumerate(losses)
    ]  # fmt: skip


class CandidateFinder:
    """CandidateFinder for which a rank takes 100 bytes, half of it in 4 bits, and full fine-tuning 5,000."""

    def __init__(self, budget_bytes):
        self.budget_bytes = budget_bytes

    def fitting(self, settings, *, departures=()):
        peak = settings.lora_rank * (50 if settings.quantization == "4bit" else 100)
        peak = 5_000 if settings.arm_method.is_full else peak
        if peak > self.budget_bytes:
            return None
        return Candidate(
            settings=settings,
            peak_bytes=peak,
            terms_bytes={},
            num_trainable_parameters=1,
            departures=departures,
        )


def answer(stored, *, budget_bytes=10_000, fixed=None, suite_name=None, **asked):
    tracker = SimpleNamespace(
        get_all_experiments=lambda suite_name: stored,
        get_suites=list,
        get_all_items=lambda ids, *, split, metric: {},
    )
    asked = RecommendationRequest(
        base=Settings(**asked, **(fixed or {})), has_data="dataset_path" in asked, budget_bytes=budget_bytes,
        fixed=fixed or {}, suite_name=suite_name,
    )  # fmt: skip
    evidence = stored_evidence(tracker, CandidateFinder(budget_bytes), request=asked)
    return recommend(list(evidence), [], budget_bytes=budget_bytes)


MINE = StatedQuestion(
    question=Question(margin=Margin(amount=0.05)), stated_at="2026-01-02T12:00:00+00:00", num_completed=0
)


def judged(*statements, **about):
    """What is recommended of a suite that stated this in the store, asked about by this file's question and margin."""
    suite = SuiteSummary(
        suite_name="ranks", description="", created_at="", num_experiments=12, questions=statements
    )
    tracker = SimpleNamespace(
        get_all_experiments=lambda suite_name: at_three_rates(results()),
        get_suites=lambda: [suite],
        get_all_items=lambda ids, *, split, metric: {},
    )
    asked = RecommendationRequest(
        base=Settings(), has_data=False, budget_bytes=10_000, **({"suite_name": "ranks"} | about)
    )
    return recommend(
        list(stored_evidence(tracker, CandidateFinder(10_000), request=asked)), [], budget_bytes=10_000
    )


def test_the_files_own_margin_is_gone_by_and_told_with_a_word_on_the_stores():
    stored = judged(MINE)
    assert (stored.name, stored.caveats) == ("r=8, lr 2e-4", ())
    own = Question(margin=Margin(amount=0.3))
    told = judged(MINE, question=own)
    assert told.name == "r=4, lr 2e-4"
    assert because(told) == (
        "it is the smallest rank shown to be as good as r=8, lr 2e-4 within the margin of 0.3 nats per token",
    )
    (caveat,) = told.caveats
    assert caveat == (
        "margin 0.3, as the suite file says; the store's question of ranks says margin 0.05, and a change after "
        "results exist can be chosen to suit them"
    )
    # an option comes first, and what the file shares with the store needs no word
    assert judged(MINE, question=own, margin=0.05).name == "r=8, lr 2e-4"
    assert judged(MINE, question=MINE.question).caveats == ()


def test_the_files_own_reference_is_gone_by():
    told = judged(MINE, question=Question(margin=Margin(amount=0.05), reference="r4"))
    (reason,) = because(told)
    assert reason.startswith("it is shown to be better than r=4, lr 2e-4")
    assert told.is_recommended
    assert any(caveat.startswith("reference r=4, as the suite file says; ") for caveat in told.caveats)


def test_another_suites_study_is_judged_by_the_files_margin_where_it_has_one():
    elsewhere = {"suite_name": "mine"}
    assert judged(MINE, question=Question(margin=Margin(amount=0.3)), **elsewhere).name == "r=4, lr 2e-4"
    silent = judged(MINE, question=Question(reference="no such arm"), **elsewhere)
    assert (silent.name, silent.caveats) == ("r=8, lr 2e-4", ())


def test_a_margin_of_the_store_that_was_set_with_results_at_hand_is_told():
    later = StatedQuestion(
        question=Question(margin=Margin(amount=0.3)), stated_at="2026-01-03T12:00:00+00:00", num_completed=12
    )
    told = judged(MINE, later)
    assert told.name == "r=4, lr 2e-4"
    assert told.caveats[0].startswith(
        "The margin was changed on 2026-01-03 12:00 UTC, when 12 results already existed"
    )


def test_a_suite_file_brings_its_question(tmp_path):
    (tmp_path / "mine.yaml").write_text(SUITE + "margin: 7%\nreference: r4\n", encoding="utf-8")
    about = read_request({}, file=tmp_path / "mine.yaml", suite_name=None, database="")
    asked = about.request(budget_bytes=1, margin=None)
    assert asked.question.margin == Margin(amount=0.07, is_share=True)
    assert asked.question.reference == "r4"


def at_three_rates(stored):
    """The same runs at a third and at three times of the rate too, where all are worse by 1."""
    found = []
    for result in stored:
        for factor, worse in ((1 / 3, 1.0), (1.0, 0.0), (3.0, 1.0)):
            rate = result.settings["learning_rate"] * factor
            scores = {key: replace(score, value=score.value + worse) for key, score in result.scores.items()}
            found.append(
                replace(
                    result,
                    experiment_id=f"{result.experiment_id}/{rate:g}",
                    arm=f"{result.arm}_lr{rate:g}",
                    name=f"{result.name}_lr{rate:g}",
                    settings={**result.settings, "learning_rate": rate},
                    scores=scores,
                )
            )
    return found


def test_a_study_of_this_model_and_data_is_measured_here():
    told = answer(at_three_rates(results()), dataset_path="lab:facts")
    assert (told.grade, told.name, told.expectation.held_out) == (
        "measured here", "r=8, lr 2e-4", "the held-out rows of lab:facts",
    )  # fmt: skip
    (reason,) = because(told)
    assert reason.startswith("it is shown to be better than r=4, lr 2e-4")
    assert told.is_recommended


def test_without_a_data_set_a_study_answers_for_its_own():
    assert answer(at_three_rates(results())).grade == "measured here"


def test_a_study_at_one_rate_is_measured_and_untuned():
    told = answer(results(), dataset_path="lab:facts")
    assert (told.grade, told.name, told.is_recommended) == ("measured here, untuned", "r=8", False)
    assert because(told)[0].startswith(
        "at the one learning rate that was tried (0.0002) it is shown to be ahead of r=4 by 0."
    )
    assert any(caveat.startswith("LS101") for caveat in told.caveats)


def test_other_data_are_named():
    told = answer(results(), dataset_path="lab:skill")
    assert told.grade == "interpolated from here"
    assert because(told)[2] == "not measured for this question: the data were lab:facts"


def test_another_version_of_the_model_is_near_and_another_family_says_nothing(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama", "hidden_size": 192}', encoding="utf-8")
    sources = {"base_model": "sha256:other", "dataset": dataset_fingerprint("lab:facts")}
    told = answer(results(str(other), sources))
    assert told.grade == "interpolated from here"
    assert "same family" in because(told)[2]
    assert told.candidate.settings.base_model == "lab"
    assert told.candidate.settings.learning_rate == 3.4e-4  # 2e-4 * 2 ** 0.781 = 3.437e-4
    (other / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    assert answer(results(str(other), sources)) is None


@pytest.mark.parametrize(
    ("budget_bytes", "settings", "departure"),
    [
        (400, (8, "4bit"), "the base is held in 4 bits, and was not in the study"),
        (200, (4, "4bit"), "half the rank that was measured"),
    ],
)
def test_what_fits_only_otherwise_is_interpolated_and_says_how(budget_bytes, settings, departure):
    told = answer(results(), budget_bytes=budget_bytes)
    rank, precision = settings
    assert told.grade == "interpolated from here"
    assert told.name == f"rank {rank} on qkvo, {precision} (after r=8)"
    assert (told.candidate.settings.lora_rank, told.candidate.settings.quantization) == settings
    assert f"not measured for this question: {departure}" in because(told)


def test_one_arm_alone_has_no_verdict_to_go_by():
    assert answer(results(), budget_bytes=100) is None


def test_between_models_without_a_rule_the_rate_stays(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "hidden_size": 8}', encoding="utf-8")
    assert _rate_ratio("lab", str(tmp_path)) == 1.0


def test_a_rate_that_a_rule_carries_over_has_two_digits_and_one_that_was_run_keeps_all(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 192}', encoding="utf-8")
    sources = {"base_model": "sha256:other", "dataset": dataset_fingerprint("lab:facts")}
    carried = answer(results(str(tmp_path), sources, learning_rate=0.001237))
    assert carried.candidate.settings.learning_rate == 0.0021  # 0.001237 * 2 ** 0.781 = 0.0021257
    assert answer(results(learning_rate=0.001237)).candidate.settings.learning_rate == 0.001237


def scored_on_test(stored):
    return [
        replace(each, scores=each.scores | {("test", "loss"): each.scores["eval", "loss"]}) for each in stored
    ]


@pytest.mark.parametrize(
    ("settings", "is_test", "held_out"),
    [
        ({}, False, "the held-out rows of lab:facts"),
        ({"eval_dataset_path": "own.jsonl"}, False, "the held-out rows in own.jsonl"),
        ({"test_fraction": 0.1}, True, "the test rows of lab:facts"),
        ({"eval_dataset_path": "own.jsonl", "test_fraction": 0.5}, True, "the test rows of own.jsonl"),
        ({"test_dataset_path": "last.jsonl"}, True, "the test rows in last.jsonl"),
    ],
)  # fmt: skip
def test_the_rows_that_the_expected_score_is_of_are_the_held_out_ones(settings, is_test, held_out):
    stored = results(**settings)
    told = answer(scored_on_test(stored) if is_test else stored)
    assert told.expectation.held_out == held_out


def test_asked_about_the_held_out_file_it_says_that_this_is_what_it_is():
    sources = {
        "base_model": base_model_fingerprint("lab"),
        "dataset": dataset_fingerprint("lab:facts"),
        "eval_dataset": dataset_fingerprint("lab:skill"),
    }
    told = answer(results(sources=sources), dataset_path="lab:skill")
    assert (
        because(told)[2] == "not measured for this question: the data were lab:facts; lab:skill was held out"
    )


def test_a_suite_of_two_base_models_answers_for_the_one_that_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    sources = {"base_model": "sha256:other", "dataset": dataset_fingerprint("lab:facts")}
    others = [
        replace(each, arm=f"other_{each.arm}", experiment_id=f"other/{each.experiment_id}")
        for each in results(str(tmp_path), sources)
    ]
    told = answer([*results(), *others], dataset_path="lab:facts")
    assert (told.grade, told.name) == ("measured here, untuned", "lab, r=8")


def test_a_precision_and_a_length_that_were_asked_for_stay_and_departures_are_told():
    told = answer(results(), fixed={"quantization": "fp32", "max_seq_length": 64})
    assert told.grade == "interpolated from here"
    assert because(told)[2:] == (
        "not measured for this question: the base was held in bf16",
        "not measured for this question: rows were cut at 512 tokens",
    )
    settings = told.candidate.settings
    assert (settings.quantization, settings.max_seq_length) == ("fp32", 64)
    assert answer(results(), fixed={"quantization": "bf16"}).grade == "measured here, untuned"


def test_where_a_study_compares_precisions_the_one_asked_for_answers():
    in_8bit = [
        replace(each, arm=f"{each.arm}_8bit", experiment_id=f"{each.experiment_id}/8bit")
        for each in results(quantization="8bit")
    ]
    told = answer([*results(), *in_8bit], fixed={"quantization": "8bit"})
    assert (told.name, told.candidate.settings.quantization) == ("r=8, 8-bit", "8bit")


def test_of_studies_that_are_as_near_the_suite_asked_about_answers():
    others = [
        replace(each, suite_name="mine", arm=f"my_{each.arm}", experiment_id=f"mine/{each.experiment_id}")
        for each in results()
    ]
    assert answer([*results(), *others]).name == "r=8"
    asked = answer([*results(), *others], suite_name="mine")
    assert (asked.name, asked.analysis.study.suite_name) == ("r=8", "mine")


SUITE = """\
quantization: bf16
dataset_path: lab:skill
max_seq_length: 32
max_steps: 20
factors: {lora_rank: [1, 4]}
"""


def test_a_suite_file_says_what_to_recommend_for_and_options_come_first(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(SUITE, encoding="utf-8")
    code, told = ended_with(["mine.yaml", "--vram", "1GB", "--json"], capsys)
    body = json.loads(told.out)
    assert code == 0
    settings = body["settings"]
    assert (settings["quantization"], settings["max_seq_length"], settings["max_steps"]) == ("bf16", 32, 20)
    assert settings["learning_rate"] == 0.008  # fifteen times the rate of full fine-tuning: 20 steps are few
    assert "precision" not in body["rules"]
    given = {"quantization": "fp32", "max_seq_length": 16}
    about = read_request(given, file=tmp_path / "mine.yaml", suite_name=None, database="")
    assert (about.base.dataset_path, about.base.max_steps) == ("lab:skill", 20)
    assert about.request(budget_bytes=1, margin=None).fixed == given


def test_what_the_answer_changes_of_the_suite_file_is_said(tmp_path, capsys):
    """The published rule takes all modules; no arm of the file does."""
    (tmp_path / "mine.yaml").write_text(SUITE + "target_modules: qv\n", encoding="utf-8")
    _, told = ended_with(["mine.yaml", "--vram", "1GB"], capsys)
    changed = told.out.split("changed from the suite file:\n")[1].split("\n\n")[0].splitlines()
    assert "  target_modules: all, where the file has qv" in changed
    assert not any(line.startswith(("  max_steps", "  quantization", "  learning_rate")) for line in changed)


def test_other_rows_than_the_suite_files_are_cut_by_the_usual_rule(tmp_path):
    (tmp_path / "mine.yaml").write_text(SUITE + "eval_dataset_path: lab:skill_eval\n", encoding="utf-8")
    about = read_request(
        {"dataset_path": "lab:facts"}, file=tmp_path / "mine.yaml", suite_name=None, database=""
    )
    assert (about.base.dataset_path, about.base.eval_dataset_path) == ("lab:facts", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what the recommendation is for"),
        (["mine.yaml", "--suite-name", "mine"], "give one of them"),
        (["mine.yaml"], "mine.yaml: has arms on lab:facts and lab:skill; choose one with --dataset"),
        (["--suite-name", "mine"], "there is no results store here"),
    ],
)
def test_what_is_not_said_or_not_clear_is_asked_for(arguments, message, tmp_path, capsys):
    text = SUITE.replace("dataset_path: lab:skill\n", "").replace(
        "[1, 4]", "[1], dataset_path: [lab:facts, lab:skill]"
    )
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    code, told = ended_with(arguments, capsys)
    assert code == 2
    assert message in told.err


@pytest.fixture
def store(tmp_path):
    """A suite that was begun, and one that was imported."""
    suite = Suite(
        name="ranks", description="", experiment_type="rank_ablation", path=None,
        arms=tuple(
            Arm(name=None, settings=Settings(lora_rank=rank, quantization="bf16", max_seq_length=32), seeds=(0,))
            for rank in (1, 4)
        ),
    )  # fmt: skip
    imported = ImportedResult(
        suite_name="elsewhere", arm="r4", seed=0, settings={}, sources={}, costs={}, tool="table", file="f",
        file_sha256="0", location="f:2",
        scores=(ImportedScore(metric="accuracy", value=0.5, unit="share", lower_is_better=False),),
    )  # fmt: skip
    with ExperimentTracker(tmp_path / "all.db", writable=True) as tracker:
        tracker.register("ranks", Designer(suite=suite).design().experiments)
        tracker.add_imported([imported])
    return ["--database", "all.db"]


def test_a_suite_of_the_store_says_what_to_recommend_for(store, capsys):
    code, told = ended_with(["--suite-name", "ranks", *store], capsys)
    assert code == 0
    assert (
        told.out.splitlines()[1]
        == "for: lab, the base in bf16, rows of 32 tokens, from the suite ranks alone"
    )
    assert "ranks: none of its 2 experiments has completed" in told.out
    assert "elsewhere: imported, and a recommendation comes from your own runs only" in told.out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "elsewhere",
            "elsewhere: its results were imported, and a recommendation comes from your own runs only",
        ),
        ("none", "all.db has no suite of this name; it has: ranks"),
    ],
)
def test_a_suite_that_cannot_answer_is_named_with_the_reason(name, message, store, capsys):
    code, told = ended_with(["--suite-name", name, *store], capsys)
    assert code == 2
    assert message in told.err


def test_full_fine_tuning_is_recommended_only_where_it_fits_and_as_it_was_measured():
    """It is the best by 0.3 nats. Without room for it, or in 4 bits, the better of the ranks is the answer."""
    whole = Settings(base_model="lab", method="full").model_dump(mode="json")
    full = [
        replace(
            each,
            experiment_id=f"full/{each.seed}",
            name=f"full_{each.seed}",
            arm="full",
            settings=whole,
            scores={
                key: replace(score, value=0.7 + each.seed**2 / 500) for key, score in each.scores.items()
            },
        )
        for each in results()
        if each.arm == "r8"
    ]
    stored = at_three_rates([replace(each, experiment_type="custom") for each in [*results(), *full]])
    found = answer(stored)
    assert found.name.startswith("full fine-tuning")
    assert (
        recommendation.shown_settings(found.candidate.settings).items()
        >= {"method": "full", "quantization": "bf16"}.items()
    )
    assert "lora_rank" not in recommendation.shown_settings(found.candidate.settings)
    for other in (answer(stored, budget_bytes=4_000), answer(stored, fixed={"quantization": "4bit"})):
        assert other.candidate.settings.lora_rank == 8
        assert not other.candidate.settings.arm_method.is_full


def test_data_that_were_never_studied_get_a_start_with_lengths_of_their_own():
    stored = at_three_rates(results(max_steps=7, max_seq_length=64))
    here, elsewhere = (answer(stored, dataset_path=data) for data in ("lab:facts", "lab:skill"))
    assert here.is_recommended
    assert (here.candidate.settings.max_steps, here.candidate.settings.max_seq_length) == (7, 64)
    assert not elsewhere.is_recommended
    assert (elsewhere.candidate.settings.max_steps, elsewhere.candidate.settings.max_seq_length) == (
        None,
        512,
    )
    assert elsewhere.candidate.train_seconds is None
    asked = answer(stored, dataset_path="lab:skill", max_steps=30)
    assert asked.candidate.settings.max_steps == 30


def test_a_timed_step_times_the_steps_of_the_data_asked_about():
    settings = Settings(per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=2)
    asked = RecommendationRequest(base=Settings(dataset_path="lab:skill"), has_data=True, budget_bytes=1)
    step = Candidate(
        settings=settings, peak_bytes=1, terms_bytes={}, num_trainable_parameters=1, train_seconds=0.5
    )
    num_steps = math.ceil(2 * len(asked.train_rows) / 8)
    assert _with_time_of_request(step, asked).train_seconds == 0.5 * num_steps
    assert _with_time_of_request(replace(step, train_seconds=None), asked).train_seconds is None


def test_a_time_that_is_not_known_has_no_source(monkeypatch):
    monkeypatch.setattr(recommendation, "literature_settings", lambda *_, **__: [Settings()])
    of_one_step = Candidate(
        settings=Settings(), peak_bytes=1, terms_bytes={}, num_trainable_parameters=1, train_seconds=0.5,
        time_from="timed steps",
    )  # fmt: skip
    finder = SimpleNamespace(shape=None, fitting=lambda _: of_one_step)

    def timed(**base):
        asked = RecommendationRequest(base=Settings(**base), has_data=False, budget_bytes=1)
        (found,) = recommendation.literature_candidates(finder, asked)
        return found.train_seconds, found.time_from

    assert timed() == (None, None)
    assert timed(max_steps=10) == (5.0, "timed steps")
