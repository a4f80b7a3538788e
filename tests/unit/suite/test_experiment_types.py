"""The ready designs, and how a type is found."""

import textwrap
from pathlib import Path

import pytest

from lorastudy.errors import StudyError
from lorastudy.suite.experiment_types import (
    EXPERIMENT_TYPES,
    TYPES,
    BaseExperiment,
    ExperimentConfig,
    resolve_type,
    settings_of,
)
from lorastudy.suite.settings import Settings

ARM = Settings(
    lora_rank=8, lora_alpha="2r", use_rslora=True, lora_dropout=0.1, target_modules=("q_proj",), quantization="4bit", max_steps=3
)  # fmt: skip


def test_the_types_of_the_suite_file_are_those_that_have_a_class() -> None:
    assert tuple(TYPES) == EXPERIMENT_TYPES


@pytest.mark.parametrize("name", EXPERIMENT_TYPES)
def test_a_ready_type_keeps_the_suites_settings_and_asks_questions(name: str) -> None:
    kind = resolve_type(name)
    experiment = kind(ExperimentConfig.of(ARM))
    kept = settings_of(experiment)
    if name == "parameter_matched_modules":  # which decides the rank
        kept = kept.model_copy(update={"lora_rank": ARM.lora_rank})
    assert kept == ARM
    assert experiment.get_experiment_name().startswith(name)
    assert kind.question.endswith("?")
    assert len(kind.key_questions) == 3
    assert all(question.endswith("?") for question in kind.key_questions)


def test_the_key_questions_are_those_of_the_specification() -> None:
    assert resolve_type("rank_ablation").key_questions == (
        "How does rank affect model accuracy?",
        "What's the memory overhead of higher ranks?",
        "Where are the diminishing returns?",
    )


def test_a_configuration_reads_as_the_settings_and_is_frozen() -> None:
    config = ExperimentConfig.of(ARM, varied=("lora_rank",))
    assert (config.lora_rank, config.lora_alpha_value, config.varied) == (8, 16.0, ("lora_rank",))
    with pytest.raises(ValueError, match="frozen"):
        config.lora_rank = 4  # type: ignore[misc]  # the point of the test


BROKEN = {
    "missing file": (None, "there is no file 'mine.py'"),
    "missing class": ("x = 1", "mine.py has no class Mine; it has no subclass of BaseExperiment"),
    "another class": (
        "from .base_experiment import BaseExperiment\nclass Yours(BaseExperiment): pass",
        "mine.py has no class Mine; it has Yours",
    ),
    "not a subclass": (
        "class Mine: pass",
        "Mine is not a subclass of lorastudy.experiments.base_experiment.BaseExperiment",
    ),
    "not a class": ("Mine = 3", "has no class Mine"),
    "incomplete": (
        "from .base_experiment import BaseExperiment\nclass Mine(BaseExperiment):\n    def get_lora_config(self): return {}",
        "Mine lacks get_experiment_name",
    ),
    "raises": ("x = 1\nraise RuntimeError('no luck')", "mine.py:2 cannot be loaded: RuntimeError: no luck"),
    "exits": ("import sys\nsys.exit('bye')", "mine.py:2 cannot be loaded: SystemExit: bye"),
    "not Python": ("x = 1\ndef", "mine.py:2 cannot be loaded: SyntaxError"),
    "missing import": ("import no_such_module", "No module named 'no_such_module'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_class_that_cannot_be_used_is_told_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text, cause = BROKEN[case]
    if text is not None:
        Path("mine.py").write_text(text)
    with pytest.raises(StudyError) as error:
        resolve_type("mine.py:Mine")
    assert cause in str(error.value)


def test_an_unknown_type_offers_the_nearest_and_the_form_for_ones_own() -> None:
    with pytest.raises(StudyError, match=r"\(did you mean module_ablation\?\).*path/to/file\.py:Class"):
        resolve_type("module_ablations")


def test_a_users_file_may_use_dataclasses(tmp_path: Path) -> None:
    body = """
        from __future__ import annotations
        import dataclasses
        from lorastudy.experiments.base_experiment import BaseExperiment

        @dataclasses.dataclass
        class Table:
            rank: int = 2

        class Mine(BaseExperiment):
            def get_lora_config(self):
                return {"r": Table().rank}

            def get_experiment_name(self):
                return "mine"
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(body))
    kind = resolve_type(f"{tmp_path / 'mine.py'}:Mine")
    assert issubclass(kind, BaseExperiment)
    assert settings_of(kind(ExperimentConfig.of(ARM))).lora_rank == 2
