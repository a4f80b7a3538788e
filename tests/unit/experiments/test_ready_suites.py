"""Every file in `configs/` loads; the defaults are those of the types."""

import shutil
from pathlib import Path

import pytest

from lorastudy.experiments.expansion import expand
from lorastudy.spec.loading import load_suite
from lorastudy.spec.problems import Problems
from lorastudy.spec.settings import Settings
from lorastudy.spec.suite import EntryKeys
from lorastudy.spec.wording import checked
from lorastudy.spec.yaml_nodes import plain
from lorastudy.spec.yaml_reading import read_yaml

CONFIGS = Path(__file__).parents[3] / "configs"
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
    (tmp_path / "data/alpaca_1000_sample.jsonl").write_text("{}\n")
    return tmp_path


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("name", SUITES)
def test_a_ready_suite_loads_and_expands(name: str) -> None:
    suite = load_suite(Path("configs/experiments") / name)
    assert suite.name == name.removesuffix(".yaml")
    assert expand(suite, fingerprint_dataset=str, fingerprint_base=str)


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
