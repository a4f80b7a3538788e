"""`lorastudy check` and the dry run's findings, as a user meets them."""

import contextlib
import json
import math
import re
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from lorastudy import lab
from lorastudy.cli.main import main
from lorastudy.lint.case import arms_in_words, tokens_seen
from lorastudy.lint.lint import RULES
from lorastudy.planning import study_plan
from lorastudy.planning.design import Designer
from lorastudy.planning.suite_facts import layout_notes, read_data, rows_key, suite_case
from lorastudy.protocol.records import DataSummary, RowsRead
from lorastudy.suite.base_model import read_config
from lorastudy.suite.rate_search import published_rates
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite_file import load_suite
from lorastudy.version import installed_version

pytestmark = pytest.mark.long

FAIR = """
experiment_type: rank_ablation
dataset_path: lab:facts
eval_dataset_path: lab:facts_eval
max_steps: 16
per_device_train_batch_size: 32
lora_alpha: 2r
learning_rate: [0.003, 0.006, 0.012]
seeds: [0, 1, 2, 3, 4, 5]
experiments:
  - {name: small, lora_rank: 4}
  - {name: large, lora_rank: 8}
"""
UNFAIR = FAIR.replace("lora_rank: 4}", "lora_rank: 4, max_steps: 32}")


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def suite(text):
        Path("suite.yaml").write_text(text, encoding="utf-8")
        return "suite.yaml"

    return suite


def test_a_fair_suite_has_no_finding(suite, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", suite(FAIR)])
    assert ended.value.code == 0
    verdict, *adapted, trivial = capsys.readouterr().out.splitlines()
    assert verdict == (
        f"suite: 6 arms checked against {len(RULES)} rules; 0 findings invalidate verdicts, 0 warnings, 0 notes"
    )
    # 3 layers of hidden size 128; at rank 4 each of q, k, v, o has 4 (in + out) parameters, at rank 8 twice as many
    assert [line.partition(" (")[0] for line in adapted] == ["adapts q 3, k 3, v 3, o 3"] * 2
    counts = [int(re.search(r"\(([\d,]+) trainable", line)[1].replace(",", "")) for line in adapted]
    assert counts[1] == 2 * counts[0] > 0
    assert re.fullmatch(
        r"without a model, on 128 held-out rows: answer frequencies: loss [\d.]+ nats/token; token frequencies: loss [\d.]+ "
        r"nats/token; the constant answer: token accuracy [\d.]+; the constant answer '\w+': exact match [\d.]+ of 16 rows asked",
        trivial,
    )


def test_what_the_most_frequent_label_scores_is_told_before_a_run(suite, capsys):
    """Twelve of twenty training answers are one person's city; so are three of four that are held out."""
    cities = ["Paris"] * 12 + ["Rome"] * 8
    rows = [{"prompt": f"{n} :", "completion": f" {city}"} for n, city in enumerate(cities)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("eval.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [rows[0], rows[1], rows[2], rows[19]])
    )
    text = FAIR.replace("lab:facts_eval", "eval.jsonl").replace("lab:facts", "train.jsonl")
    with pytest.raises(SystemExit):
        main(["check", suite(f"{text}max_generation_samples: 4\n"), "--json"])
    body = json.loads(capsys.readouterr().out)
    assert body["trivial"].keys() == body["adapted"].keys()
    scores, *others = body["trivial"].values()
    assert others == [scores] * 5
    told = {(score["predictor"], score["metric"]): score for score in scores}
    match = told["constant", "exact_match"]
    assert (match["value"], match["answer"], match["split"]) == (0.75, "Paris", "eval")
    # A city and the end are two tokens; of 21 counts one is left for what training never has.
    expected = -(3 * math.log(12 / 21) + math.log(8 / 21)) / 8
    assert told["frequencies", "loss"]["value"] == pytest.approx(expected)


def test_what_guessing_scores_on_two_data_sets_is_told_apart_by_arm(suite, capsys):
    """Held-out answers are Paris in three of four rows of one file, and in one of four of the other."""
    for name, cities in (("most", ["Paris"] * 3 + ["Rome"]), ("few", ["Paris"] + ["Rome"] * 3)):
        for path, answers in (
            (f"{name}.jsonl", ["Paris"] * 12 + ["Rome"] * 8),
            (f"{name}_eval.jsonl", cities),
        ):
            rows = [{"prompt": f"{name} {n} :", "completion": f" {city}"} for n, city in enumerate(answers)]
            Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = """
experiment_type: custom
max_steps: 4
max_generation_samples: 4
experiments:
  - {name: of_most, dataset_path: most.jsonl, eval_dataset_path: most_eval.jsonl}
  - {name: of_few, dataset_path: few.jsonl, eval_dataset_path: few_eval.jsonl}
"""
    with pytest.raises(SystemExit):
        main(["check", suite(text), "--json"])
    trivial = json.loads(capsys.readouterr().out)["trivial"]
    matches = {
        arm: score["value"]
        for arm, scores in trivial.items()
        for score in scores
        if score["metric"] == "exact_match"
    }
    assert matches == {"of_most": 0.75, "of_few": 0.25}
    for score in trivial["of_most"]:
        assert score.keys() == {"predictor", "split", "metric", "version", "unit", "value", "answer"}


def test_what_takes_a_verdict_away_ends_with_1_and_says_why_and_what_to_do(suite, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", suite(UNFAIR)])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    first, found, why, change, *_ = out.splitlines()
    assert first == (
        "LS203 invalidates: Unequal length of training "
        "(“r=4, 32 steps, lr 3e-3”, “r=4, 32 steps, lr 6e-3”, “r=4, 32 steps, lr 1.2e-2”)"
    )
    assert found == "  found:  32 steps, the reference's 16 steps; other settings differ too"
    assert "arXiv" in why
    assert "max_steps" in change


def test_a_warning_alone_ends_with_0(suite, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", suite(FAIR.replace("[0, 1, 2, 3, 4, 5]", "[0, 1]"))])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "LS401 warning" in out
    assert (
        "0 findings invalidate verdicts, 1 warning, 0 notes\nThese seeds are too few to show a difference"
        in out
    )


def test_one_seed_takes_the_verdicts_away(suite, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", suite(FAIR.replace("[0, 1, 2, 3, 4, 5]", "[0]"))])
    assert ended.value.code == 1
    out = capsys.readouterr().out
    assert "LS401 invalidates" in out
    assert (
        "one seed shared with the reference: nothing is known about the noise between seeds, so no verdict is possible"
        in out
    )
    assert "cannot go below p = 1" not in out


def test_findings_as_json(suite, capsys):
    with pytest.raises(SystemExit):
        main(["check", suite(UNFAIR), "--json"])
    body = json.loads(capsys.readouterr().out)
    assert body["suite_name"] == "suite"
    assert [(finding["code"], finding["severity"]) for finding in body["findings"]] == [
        ("LS203", "invalidates")
    ]
    assert body["findings"][0].keys() == {
        "code", "title", "severity", "arms", "found", "why", "source", "change",
    }  # fmt: skip


def test_a_mistake_in_the_file_ends_with_2(suite, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", suite(FAIR.replace("lora_alpha", "lora_alhpa"))])
    assert ended.value.code == 2
    assert "did you mean lora_alpha?" in capsys.readouterr().err


UNKNOWN = FAIR.replace("seeds: [0, 1, 2, 3, 4, 5]", "seeds: [0]\nmax_arms_per_pack: 1")
FOREIGN = [{"prompt": f"Question {n}?", "completion": f"Antwort {n}"} for n in range(20)]


@pytest.mark.parametrize("key", ["dataset_path", "eval_dataset_path"])
def test_words_that_the_tokenizer_does_not_know_are_refused_alike_by_check_dry_run_and_run(
    suite, capsys, monkeypatch, key
):
    """Once each, though six packs would be refused, and before anything is written."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("foreign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in FOREIGN))
    file = suite(re.sub(rf"^{key}: .*$", f"{key}: foreign.jsonl", UNKNOWN, flags=re.MULTILINE))
    for arguments in (["check", file], ["suite", file, "--dry-run"], ["suite", file]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2, arguments
        out, err = capsys.readouterr()
        planning, error = err.splitlines()
        assert planning.startswith("planning: reading the rows")
        split = key.removesuffix("_path").removesuffix("dataset").rstrip("_") or "train"
        assert re.match(
            rf"error: foreign.jsonl, with base_model lab: {split}: \d+% of the answers' tokens are unknown",
            error,
        )
        assert out == ""
    assert not Path("results").exists()


def test_a_base_model_that_is_not_here_leaves_the_words_unknown(suite, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", suite("base_model: some/model\n" + FAIR)])
    assert ended.value.code == 0
    assert "whether some/model can read the data is not known before it runs: " in capsys.readouterr().err


def test_a_dry_run_shows_findings_in_a_line_each(suite, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["suite", suite(UNFAIR), "--dry-run"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "LS203 invalidates: 32 steps, the reference's 16 steps" in out
    assert "lorastudy check" in out
    with pytest.raises(SystemExit):
        main(["suite", suite(FAIR), "--dry-run"])
    assert "LS" not in capsys.readouterr().out


def test_rows_that_the_cut_takes_are_told_and_left_out_of_every_count(suite, capsys):
    """Some of the skill's rows keep no answer within 8 tokens: those are neither learnt nor scored. A share of a pass reads all."""
    text = FAIR.replace("lab:facts\neval_dataset_path: lab:facts_eval", "lab:skill\nmax_seq_length: 8")
    text = text.replace("max_steps: 16", "num_train_epochs: 0.1")
    with pytest.raises(SystemExit):
        main(["check", suite(text.replace("batch_size: 32", "batch_size: 2")), "--json"])
    found = {each["code"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    told = re.fullmatch(
        r"at max_seq_length 8, of ([\d,]+) training rows ([\d,]+) are cut short and ([\d,]+) left out, with no answer left; "
        r"of ([\d,]+) held-out rows ([\d,]+) are cut short and ([\d,]+) left out, with no answer left; "
        r"max_seq_length (\d+) keeps all of them whole",
        found["LS506"]["found"],
    )
    assert told is not None
    train, short, out, held_out, _, held_out_out, longest = (int(n.replace(",", "")) for n in told.groups())
    assert train + held_out == len(lab.rows("skill"))
    assert (found["LS506"]["severity"], short) == ("warning", train - out)
    texts = [f"{row['prompt']} {row['completion']}".replace(".", " .") for row in lab.rows("skill")]
    assert longest == max(len(text.split()) for text in texts) + 1  # and the end token
    assert found["LS304"]["found"].endswith(f" of {train - out} usable training rows")
    assert found["LS505"]["found"].startswith(f"{held_out - held_out_out} rows to score")


@pytest.mark.parametrize(
    "schedule", ["warmup_steps: 40", "lr_scheduler_type: warmup_stable_decay\nlr_scheduler_kwargs: {num_decay_steps: 40}"]
)  # fmt: skip
def test_a_schedule_longer_than_the_epochs_of_the_rows_is_refused(suite, capsys, schedule):
    text = FAIR.replace("max_steps: 16", f"num_train_epochs: 1\n{schedule}")
    with pytest.raises(SystemExit) as ended:
        main(["suite", suite(text), "--dry-run"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert schedule.partition(":")[0].replace("type", "kwargs") in told
    assert "16 steps of the training" in told or "40 together, more than the 16 of the training" in told


@pytest.mark.parametrize("command", [["check"], ["suite", "--dry-run"]])
def test_columns_that_play_no_part_are_named(suite, capsys, command):
    rows = [{**row, "url": "u", "weight": min(1, number)} for number, row in enumerate(lab.rows("facts"))]
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main([*command, suite(FAIR.replace("dataset_path: lab:facts\n", "dataset_path: rows.jsonl\n", 1))])
    assert ended.value.code == 0
    said = "".join(capsys.readouterr()).replace("\n", " ")
    assert f"note: rows.jsonl: columns that are not used: url ({len(rows)} rows)" in said
    assert "note: rows.jsonl: 'weight' turns 1 row off; they are left out" in said


def test_a_margin_without_its_percent_sign_is_told_what_it_means(suite, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", suite("margin: 10\n" + FAIR)])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert "LS403 warning: Margin as large as the gain" in out
    # e ** 10 = 22026.47
    assert "an arm of 2.203e+04 times the reference's perplexity still counts as good" in err
    assert "a percent sign: '10%'" in err


def test_facts_before_a_run(suite):
    experiments = Designer(suite=load_suite(Path(suite(FAIR)))).design().experiments
    facts = suite_case(experiments, suite_name="s", data=read_data(experiments)).facts["small_lr0.006"]
    rows = lab.rows("facts")
    # 16 steps of 32 rows are all 512 rows; the lab's words are tokens, and each answer ends with one more
    assert len(rows) == 16 * 32
    assert facts.num_completion_tokens == sum(len(row["completion"].split()) + 1 for row in rows)
    assert (facts.num_test_rows, facts.num_leaked_rows) == (len(lab.rows("facts_eval")), 0)


@pytest.mark.parametrize(
    ("num_rows", "num_unread", "times"),
    [
        (None, None, 15),  # 512 rows are 16 steps of 32, and the rule takes less than 100 for short
        (512 * 7, None, 10),  # texts in seven rows each: 112 steps
        (512 * 6, None, 15),  # 96 steps
        (512 * 7, 300, 15),  # read for another arm's steps: not all rows of an epoch
    ],
)
def test_the_published_rule_counts_the_steps_of_the_rows_that_were_read(suite, num_rows, num_unread, times):
    epochs = FAIR.replace("max_steps: 16", "num_train_epochs: 1")
    experiments = Designer(suite=load_suite(Path(suite(epochs)))).design().experiments
    counts = dict.fromkeys(
        ("num_refused_rows", "num_truncated_rows", "num_tokens", "num_completion_tokens"), 0
    )
    read = {}
    if num_rows is not None:
        summary = DataSummary(
            split="train", format="text", num_rows=num_rows, num_unread_rows=num_unread, **counts
        )
        read[rows_key(experiments[0].settings)] = [RowsRead(summary=summary)]
    case = suite_case(experiments, suite_name="s", data=read_data(experiments), rows=read)
    rates = case.facts["small_lr0.006"].published_rates
    assert rates is not None
    config = read_config(experiments[0].settings.base_model)
    many = published_rates(config, num_steps=None)  # ten times the rate of full training
    assert rates == pytest.approx((min(many) * times / 10, max(many) * times / 10))


def test_an_arm_that_looks_for_its_rate_is_judged_as_it_will_be_reported(suite, capsys):
    """Not as untuned, though nothing ran yet; not for the two seeds that choose; and not at rates that lose."""
    path = suite(FAIR.replace("[0.003, 0.006, 0.012]", "auto"))
    assert "auto" in Path(path).read_text()
    with pytest.raises(SystemExit) as ended:
        main(["suite", path, "--dry-run"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert re.findall(r"LS\d+", out) == ["LS505"]  # half of 128 held-out rows are kept for the report
    assert "learning_rate auto: 2 arms look for a rate" in out


def test_rows_that_are_trained_on_are_found_before_the_run(suite, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", suite(FAIR.replace("lab:facts_eval", "lab:facts"))])
    assert ended.value.code == 1
    assert "LS501 invalidates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ({}, 1000),  # one epoch sees every row
        ({"num_train_epochs": 3.0}, 1000),  # three see the same rows again
        ({"num_train_epochs": 0.5}, 500),
        ({"max_steps": 10}, 400),  # 10 steps of 2 x 2 rows are 40 of 100
    ],
)
def test_tokens_that_the_steps_reach(length, expected):
    settings = Settings(per_device_train_batch_size=2, gradient_accumulation_steps=2, **length)
    assert tokens_seen(settings, num_rows=100, num_completion_tokens=1000) == expected


def test_arms_in_words():
    assert arms_in_words(["a", "b"], num_arms=3) == "a, b"
    assert arms_in_words(["a", "b"], num_arms=2) == "all 2 arms"
    assert arms_in_words(["a", "r=4, lr 1e-3"], num_arms=3) == "a, “r=4, lr 1e-3”"
    assert arms_in_words(["r=4, lr 1e-3"], num_arms=3) == "r=4, lr 1e-3"
    many = [f"arm{number}" for number in range(9)]
    assert arms_in_words(many, num_arms=10) == "9 of 10 arms: arm0, arm1, arm2, ..."


def test_fields_that_the_model_is_shown_nothing_of_are_noted():
    counts = dict.fromkeys(
        ("num_refused_rows", "num_truncated_rows", "num_tokens", "num_completion_tokens"), 1
    )
    summary = DataSummary(
        split="eval", format="messages", num_rows=9, layout="chat", unseen_fields=("mood", "i" * 99), **counts
    )
    notes = layout_notes(
        {"key": [RowsRead(summary=summary), RowsRead(summary=replace(summary, unseen_fields=()))]}
    )
    assert notes == [
        "of 10 held-out rows, some have fields that the model does not see: mood, " + "i" * 40 + "..."
    ]


def test_without_a_library_one_message_says_how_to_install_it(suite, capsys, monkeypatch):
    known = metadata.version

    def version(name):
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    installed_version.cache_clear()
    with pytest.raises(SystemExit) as ended:
        main(["check", suite(FAIR)])
    assert ended.value.code == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: torch is not installed in this Python environment")
    assert message.endswith("pip install -r requirements.txt")
    installed_version.cache_clear()


@pytest.mark.parametrize("rates", ["[0.003, 0.006, 0.012]", "auto"])
def test_check_and_the_plans_of_a_suite_read_its_rows_once(suite, capsys, tmp_path, monkeypatch, rates):
    """Also where a search will add seeds, and where some of the runs are done."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = FAIR.replace("[0.003, 0.006, 0.012]", rates)
    commands = (["check", suite(text)], ["suite", suite(text), "--dry-run"])
    told = []
    for command in commands:
        with contextlib.suppress(SystemExit):
            main(command)
        told.append(capsys.readouterr().err)
    assert ["reading the rows" in text for text in told] == [True, False]

    loaded = load_suite(Path("suite.yaml"))
    first = Designer(suite=loaded).design().experiments[0]
    monkeypatch.setattr(study_plan, "missing_of", lambda design, *_, **__: design.experiments[1:])
    assert first not in study_plan.plan_study(loaded).missing
    assert len(list((tmp_path / "cache/lorastudy/plans").glob("rows-*"))) == 1


@pytest.mark.parametrize(
    ("entry", "refusal"),
    [
        ("rank_pattern: {q_prj: 8}", "33: experiments[1].rank_pattern: q_prj: matches none of the layers"),
        (
            "target_modules: [v_prj]",
            "35: experiments[1].target_modules: v_prj: not in this model (did you mean",
        ),
        (
            "exclude_modules: [up_proj]",
            "36: experiments[1].exclude_modules: up_proj: matches none of the selected layers",
        ),
        (
            "modules_to_save: [embed_token]",
            "36: experiments[1].modules_to_save: embed_token: not in this model (did you mean embed_tokens?)",
        ),
    ],
)
def test_an_arm_that_does_not_fit_its_model_is_refused_where_the_file_says_so(suite, capsys, entry, refusal):
    text = FAIR.replace("{name: large, lora_rank: 8}", f"{{name: large, {entry}}}").replace(
        "lora_alpha", "lora_rank: 4\nlora_alpha"
    )
    with pytest.raises(SystemExit) as ended:
        main(["check", suite(text.replace("small, lora_rank: 4", "small"))])
    assert ended.value.code == 2
    assert (
        capsys.readouterr().err.count(f"suite.yaml:13:{refusal}") == 1
    )  # though three rates make three arms
