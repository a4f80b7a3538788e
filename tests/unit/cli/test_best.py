"""`lorastudy best` as typed, on a study whose adapters lie where a run leaves them."""

import ast
import shutil
from pathlib import Path

import pytest

from lorastudy.cli.main import main
from torture import studies


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("best")
    studies.run_study(folder, studies.experiments(num_packs=1))
    return folder


@pytest.fixture
def typed(study, monkeypatch, capsys):
    """What the command prints and complains of, with its exit code."""
    monkeypatch.chdir(study)

    def typed(*options):
        with pytest.raises(SystemExit) as ended:
            main(["best", studies.SUITE, *options])
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return typed


def test_it_prints_the_adapter_its_configuration_and_code_that_loads_it(typed):
    code, out, _ = typed()
    (folder,) = (line.removeprefix("Adapter: ") for line in out.splitlines() if line.startswith("Adapter: "))
    assert code == 0
    assert Path(folder, "adapter_model.safetensors").is_file()
    assert out.count(f"'{folder}'") == 2  # with PEFT, with vLLM
    assert "  lora_rank: 2\n" in out


def test_for_a_trainer_it_prints_nothing_but_the_configuration(typed):
    _, out, _ = typed("--for", "trl")
    assigned = {
        node.targets[0].id
        for node in ast.parse(out).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert {"model", "peft_config", "args"} <= assigned


def test_an_adapter_of_which_every_copy_is_gone_is_said_with_what_to_do(typed, study):
    shutil.move(study / "output", study / "output away")
    shutil.move(study / "results" / "runs", study / "runs away")
    try:
        code, _, err = typed()
    finally:
        shutil.move(study / "output away", study / "output")
        shutil.move(study / "runs away", study / "results" / "runs")
    assert code == 2
    assert "is gone; restore its run folder or output, or run the suite again" in err
