"""The documents say what is so: generated parts are current, suites load, commands parse, links lead somewhere."""

import importlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import typer

import documents
from documents import Block
from lorastudy.cli.main import app
from lorastudy.data.sources import Row
from lorastudy.errors import SuiteFileError
from lorastudy.store import ExperimentTracker
from lorastudy.suite.rate_search import design
from lorastudy.suite.suite_file import load_suite
from tests.formatted import detect
from torture import studies

pytestmark = pytest.mark.long

#: Spoken of in general, with the verb left open.
PLACEHOLDERS = {"COMMAND", "<verb>"}
SCRIPTS = {
    "prepare_dataset": "prepare",
    "run_single_experiment": "run",
    "run_experiment_suite": "suite",
    "evaluate_model": "evaluate",
    "generate_report": "report",
}
SUITES = [block for page in documents.PAGES for block in documents.blocks(page, "yaml")]


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(documents.ROOT / "docs"))
    return importlib.import_module("generate")


@pytest.fixture
def agreement(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(documents.ROOT / "docs"))
    return importlib.import_module("agreement")


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(documents.ROOT / "docs"))
    return importlib.import_module("measurements")


@pytest.fixture
def copy_of_documents(tmp_path: Path) -> Path:
    for path in [*documents.ROOT.glob("*.md"), documents.ROOT / ".importlinter"]:
        shutil.copy(path, tmp_path)
    for name in ("docs", "benchmarks"):
        shutil.copytree(documents.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_generated_parts_are_up_to_date(generate: ModuleType) -> None:
    assert generate.main(["--check"]) == 0


def test_a_typed_number_in_a_generated_block_is_noticed_and_written_over(
    generate: ModuleType, copy_of_documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = copy_of_documents / "docs" / "results.md"
    before = page.read_text(encoding="utf-8")
    page.write_text(before.replace(" ± ", " ± 9", 1), encoding="utf-8")
    assert generate.main(["--check"], root=copy_of_documents) == 1
    assert capsys.readouterr().out == "docs/results.md is not up to date: run `make docs`\n"
    assert generate.main([], root=copy_of_documents) == 0
    assert page.read_text(encoding="utf-8") == before


def test_other_measurements_make_other_pages_and_another_figure(
    generate: ModuleType, copy_of_documents: Path
) -> None:
    path = copy_of_documents / "docs/examples/demo.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    reporting = next(each for each in body["experiments"] if each["seed"] == 0)
    reporting["scores"]["test"]["exact_match"]["value"] += 0.01
    path.write_text(json.dumps(body), encoding="utf-8")
    wanted = generate.wanted_files(copy_of_documents)
    stale = {p.name for p, text in wanted.items() if p.read_text(encoding="utf-8") != text}
    assert stale == {"results.md", "demo.svg"}


def test_measurements_of_another_suite_than_the_shipped_one_are_noticed(
    generate: ModuleType, copy_of_documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_of_documents / "docs/examples/lab_rank_study.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    body["shared"]["settings"]["max_steps"] = 7
    path.write_text(json.dumps(body), encoding="utf-8")
    assert generate.main(["--check"], root=copy_of_documents) == 1
    assert re.search(
        r"lab_rank_study\.json was measured with another rank_study\.yaml \(.*max_steps.*\)",
        capsys.readouterr().out,
    )
    del body["experiments"][-1]
    path.write_text(json.dumps(body), encoding="utf-8")
    assert generate.main(["--check"], root=copy_of_documents) == 1


@pytest.mark.parametrize(
    ("number", "part"),
    [("is the smallest rank shown", "answer"), (" ± ", "results"), (r" \| \[", "comparisons")],
)
def test_a_report_that_does_not_carry_its_measurements_is_noticed(
    agreement: ModuleType, copy_of_documents: Path, number: str, part: str
) -> None:
    path = copy_of_documents / "docs/examples/alpaca_rank_and_rate.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(number, "9", text), encoding="utf-8")
    (problem,) = (found for found in agreement.disagreements(copy_of_documents) if "alpaca" in found)
    assert part in problem


def test_a_verdict_that_changed_since_version_0_1_is_listed(
    generate: ModuleType, copy_of_documents: Path
) -> None:
    path = copy_of_documents / "benchmarks/results/example_verdicts_0.1.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    before["lab_rank_study"]["verdicts"]["rank_1"] = "cannot tell"
    path.write_text(json.dumps(before), encoding="utf-8")
    assert generate.main([], root=copy_of_documents) == 0
    log = (copy_of_documents / "docs/log.md").read_text(encoding="utf-8")
    assert "rank_1 in lab_rank_study: cannot tell, now rank_16 ahead, untuned." in log


def test_the_examples_belong_together(agreement: ModuleType) -> None:
    assert agreement.disagreements(documents.ROOT) == []


def test_no_time_is_typed_that_nobody_measured() -> None:
    lab = documents.ROOT / "src/lorastudy"
    for path in (
        documents.README,
        documents.ROOT / "CHANGELOG.md",
        lab / "cli/suite.py",
        lab / "lab/demo.yaml",
        lab / "lab/rank_study.yaml",
    ):
        text = re.sub(
            r"<!-- generated: .*?<!-- end -->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        assert not re.search(r"\b(minutes?|hours?)\b", text), path.name


def test_every_block_of_the_generator_is_used_and_closed(generate: ModuleType) -> None:
    texts = [page.read_text(encoding="utf-8") for page in generate.pages(documents.ROOT)]
    # code spans may speak of the markers
    bare = [re.sub(r"`[^`\n]*`", "", text) for text in texts]
    used = [name for text in bare for name in re.findall(r"<!-- generated: ([\w-]+) -->", text)]
    assert set(used) == set(generate.BLOCKS)
    assert sum(text.count("<!-- end -->") for text in bare) == len(used)


def test_common_values_are_written_once_and_come_back(measurements: ModuleType) -> None:
    values = [
        {"a": 1, "b": {"x": 1, "y": 2}, "c": {"z": 1}, "d": [1], "e": None},
        {"a": 1, "b": {"x": 1, "y": 3}, "c": {"z": 1}, "d": [2], "e": {"x": 1}},
        {"a": 1, "b": {"x": 1, "y": 2}, "c": {"z": 1}, "e": {"x": 1}},
    ]
    shared, rests = measurements.factored(values)
    assert shared == {"a": 1, "b": {"x": 1}, "c": {"z": 1}}
    assert rests[1] == {"b": {"y": 3}, "d": [2], "e": {"x": 1}}
    assert [measurements.merged(shared, rest) for rest in rests] == values


@pytest.mark.parametrize("with_items", [True, False])
def test_what_guessing_scores_comes_back_from_a_file_of_measurements(
    measurements: ModuleType, tmp_path: Path, with_items: bool
) -> None:
    studies.run_study(tmp_path, studies.experiments(num_packs=1))
    database = str(tmp_path / studies.DATABASE)
    file = tmp_path / "measured.json"
    measurements.take(database, suite_name=studies.SUITE, into=file, with_items=with_items)
    with ExperimentTracker(database) as tracker:
        stored = [run.trivial for run in tracker.get_all_experiments()]
    assert all(stored)
    kept = stored if with_items else [tuple(replace(one, items=()) for one in scores) for scores in stored]
    assert [run.trivial for run in measurements.results_of(file)] == kept


def test_measurements_are_small_and_whole(measurements: ModuleType) -> None:
    for path in sorted((documents.ROOT / "docs/examples").glob("*.json")):
        has_items = "items" in json.loads(path.read_text(encoding="utf-8"))
        assert path.stat().st_size < (256 if has_items else 128) * 1024, path.name
        results = measurements.results_of(path)
        assert {result.status for result in results} == {"completed"}, path.name
        assert all(result.run_folder is None for result in results)


@pytest.mark.parametrize("block", SUITES, ids=str)
def test_a_suite_of_the_documents_loads(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _save_files(block.page)
    if block.page.name == "suite-file.md" and "experiments" not in block.text:
        pytest.skip("a part of a suite")
    path = Path(block.file_name or "suite.yaml")
    path.write_text(block.text, encoding="utf-8")
    _make_data_files(block.text)
    if "broken" in block.words:
        with pytest.raises(SuiteFileError):
            load_suite(path)
        return
    designed = design(
        load_suite(path), fingerprint_dataset=lambda _: "data", fingerprint_base=lambda _: "base"
    )
    assert designed.experiments


def test_the_readme_s_suite_has_ten_lines_or_so() -> None:
    suite = next(block for block in documents.blocks(documents.README, "yaml") if block.file_name)
    assert len(suite.text.splitlines()) <= 12


@pytest.mark.parametrize(
    ("page", "arguments"),
    [(page, arguments) for page in documents.PAGES for arguments in documents.commands(page)],
    ids=lambda value: value.name if isinstance(value, Path) else " ".join(value[:2]),
)
def test_a_command_of_the_documents_is_valid(page: Path, arguments: list[str]) -> None:
    if arguments[0] == "python":
        script = documents.ROOT / arguments[1]
        assert script.is_file(), page
        arguments = ["lorastudy", SCRIPTS[script.stem], *arguments[2:]]
    _, verb, *rest = arguments
    if verb in PLACEHOLDERS or verb.startswith("--"):
        return
    group = typer.main.get_command(app)
    command = group.commands[verb]  # type: ignore[attr-defined]  # typer's own click
    if rest and "--help" not in rest:
        command.make_context(verb, rest)


@pytest.mark.parametrize("page", documents.PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in documents.links(page):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = page if not name else page.parent / name
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in documents.anchors(there), f"{page.name}: {target}"


def test_the_tutorial_s_table_of_formats_is_what_is_recognised() -> None:
    rows = re.findall(
        r"^\| (\w+) \| (`[^|]+) \|", documents.TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [name for name, _ in rows] == ["alpaca", "messages", "sharegpt", "prompt_completion", "text"]
    for name, cell in rows:
        columns = re.findall(r"`(\w+)`", cell.split(":")[0].split(", or")[0])
        assert detect([Row(values=dict.fromkeys(columns, "x"), where="1")]).name == name


def _save_files(page: Path) -> None:
    for block in documents.blocks(page, "python"):
        if block.file_name:
            Path(block.file_name).write_text(block.text, encoding="utf-8")


def _make_data_files(suite: str) -> None:
    """Empty files where the suite expects data that a reader has by then."""
    for name in re.findall(r"dataset_path: (data/\S+)", suite):
        if "missing" not in name:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).touch()
