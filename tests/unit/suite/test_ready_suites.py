"""Every file in `configs/` loads; the defaults are those of the types."""

import shutil
from pathlib import Path

import pytest

from lorastudy.suite.rate_search import design
from lorastudy.suite.settings import Settings
from lorastudy.suite.suite import EntryKeys, expand
from lorastudy.suite.suite_file import load_suite
from lorastudy.suite.wording import checked
from lorastudy.suite.yaml_reading import Problems, plain, read_yaml

CONFIGS = Path(__file__).parents[3] / "configs"
OF_THE_SPECIFICATION = {"rank_sweep.yaml", "module_sweep.yaml", "quantization_sweep.yaml"}
SUITES = sorted(path.name for path in (CONFIGS / "experiments").glob("*.yaml"))


def test_the_default_config_is_the_types_defaults_written_out() -> None:
    node = read_yaml(CONFIGS / "default_config.yaml", Problems())
    assert node is not None
    written = plain(node)
    assert list(written) == [*Settings.model_fields, "seeds"]
    assert checked(EntryKeys, "seeds", value=written.pop("seeds")) == EntryKeys().seeds
    assert Settings.model_validate(written) == Settings()


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "data").mkdir()
    for name in ("1000_sample", "train", "validation", "test"):
        (tmp_path / f"data/alpaca_{name}.jsonl").write_text("{}\n")
    (tmp_path / "data/gsm8k_train.jsonl").write_text("{}\n")
    return tmp_path


@pytest.mark.usefixtures("prepared", "phi_2")
@pytest.mark.parametrize("name", SUITES)
def test_a_ready_suite_loads_and_expands(name: str) -> None:
    suite = load_suite(Path("configs/experiments") / name)
    assert suite.name == name.removesuffix(".yaml")
    designed = design(suite, fingerprint_dataset=str, fingerprint_base=str, num_steps=lambda _: 200)
    assert designed.experiments
    assert designed.num_open == sum(arm.seeks_rate for arm in suite.arms)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("name", sorted(set(SUITES) - OF_THE_SPECIFICATION))
def test_a_ready_suite_states_its_question_and_can_answer_it(name: str) -> None:
    """But for the lab's two that study the rate itself, every one seeks each arm's rate and reports on test rows."""
    suite = load_suite(Path("configs/experiments") / name)
    question = suite.question
    studies_rates = name in {"lab_alpha.yaml", "lab_forgetting.yaml"}
    assert all(arm.seeks_rate for arm in suite.arms) != studies_rates
    assert (question.reporting_split == "test") != studies_rates
    assert question.choosing_split == "eval"
    assert len(question.seeds) >= (3 if studies_rates else 6)


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("rank_sweep", [f"rank_ablation_r{r}" for r in (4, 8, 16, 32, 64)]),
        ("module_sweep", [f"module_ablation_{m}" for m in ("q", "v", "qv", "qkvo", "mlp", "all")]),
        ("quantization_sweep", [f"quantization_study_{q}" for q in ("4bit", "8bit", "fp16")]),
    ],
)
def test_the_suites_of_the_specification_have_their_arms_and_three_seeds(name: str, arms: list[str]) -> None:
    suite = load_suite(Path(f"configs/experiments/{name}.yaml"))
    experiments = expand(suite, fingerprint_dataset=str, fingerprint_base=str)
    assert list(dict.fromkeys(experiment.arm for experiment in experiments)) == arms
    assert [experiment.seed for experiment in experiments] == [0, 1, 2] * len(arms)
    assert {experiment.settings.base_model for experiment in experiments} == {"microsoft/phi-2"}
    assert {experiment.settings.dataset_path for experiment in experiments} == {
        "data/alpaca_1000_sample.jsonl"
    }
