"""What a good suite file means."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorastudy.errors import SuiteFileError
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite_file import load_suite, suite_from_values

Write = Callable[[str], Path]

# The format of the specification, as it stands there.
SPECIFIED = """\
suite_name: "my_experiment_suite"
base_model: "microsoft/phi-2"
dataset_path: "data/alpaca_sample.jsonl"
num_train_epochs: 2
per_device_train_batch_size: 4
max_seq_length: 512

experiments:
  - name: "exp1"
    lora_rank: 16
  - name: "exp2"
    lora_rank: 32
"""


def test_the_specified_format_is_valid_as_it_stands(write: Write, folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data/alpaca_sample.jsonl").write_text("{}\n")
    suite = load_suite(write(SPECIFIED))
    assert (suite.name, suite.experiment_type, suite.path) == (
        "my_experiment_suite",
        "custom",
        Path("s.yaml"),
    )
    assert [(arm.name, arm.settings.lora_rank, arm.seeds, arm.line) for arm in suite.arms] == [
        ("exp1", 16, (0,), 9),
        ("exp2", 32, (0,), 11),
    ]
    assert {arm.settings.num_train_epochs for arm in suite.arms} == {2.0}


def test_a_nearer_level_wins_and_what_nobody_says_is_the_types_default(write: Write, folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs/default_config.yaml").write_text(
        "lora_rank: 2\nweight_decay: 0.1\nlora_dropout: 0.1\nseeds: 7\n"
    )
    suite = load_suite(
        write("lora_dropout: 0.2\nlora_alpha: 8\nexperiments:\n  - {}\n  - {lora_alpha: 2r, seeds: [1, 2]}\n")
    )
    first, second = suite.arms
    assert first.settings == Settings(lora_rank=2, weight_decay=0.1, lora_dropout=0.2, lora_alpha=8.0)
    assert second.settings.lora_alpha == "2r"
    assert (first.seeds, second.seeds) == ((7,), (1, 2))


def test_explicit_defaults_replace_those_of_the_folder(write: Write, folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs/default_config.yaml").write_text("lora_rank: 2\n")
    (folder / "mine.yaml").write_text("weight_decay: 0.1\n")
    suite = load_suite(write("experiments: [{}]\n"), defaults=Path("mine.yaml"))
    assert suite.arms[0].settings == Settings(weight_decay=0.1)


@pytest.mark.parametrize(
    ("top", "entry", "expected"),
    [
        ("num_train_epochs: 2", "max_steps: 5", (None, 5)),
        ("max_steps: 5", "num_train_epochs: 2", (2.0, None)),
        ("max_steps: 5", "lora_rank: 4", (None, 5)),
        ("max_steps: 5", "max_steps: null", (None, None)),
        ("num_train_epochs: 2", "max_steps: null", (2.0, None)),
    ],
)
def test_epochs_and_steps_replace_each_other(
    write: Write, top: str, entry: str, expected: tuple[float | None, int | None]
) -> None:
    settings = load_suite(write(f"{top}\nexperiments:\n  - {entry}\n")).arms[0].settings
    assert (settings.num_train_epochs, settings.max_steps) == expected


def test_learning_rates_multiply_the_arms_and_an_entry_may_keep_to_one(write: Write) -> None:
    suite = load_suite(
        write("learning_rate: [1e-4, 2E-3]\nexperiments:\n  - {name: a}\n  - {name: b, learning_rate: 1}\n")
    )
    assert [(arm.name, arm.settings.learning_rate) for arm in suite.arms] == [
        ("a", 1e-4),
        ("a", 2e-3),
        ("b", 1.0),
    ]


def test_factors_are_crossed_and_the_last_varies_fastest(write: Write) -> None:
    suite = load_suite(write("factors:\n  lora_rank: [8, 4]\n  target_modules: [qv, [v_proj, q_proj]]\n"))
    assert [(arm.settings.lora_rank, arm.settings.target_modules) for arm in suite.arms] == [
        (8, "qv"),
        (8, ("q_proj", "v_proj")),
        (4, "qv"),
        (4, ("q_proj", "v_proj")),
    ]
    assert {(arm.name, arm.line) for arm in suite.arms} == {(None, 1)}


def test_learning_rates_cross_with_factors(write: Write) -> None:
    assert len(load_suite(write("learning_rate: [1e-4, 2e-4]\nfactors: {lora_rank: [4, 8, 16]}\n")).arms) == 6


def test_the_suite_is_named_after_its_file(write: Write) -> None:
    assert load_suite(write("experiments: [{}]")).name == "s"


def test_anchors_and_aliases_share_values(write: Write) -> None:
    suite = load_suite(
        write("experiments:\n  - &a {target_modules: &m [q_proj]}\n  - {target_modules: *m, lora_rank: 4}\n")
    )
    assert [arm.settings.target_modules for arm in suite.arms] == [("q_proj",), ("q_proj",)]


def test_a_home_folder_is_written_out(write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    suite = load_suite(write("dataset_path: ~/rows.jsonl\nexperiments: [{}]\n"))
    assert suite.arms[0].settings.dataset_path == str(folder / "rows.jsonl")


def test_flags_make_a_suite_of_one_arm(folder: Path) -> None:
    values = {
        "experiment_type": "rank_ablation",
        "lora_rank": 4,
        "dataset_path": "rows.jsonl",
        "max_steps": None,
        "seeds": 3,
    }
    suite = suite_from_values(values, where="lorastudy run")
    assert (suite.name, suite.experiment_type, suite.path) == ("single", "rank_ablation", None)
    (arm,) = suite.arms
    assert (arm.name, arm.settings.lora_rank, arm.seeds, arm.line) == (None, 4, (3,), None)


def test_flags_may_name_the_arm_and_cross_factors(folder: Path) -> None:
    assert suite_from_values({"name": "mine"}, where="run").arms[0].name == "mine"
    assert len(suite_from_values({"factors": {"lora_rank": (4, 8)}}, where="run").arms) == 2


def test_a_wrong_flag_is_named_and_not_a_line(folder: Path) -> None:
    with pytest.raises(SuiteFileError) as error:
        suite_from_values(
            {"lora_rank": 0, "dataset_path": "no.csv", "num_train_epochs": -1.0, "engine": "packd"},
            where="lorastudy run",
            flags={"engine": "--with"},
        )
    assert [problem.split(": ")[:2] for problem in error.value.problems] == [
        ["lorastudy run", "--lora-rank"],
        ["lorastudy run", "--num-epochs"],
        ["lorastudy run", "--with"],
        ["lorastudy run", "--dataset"],
    ]
    assert "(did you mean packed?)" in str(error.value)


def test_one_number_as_seeds_is_noted_as_one_seed(write: Write, folder: Path) -> None:
    (arm,) = load_suite(write("seeds: 3\nexperiments: [{lora_rank: 2}]\n")).arms
    assert arm.seeds == (3,)
    assert load_suite(write("seeds: 3\nexperiments: [{lora_rank: 2}]\n")).notes == (
        "s.yaml:1:8: seeds: this is the one seed 3; for 3 seeds write a list, as in [0, 1, 2]",
    )
    assert not load_suite(write("seeds: [3]\nexperiments: [{lora_rank: 2}]\n")).notes
    assert not load_suite(write("seeds: 1\nexperiments: [{lora_rank: 2}]\n")).notes
    assert not suite_from_values({"seeds": 3}, where="run", flags={"seeds": "--seed"}).notes


def test_test_rows_that_a_search_takes_are_noted(write: Write, folder: Path) -> None:
    def notes(text: str) -> tuple[str, ...]:
        return load_suite(
            write(f"learning_rate: auto\n{text}experiments: [{{lora_rank: 2}}, {{lora_rank: 4}}]\n")
        ).notes

    ways_out = "; name other rows with test_dataset_path, or another share with test_fraction"
    of_training = "10 % of the rows of lab:facts to report on, which neither train nor choose"
    of_held_out = "50 % of the rows of lab:facts_eval to report on, and the others choose the rate"
    assert notes("") == (f"learning_rate: auto takes {of_training}{ways_out}",)
    assert notes("eval_dataset_path: lab:facts_eval\n") == (
        f"learning_rate: auto takes {of_held_out}{ways_out}",
    )
    assert not notes("test_fraction: 0.2\n")
    assert not notes("test_dataset_path: lab:facts_eval\n")
    assert not load_suite(write("experiments: [{lora_rank: 2}]\n")).notes
