"""`lorastudy best` as typed, on a study whose adapters lie where a run leaves them."""

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import lorastudy.report
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


@pytest.fixture
def second_study(monkeypatch):
    """A function that gives the suite a second study under this title, a copy of the first; and a third of another suite."""
    read_report = lorastudy.report.read_report

    def second_study(title, **changed):
        def read(tracker, *, suite_name):
            report = read_report(tracker, suite_name=suite_name)
            (studied,), (summary,) = report.studies, report.summaries
            elsewhere = replace(studied, suite=replace(studied.suite, suite_name="another suite"))
            return SimpleNamespace(
                studies=(studied, studied, elsewhere),
                summaries=(
                    summary,
                    replace(summary, title=title, **changed),
                    replace(summary, title="elsewhere"),
                ),
            )

        monkeypatch.setattr(lorastudy.report, "read_report", read)

    return second_study


def test_each_study_of_a_suite_has_its_block_under_its_name(typed, second_study):
    second_study("torture (alpha ablation)")
    _, out, _ = typed()
    assert (out.count("Adapter: "), out.count("To train it elsewhere")) == (2, 1)
    assert out.index("torture (rank ablation)") < out.index("torture (alpha ablation)")
    assert "\nelsewhere\n" not in out
    _, code, _ = typed("--for", "trl")
    ast.parse(code)
    assert [line for line in code.splitlines() if line.startswith("# torture")] == [
        "# torture (rank ablation)",
        "# torture (alpha ablation)",
    ]
    _, text, _ = typed("--for", "axolotl")
    assert [read["adapter"] for read in yaml.safe_load_all(text)] == ["lora", "lora"]
    with pytest.raises(yaml.YAMLError, match="single document"):
        yaml.safe_load(text)


def test_a_study_without_an_adapter_to_use_says_so_beside_those_with_one(typed, second_study):
    second_study("torture (alpha ablation)", arm=None, answer="No arm is ahead.")
    code, out, _ = typed()
    assert code == 0
    assert out.count("Adapter: ") == 1
    assert "torture (alpha ablation): no arm is named to use. No arm is ahead." in out
    _, text, _ = typed("--for", "llamafactory")
    assert "# torture (alpha ablation): no arm is named to use. No arm is ahead." in text
    _, read, _ = typed("--json")
    first, second = json.loads(read)
    assert (first["study"], first["configuration"]["lora_rank"]) == ("torture (rank ablation)", 2)
    assert Path(first["adapter"], "adapter_model.safetensors").is_file()
    assert (second["study"], "adapter" in second) == ("torture (alpha ablation)", False)
    assert second["problem"].endswith("no arm is named to use. No arm is ahead.")


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
