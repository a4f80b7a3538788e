"""From a suite to named experiments with an identity."""

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lorastudy.errors import StudyError, SuiteFileError
from lorastudy.suite.experiment import DATA_VERSION, Experiment
from lorastudy.suite.suite import expand
from lorastudy.suite.suite_file import load_suite, suite_from_values


def expanded(path: Path) -> tuple[Experiment, ...]:
    return expand(
        load_suite(path), fingerprint_dataset=lambda p: f"data:{p}", fingerprint_base=lambda b: f"base:{b}"
    )


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    monkeypatch.chdir(tmp_path)

    def write_suite(text: str) -> Path:
        Path("s.yaml").write_text(text, encoding="utf-8")
        return Path("s.yaml")

    return write_suite


Write = Callable[[str], Path]

NAMES = {
    "rank": ("experiment_type: rank_ablation\nfactors: {lora_rank: [4, 16]}", ["rank_ablation_r4", "rank_ablation_r16"]),
    "modules": (
        "experiment_type: module_ablation\nfactors: {target_modules: [qkvo, [v_proj, q_proj]]}",
        ["module_ablation_qkvo", "module_ablation_q_proj-v_proj"],
    ),
    "quantization": (
        "experiment_type: quantization_study\nfactors: {quantization: [4bit, fp16]}",
        ["quantization_study_4bit", "quantization_study_fp16"],
    ),
    "seeds": ("experiment_type: rank_ablation\nseeds: [0, 2]\nexperiments: [{}]", ["rank_ablation_r16_seed0", "rank_ablation_r16_seed2"]),
    "given names": ("experiments: [{name: a}, {lora_rank: 4, name: b, seeds: [1, 2]}]", ["a", "b_seed1", "b_seed2"]),
    "learning rates": (
        "experiment_type: rank_ablation\nlearning_rate: [2e-4, 1e-5]\nexperiments: [{}, {lora_rank: 4, learning_rate: 1}]",
        ["rank_ablation_r16_lr0.0002", "rank_ablation_r16_lr1e-05", "rank_ablation_r4"],
    ),
    "a given name with learning rates": ("experiments: [{name: a, learning_rate: [1e-4, 2e-4]}]", ["a_lr0.0001", "a_lr0.0002"]),
    "what else differs": (
        "experiment_type: rank_ablation\nfactors: {lora_alpha: [32, 2r], use_rslora: [true, false], lora_rank: [4]}",
        [
            "rank_ablation_r4_alpha32_use_rslora-on", "rank_ablation_r4_alpha32_use_rslora-off",
            "rank_ablation_r4_alpha2r_use_rslora-on", "rank_ablation_r4_alpha2r_use_rslora-off",
        ],
    ),
    "custom": ("factors: {lora_rank: [4, 8], learning_rate: [1e-4, 2e-4]}", ["custom_lr0.0001_r4", "custom_lr0.0002_r4", "custom_lr0.0001_r8", "custom_lr0.0002_r8"]),
    "custom that varies nothing": ("experiments: [{}]", ["custom"]),
    "custom over models": ("factors: {base_model: [org/a-b, lab]}", ["custom_a-b", "custom_lab"]),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_names_say_what_differs(write: Write, case: str) -> None:
    text, names = NAMES[case]
    assert [experiment.name for experiment in expanded(write(text))] == names


def test_what_was_trained_on_other_tokens_has_another_id_and_is_never_taken_for_done(write: Write) -> None:
    """The two ids were printed before data had a version and seeds drew the order of the rows."""
    from lorastudy import lab

    experiments = [
        replace(each, settings=each.settings.model_copy(update={"data_seed": 0}))
        for each in expanded(lab.rank_study())
    ]
    before = [replace(each, sources=replace(each.sources, data_version=None)) for each in experiments]
    assert (before[0].id, before[-1].id) == ("exp-e0d4de7c04a24cd4", "exp-f77ea1367c6c3ce0")
    assert experiments[0].sources.data_version == DATA_VERSION
    assert not {each.id for each in experiments} & {each.id for each in before}


def test_an_experiment_is_an_arm_with_one_seed(write: Write) -> None:
    Path("rows.csv").write_text("a\n")
    first, second = expanded(
        write("eval_dataset_path: rows.csv\nexperiments: [{name: a, lora_rank: 4, seeds: [5, 6]}]")
    )
    assert (first.arm, first.seed, second.arm, second.seed) == ("a", 5, "a", 6)
    assert first.settings.lora_rank == 4
    assert vars(first.sources) == {
        "base_model": "base:lab", "dataset": "data:lab:facts", "eval_dataset": "data:rows.csv", "forgetting_dataset": None,
        "test_dataset": None, "data_version": DATA_VERSION,
    }  # fmt: skip
    assert first.id != second.id
    assert first.data_seed != second.data_seed, "a seed draws the order of the rows"
    assert first.pack_key == second.pack_key


def test_each_path_is_fingerprinted_once(write: Write) -> None:
    asked: list[str] = []

    def fingerprint(path: str) -> str:
        asked.append(path)
        return path

    suite = load_suite(write("factors: {lora_rank: [4, 8, 16]}"))
    expand(suite, fingerprint_dataset=fingerprint, fingerprint_base=fingerprint)
    assert sorted(asked) == ["lab", "lab:facts"]


def test_two_arms_that_are_one_experiment_are_refused(write: Write) -> None:
    with pytest.raises(SuiteFileError) as error:
        expanded(write("experiments:\n  - {name: a, lora_alpha: 32}\n  - {name: b, lora_alpha: 2r}\n"))
    assert error.value.problems == (
        "s.yaml:3:1: 'b' is the same experiment as 'a': same settings, seed and data; remove one",
    )


def test_names_that_collide_after_expansion_are_refused(write: Write) -> None:
    with pytest.raises(
        SuiteFileError, match=r"s.yaml:2:1: the name 'a_seed1' is also that of another arm of line 1"
    ):
        expanded(write("experiments: [{name: A_seed1},\n  {name: a, lora_rank: 4, seeds: [1, 2]}]"))


def test_names_that_become_too_long_are_refused(write: Write) -> None:
    with pytest.raises(
        SuiteFileError, match=r"has 102 characters; a name has at most 100; give the entry a `name`"
    ):
        expanded(write(f"experiments: [{{name: {'a' * 96}, seeds: [0, 1]}}]"))


OWN = """\
from {module} import BaseExperiment, ExperimentConfig


class MyExperiment(BaseExperiment):
    question = "Mine?"

    def get_lora_config(self):
        return {{
            "lora_r": 16 * self.config.lora_rank,
            "lora_alpha": 32,
            "max_steps": 7,
        }}

    def get_experiment_name(self):
        return "my_experiment"
"""


@pytest.mark.parametrize("module", [".base_experiment", "lorastudy.experiments.base_experiment"])
def test_a_class_in_the_users_own_file_decides_the_adapter(write: Write, module: str) -> None:
    Path("mine.py").write_text(OWN.format(module=module))
    one, two = expanded(
        write(
            "experiment_type: mine.py:MyExperiment\nnum_train_epochs: 3\nexperiments: [{lora_rank: 1}, {lora_rank: 2}]"
        )
    )
    assert (one.name, two.name, one.experiment_type) == (
        "my_experiment_r16",
        "my_experiment_r32",
        "mine.py:MyExperiment",
    )
    assert (two.settings.lora_rank, two.settings.lora_alpha) == (32, 32.0)
    assert (two.settings.max_steps, two.settings.num_train_epochs) == (7, None)


@pytest.mark.parametrize(
    ("returned", "cause"),
    [
        ("{'lora_rnk': 1}", "Mine.get_lora_config: 'lora_rnk' is not a setting (did you mean lora_rank?)"),
        ("{'r': 0}", "Mine.get_lora_config: 'r' must be a whole number from 1 to 4096, not 0"),
        ("{'r': 1, 'lora_r': 1}", "Mine.get_lora_config: 'lora_r' and another key both give lora_rank"),
        ("{'max_steps': 1, 'num_train_epochs': 1}", "both set the length"),
        ("None", "Mine fails: TypeError"),
        ("{}['a']", "Mine fails: KeyError: 'a'"),
    ],
)
def test_what_a_users_class_gets_wrong_is_told_with_its_name(write: Write, returned: str, cause: str) -> None:
    body = f"""
        from .base_experiment import BaseExperiment
        class Mine(BaseExperiment):
            def get_lora_config(self): return {returned}
            def get_experiment_name(self): return "mine"
    """
    Path("mine.py").write_text(textwrap.dedent(body))
    with pytest.raises(StudyError) as error:
        expanded(write("experiment_type: mine.py:Mine\nexperiments: [{}]"))
    assert cause in str(error.value)


def test_a_suite_of_flags_expands_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suite = suite_from_values({"experiment_type": "rank_ablation", "lora_rank": 16}, where="run")
    (experiment,) = expand(suite, fingerprint_dataset=str, fingerprint_base=str)
    assert experiment.name == "rank_ablation_r16"


def test_two_hundred_experiments_take_far_less_than_two_seconds(write: Write) -> None:
    # Measured: 0.18 s on one core. The bound leaves room for a busy machine and still sees a quadratic step.
    path = write(
        "experiments:\n"
        + "".join(f"  - {{name: e{n}, lora_rank: {n}, learning_rate: 1e-4}}\n" for n in range(1, 201))
    )
    start = time.perf_counter()
    assert len({experiment.id for experiment in expanded(path)}) == 200
    assert time.perf_counter() - start < 1.5


def test_planning_imports_no_machine_learning_library() -> None:
    code = (
        "import sys; import lorastudy.suite.suite_file, lorastudy.suite.base_model, lorastudy.suite.schema, "
        "lorastudy.suite.suite; "
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'numpy', 'scipy') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "[]\n"
    )


def test_names_follow_from_all_arms_those_that_wait_too(write: Write) -> None:
    suite = load_suite(write("reference: custom_r8\nfactors: {lora_rank: [4, 8]}"))
    all_names = [each.name for each in expand(suite, fingerprint_dataset=str, fingerprint_base=str)]
    first = replace(suite, arms=suite.arms[:1])
    begun = expand(first, waiting=suite.arms[1:], fingerprint_dataset=str, fingerprint_base=str)
    assert [each.name for each in begun] == all_names[:1]
    with pytest.raises(SuiteFileError, match="no arm is called 'custom_r8'"):
        expand(first, fingerprint_dataset=str, fingerprint_base=str)


def test_scores_on_the_way_are_no_part_of_an_experiments_identity(write: Write) -> None:
    """They change nothing that is trained, so arms with other points still train together."""
    ids = [
        [experiment.id for experiment in expanded(write(f"factors: {{lora_rank: [4, 8]}}\n{line}"))]
        for line in ("", "eval_steps: 5", "eval_steps: 0.1")
    ]
    assert ids[0] == ids[1] == ids[2]
    one, other = expanded(write("experiments: [{lora_rank: 4, eval_steps: 5}, {lora_rank: 8}]"))
    assert one.pack_key == other.pack_key


def test_what_scores_on_the_way_decide_is_part_of_an_experiments_identity(write: Write) -> None:
    """Then the points are part of it too. The default, `last`, is not, so stored ids stay valid."""
    lines = [
        "",
        "select_checkpoint: last",
        "eval_steps: 5\nselect_checkpoint: last\nearly_stopping_patience: null",
        "eval_steps: 5\nselect_checkpoint: best",
        "eval_steps: 4\nselect_checkpoint: best",
        "eval_steps: 5\nearly_stopping_patience: 2",
        "eval_steps: 5\nearly_stopping_patience: 2\nearly_stopping_threshold: 0.1",
    ]
    (ids,) = zip(
        *([each.id for each in expanded(write(f"test_fraction: 0.1\nexperiments: [{{lora_rank: 4}}]\n{line}"))] for line in lines),
        strict=True,
    )  # fmt: skip
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids)) == len(ids) - 2
    plain, best = expanded(
        write(
            "test_fraction: 0.1\neval_steps: 5\nexperiments: [{lora_rank: 4}, {lora_rank: 4, select_checkpoint: best, name: b}]"
        )
    )
    assert plain.pack_key == best.pack_key


def test_deterministic_algorithms_are_no_part_of_an_experiments_identity(write: Write) -> None:
    """They change the last bits. A pack trains with one choice for all, so the key parts packs."""
    ids = [
        [experiment.id for experiment in expanded(write(f"factors: {{lora_rank: [4, 8]}}\n{line}"))]
        for line in ("", "deterministic: true", "deterministic: false")
    ]
    assert ids[0] == ids[1] == ids[2]
    one, other = expanded(
        write("experiments: [{lora_rank: 4, deterministic: true}, {lora_rank: 8, deterministic: false}]")
    )
    assert one.pack_key != other.pack_key
