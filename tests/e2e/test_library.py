"""A study from Python, without the command line: loaded, planned, run, resumed, read, analysed and reported."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import documents
import lorastudy as ls
from here import plans_answered_here, workers_forked_here
from lorastudy import lab
from lorastudy.cli.main import main
from lorastudy.errors import ModelError, StudyError
from lorastudy.experiments import base_experiment
from lorastudy.protocol.records import PackStep

SUITE: dict[str, Any] = {
    "suite_name": "from_python", "base_model": "lab", "dataset_path": "lab:facts", "eval_dataset_path": "lab:facts_eval",
    "max_steps": 4, "max_seq_length": 16, "per_device_train_batch_size": 8, "quantization": "fp32",
    "max_eval_samples": 12, "max_generation_samples": 0, "seeds": [0, 1], "factors": {"lora_rank": [1, 4]},
}  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The suite, run in a folder of its own, with what its progress was given."""
    folder = tmp_path_factory.mktemp("library")
    seen: list[Any] = []
    plan = ls.plan(ls.load_suite(SUITE), folder=folder)
    assert not list(folder.iterdir()), "a plan writes nothing"
    assert len(plan.missing) == 4
    return folder, ls.run(plan, folder=folder, progress=lambda _, event: seen.append(event)), seen


@pytest.fixture(autouse=True)
def later_workers_are_forks() -> Iterator[None]:
    """Only `result` has workers that are processes of their own; fixtures of a module come before this one."""
    with plans_answered_here(), workers_forked_here():
        yield


def test_a_run_tells_its_progress_and_its_outcome(result: Any) -> None:
    folder, found, seen = result
    assert len(found.outcome.completed) == 4
    assert found.outcome.failed == ()
    assert max(event.step for event in seen if isinstance(event, PackStep)) == 4
    assert len(list((folder / "output").glob("*/final_model/adapter_model.safetensors"))) == 4


def test_suite_plan_and_result_have_short_representations(result: Any) -> None:
    folder, found, _ = result
    suite = ls.load_suite(SUITE)
    assert repr(suite) == "<Suite from_python: 2 arms, 2 seeds>"
    assert repr(ls.plan(suite, folder=folder)) == (
        "<StudyPlan of from_python: 4 experiments, 4 done, 0 to run in 0 packs>"
    )
    assert repr(found) == "<StudyResult of from_python: 4 completed, 0 failed, 0 done before, 0 not run>"


def test_the_frame_has_arms_seeds_settings_scores_and_costs(result: Any) -> None:
    _, found, _ = result
    frame = found.frame()
    assert sorted(zip(frame["settings.lora_rank"], frame["seed"], strict=True)) == [
        (1, 0),
        (1, 1),
        (4, 0),
        (4, 1),
    ]
    with ls.Store(found.store) as store:
        stored = {each.experiment_id: each for each in store.get_all_experiments()}
    for row in frame.to_dict("records"):
        one = stored[row["experiment_id"]]
        assert row["arm"] == one.arm
        assert row["scores.eval.loss"] == one.scores["eval", "loss"].value
        assert row["profile.peak_memory_bytes"] == one.profile.peak_memory_bytes
        assert row["train_seconds"] == one.train_seconds


def test_the_command_shows_the_worst_rows_with_their_prompts(result: Any, capsys: Any) -> None:
    """The row with the highest mean loss comes first, with the prompt at its place in the file."""
    _, found, _ = result
    for options in (["--json"], []):
        with pytest.raises(SystemExit):
            main(["rows", "--arm", "r=4", "--worst", "2", "--database", found.store, *options])
    text = capsys.readouterr().out
    shown, end = json.JSONDecoder().raw_decode(text)
    items = found.items()
    means = items[items["label"] == "r=4"].groupby("item")["value"].mean().sort_values(ascending=False)
    assert [row["row"] - 1 for row in shown["rows"]] == list(means.index[:2])
    for row in shown["rows"]:
        place = int(row["where"].removeprefix("lab:facts_eval[").removesuffix("]"))
        assert row["prompt"] == lab.rows("facts_eval")[place]["prompt"]
        assert f"held-out {row['row']} ({row['where']})" in text[end:]


def test_items_are_those_of_the_score(result: Any) -> None:
    """The stored loss is the mean of the items, weighted by their completion tokens."""
    _, found, _ = result
    items, frame = found.items(), found.frame()
    for (arm, seed), rows in items.groupby(["arm", "seed"]):
        mean = (rows["value"] * rows["weight"]).sum() / rows["weight"].sum()
        (score,) = frame[(frame["arm"] == arm) & (frame["seed"] == seed)]["scores.eval.loss"]
        assert len(rows) == 12
        assert mean == pytest.approx(score, rel=1e-9)


def test_a_score_that_is_not_there_is_named(result: Any) -> None:
    _, found, _ = result
    with pytest.raises(StudyError, match=r"no experiment has a score eval/los; there are: .*eval/loss"):
        found.items(metric="los")


def test_it_is_resumed_and_what_is_done_is_not_run_again(result: Any) -> None:
    folder, _, _ = result
    again = ls.plan(ls.load_suite(SUITE | {"seeds": [0, 1, 2]}), folder=folder)
    assert [experiment.seed for experiment in again.missing] == [2, 2]
    estimate = again.predicted.estimate(again.packs[0])
    assert estimate is not None
    assert estimate.train_seconds is not None, "the runs in the store say how long it takes"
    assert again.predicted.predictions(again.packs[0])[0].step_seconds is None
    more = ls.run(again, folder=folder)
    assert len(more.outcome.completed) == 2
    assert len(more.outcome.done_before) == 4


def test_verdicts_are_values_and_the_report_is_written(result: Any) -> None:
    folder, found, _ = result
    (analysis,) = ls.analyse(found)
    assert analysis.reference is not None
    assert all(one.verdict for one in analysis.primary_comparisons)
    written = ls.write_report(found, folder / "REPORT.md")
    assert [path.suffix for path in written[:2]] == [".md", ".html"]
    assert str(found).splitlines()[0].startswith("from_python")
    assert found._repr_html_().startswith("<h4>from_python")


def test_the_example_of_the_documents_runs_and_its_arms_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run beats guessing from the frequencies of the answers, which needs no model."""
    monkeypatch.chdir(tmp_path)
    example, *_ = documents.blocks(documents.ROOT / "docs" / "python.md", "python")
    names: dict[str, Any] = {}
    exec(example.text, names)
    with ls.Store(names["result"].store) as store:
        runs = store.get_all_experiments()
    assert len(runs) == 4
    for run in runs:
        (guessed,) = [
            one.value for one in run.trivial if (one.predictor, one.metric) == ("frequencies", "loss")
        ]
        assert run.scores["eval", "loss"].value < guessed
    assert (tmp_path / "RESULTS.md").is_file()


def test_mistakes_are_exceptions_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"load_suite: lora_rnk: .*did you mean lora_rank"):
        ls.load_suite(SUITE, lora_rnk=4)
    with pytest.raises(TypeError, match="a file is the whole suite"):
        ls.load_suite("suite.yaml", seeds=[0])
    wrong: Any = 3
    with pytest.raises(TypeError, match="load_suite: takes a file, a dict or keyword arguments, not 3"):
        ls.load_suite(wrong)
    with pytest.raises(TypeError, match="plan: takes what load_suite returns, not int"):
        ls.plan(wrong)
    with pytest.raises(TypeError, match="run: takes what plan returns, not int"):
        ls.run(wrong, folder=tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ls.nothing


def test_what_fails_is_told_and_raises_nothing(tmp_path: Path) -> None:
    """No experiment completes: all diverge."""
    explosive = {"lora_alpha": 1e30, "learning_rate": 9.0, "max_grad_norm": 0.0, "seeds": [0]}
    plan = ls.plan(ls.load_suite(SUITE, **explosive), folder=tmp_path)
    found = ls.run(plan, folder=tmp_path, continue_on_error=True)
    assert len(found.outcome.failed) == 2
    assert str(found).startswith("from_python: no experiment has completed; 2 failed, 0 not run")
    assert "not finite in step 1" in str(found)
    with pytest.raises(StudyError, match="None of the 2 experiments"):
        ls.analyse(found)


def test_a_plan_with_arms_that_do_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    plan = ls.plan(ls.load_suite(SUITE, target_modules=["absent"]), folder=tmp_path)
    with pytest.raises(ModelError, match="target_modules: absent: not in this model"):
        ls.run(plan, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_plan_for_another_executor_is_refused(tmp_path: Path) -> None:
    plan = replace(ls.plan(ls.load_suite(SUITE), folder=tmp_path), num_packs_at_once=7)
    with pytest.raises(StudyError, match="the plan is for 7 packs at once"):
        ls.run(plan, folder=tmp_path)


def test_only_the_command_line_prints_or_exits() -> None:
    """No module outside `cli/` calls print or sys.exit, but those that are programs of their own."""
    package = Path(ls.__file__).parent
    programs = {
        "train/worker.py",
        "protocol/files.py",
        "data/hub.py",
        "lab/recipe.py",
        "suite/schema.py",
    }
    calls = {}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if not name.startswith("cli/") and name not in programs:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
            wrong = [call for call in found if re.fullmatch(r"print|sys\.exit|exit|typer\.Exit", call)]
            if wrong:
                calls[name] = wrong
    assert calls == {}


def test_no_public_name_is_a_subpackage() -> None:
    package = Path(ls.__file__).parent
    taken = {path.stem for path in package.iterdir() if not path.name.startswith("_")} - {"py"}
    assert not taken & {name for name in ls.__all__ if not name.startswith("_")}


def test_the_base_of_an_experiment_type_is_public_and_the_one_of_the_specification() -> None:
    assert ls.BaseExperiment is base_experiment.BaseExperiment
