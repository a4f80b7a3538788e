"""What fails, fails alone: the others complete, and the exit code says whose it is to mend."""

from collections.abc import Callable
from typing import Any

import pytest

from lorastudy.store import ExperimentTracker

COMMON = """\
base_model: model
dataset_path: people.csv
quantization: fp32
max_steps: 2
max_seq_length: 32
max_generation_samples: 0
"""

OWN_TYPE = '''\
from .base_experiment import BaseExperiment


class MyExperiment(BaseExperiment):
    """Doubles alpha with the rank and goes for one module."""

    def get_lora_config(self):
        return {"lora_r": self.config.lora_rank, "lora_alpha": 2 * self.config.lora_rank,
                "target_modules": [f"{self.config.lora_dropout:g}_proj" if self.config.lora_dropout else "q_proj"]}

    def get_experiment_name(self):
        return f"mine_r{self.config.lora_rank}"
'''


@pytest.fixture(scope="module")
def folder(make_folder: Callable[[str], Any]) -> Any:
    return make_folder("failures")


def results_of(folder: Any, suite_name: str) -> dict[str, Any]:
    with ExperimentTracker(folder.path / "results/experiments.db") as tracker:
        return {result.name: result for result in tracker.get_all_experiments(suite_name=suite_name)}


def test_an_arm_that_diverges_takes_no_other_with_it(folder: Any) -> None:
    arms = """\
experiments:
  - {name: fine, lora_rank: 2}
  - {name: explodes, lora_rank: 2, lora_alpha: 1e30, learning_rate: 9, max_grad_norm: 0}
"""
    folder.write("mixed.yaml", f"suite_name: mixed\n{COMMON}{arms}")
    folder.here("lorastudy suite mixed.yaml --continue-on-error", expect=1)
    results = results_of(folder, "mixed")
    kinds = {name: (result.status, result.failure_kind) for name, result in results.items()}
    assert kinds == {
        "fine": ("completed", None),
        "explodes": ("failed", "diverged"),
    }
    assert (folder.path / "output/fine/final_model/adapter_model.safetensors").is_file()
    assert not (folder.path / "output/explodes").exists()
    assert (
        "  failed: mixed: alpha 1e+30, max_grad_norm 0, lr 9, seed 0: diverged: loss or gradient was not finite in step 1\n"
        in folder.here("lorastudy status").stdout
    )


def test_an_arm_that_does_not_fit_is_refused_as_check_refuses_it_before_anything_runs(
    make_folder: Callable[[str], Any],
) -> None:
    folder = make_folder("misfit")
    arms = """\
experiments:
  - {name: fits, lora_rank: 2}
  - {name: misfit, lora_rank: 2, target_modules: [no_such_proj]}
"""
    folder.write("misfit.yaml", f"suite_name: misfit\n{COMMON}{arms}")
    refused = folder.here("lorastudy suite misfit.yaml --continue-on-error", expect=2).stderr
    # What it lacks, and what it has.
    assert "no_such_proj: not in this model" in refused
    assert "q_proj" in refused
    assert (
        refused.splitlines()[-1]
        == folder.here("lorastudy check misfit.yaml", expect=2).stderr.splitlines()[-1]
    )
    assert not (folder.path / "results").exists()
    assert not (folder.path / "output").exists()


def test_an_experiment_type_of_ones_own_runs_and_what_it_asks_for_in_vain_is_refused(
    make_folder: Callable[[str], Any],
) -> None:
    """Nothing changes in the package. The second arm's dropout makes the class name a module that the model lacks."""
    folder = make_folder("own_type")
    folder.write("my_experiment.py", OWN_TYPE)
    head = f"suite_name: own\nexperiment_type: my_experiment.py:MyExperiment\n{COMMON}"
    arm, misfit = "experiments:\n  - {lora_rank: 3}\n", "  - {lora_rank: 5, lora_dropout: 0.5}\n"
    folder.write("own.yaml", f"{head}{arm}{misfit}")
    refused = folder.here("lorastudy suite own.yaml", expect=2)
    assert "0.5_proj: not in this model" in refused.stderr
    assert not (folder.path / "results").exists()
    folder.write("own.yaml", f"{head}{arm}")
    folder.here("lorastudy suite own.yaml")
    results = results_of(folder, "own")
    assert [result.status for result in results.values()] == ["completed"]
    mine = results["mine_r3"]
    assert mine.settings["lora_alpha"] == 6
    assert mine.settings["target_modules"] == ["q_proj"]
    assert mine.experiment_type == "my_experiment.py:MyExperiment"
    assert (folder.path / "output/mine_r3/final_model/adapter_model.safetensors").is_file()
