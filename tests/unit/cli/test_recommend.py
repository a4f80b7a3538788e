"""`lorastudy recommend`, as a user meets it; and what it reads out of a store."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lorastudy.analysis.recommendation import Candidate, recommend
from lorastudy.cli.main import main
from lorastudy.cli.recommending import Asked, _rate_ratio, stored_evidence
from lorastudy.data.fingerprint import dataset_fingerprint
from lorastudy.spec.identity import base_model_fingerprint
from lorastudy.spec.settings import Settings
from lorastudy.tracker.views import ExperimentResult, ScoreValue

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


class Plans:
    """Plans for which a rank takes 100 bytes, half of it in 4 bits."""

    def __init__(self, budget_bytes):
        self.budget_bytes = budget_bytes

    def fitting(self, settings, *, departures=()):
        peak = settings.lora_rank * (50 if settings.quantization == "4bit" else 100)
        if peak > self.budget_bytes:
            return None
        return Candidate(
            settings=settings,
            peak_bytes=peak,
            terms_bytes={},
            num_trainable_parameters=1,
            departures=departures,
        )


def answer(stored, *, budget_bytes=10_000, **asked):
    tracker = SimpleNamespace(
        get_all_experiments=lambda: stored, get_suites=list, get_all_items=lambda ids, *, split, metric: {}
    )
    asked = Asked(
        base=Settings(**asked), has_data="dataset_path" in asked, budget_bytes=budget_bytes, margin=None
    )
    evidence = stored_evidence(tracker, Plans(budget_bytes), asked=asked)
    return recommend(list(evidence), [], budget_bytes=budget_bytes)


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
    assert (told.grade, told.name, told.expectation.data) == ("measured here", "r8_lr0.0002", "lab:facts")
    assert told.because == ("shown to be better than r4_lr0.0002",)


def test_without_a_data_set_a_study_answers_for_its_own():
    assert answer(at_three_rates(results())).grade == "measured here"


def test_a_study_at_one_rate_is_measured_and_untuned():
    told = answer(results(), dataset_path="lab:facts")
    assert (told.grade, told.name, told.untuned) == ("measured here, untuned", "r8", True)
    assert told.because[0] == "at the one learning rate that was tried (0.0002) shown to be ahead of r4"
    assert any(caveat.startswith("LS101") for caveat in told.caveats)


def test_other_data_are_named():
    told = answer(results(), dataset_path="lab:skill")
    assert told.grade == "interpolated from here"
    assert told.because[2] == "not measured as such: the data were lab:facts"


def test_another_version_of_the_model_is_near_and_another_family_says_nothing(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama", "hidden_size": 192}', encoding="utf-8")
    sources = {"base_model": "sha256:other", "dataset": dataset_fingerprint("lab:facts")}
    told = answer(results(str(other), sources))
    assert told.grade == "interpolated from here"
    assert "same family" in told.because[2]
    assert told.candidate.settings.base_model == "lab"
    assert told.candidate.settings.learning_rate == pytest.approx(2e-4 * 2**0.781)
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
    assert told.name == f"rank {rank} on qkvo, {precision} (after r8)"
    assert (told.candidate.settings.lora_rank, told.candidate.settings.quantization) == settings
    assert f"not measured as such: {departure}" in told.because


def test_one_arm_alone_has_no_verdict_to_go_by():
    assert answer(results(), budget_bytes=100) is None


def test_between_models_without_a_rule_the_rate_stays(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "hidden_size": 8}', encoding="utf-8")
    assert _rate_ratio("lab", str(tmp_path)) == 1.0
