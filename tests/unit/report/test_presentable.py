"""Nothing private and nothing that reorders text reaches a page, wherever in the report it stands."""

from dataclasses import replace

import pytest

from lorastudy.report.document import (
    Bullets,
    Cell,
    Code,
    CodeBlock,
    Heading,
    Paragraph,
    Strong,
    Table,
    TableColumn,
    presentable,
)
from lorastudy.report.read import without_traces
from lorastudy.report.write import write_report
from lorastudy.suite.safe_text import Privacy

pytestmark = pytest.mark.long

ALICE = Privacy(home="/home/alice", user="alice", host="gpu-7", secrets=("s3cr3t-value",))
PRIVATE = "/home/alice/x \u202e s3cr3t-value postgresql://u:pw@h/d"
SHOWN = "~/x \\u202e *** postgresql://u:***@h/d"


def test_every_text_of_every_block_is_made_presentable() -> None:
    def blocks(text):
        return [
            Heading(level=1, text=text),
            Paragraph((text, Strong(text), Code(text))),
            Bullets(((text, Code(text)),)),
            CodeBlock(text + "\nsecond line", language="yaml"),
            Table(columns=(TableColumn(text),), rows=((Cell(text, 1.5),),)),
        ]

    assert presentable(blocks(PRIVATE), ALICE) == blocks(SHOWN)


def test_a_failures_traceback_loses_its_paths_and_its_host(make_result) -> None:
    trace = 'File "/home/alice/.venv/lib/python3.11/site-packages/torch/x.py", line 3\ngpu-7'
    failed = replace(make_result(), failure_message="gpu-7 went away", traceback=trace)
    found = without_traces(failed, ALICE)
    assert found.failure_message == "<host> went away"
    assert found.traceback == 'File "torch/x.py", line 3\n<host>'
    assert without_traces(make_result(), ALICE) == make_result()


def test_a_report_names_no_home_directory_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, make_rank_results, make_tracker, tmp_path
) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("HF_TOKEN", "s3cr3t-value")
    settings = {"base_model": "/home/alice/models/phi", "dataset_path": "/home/alice/data.csv"}
    results = make_rank_results(ranks=(1, 2), num_seeds=2, settings=settings)
    results.append(replace(results[0], experiment_id="f", seed=9, status="failed", scores={}, failure_kind="error", failure_message=PRIVATE))  # fmt: skip
    paths = write_report(make_tracker(results, description=PRIVATE), output=tmp_path / "RESULTS.md")
    for path in paths[:2]:
        text = path.read_text(encoding="utf-8")
        assert "~/models/phi" in text
        for private in ("/home/alice", "s3cr3t-value", ":pw@", "\u202e"):
            assert private not in text


def test_code_of_a_models_own_is_named_in_the_report(make_rank_results, make_tracker, tmp_path) -> None:
    results = make_rank_results(
        ranks=(1, 2), num_seeds=2, settings={"trust_remote_code": True, "base_model": "some/model"}
    )
    path, *_ = write_report(make_tracker(results), output=tmp_path / "RESULTS.md")
    assert "**The model's own code was run.** trust_remote_code was on for some/model" in path.read_text(
        encoding="utf-8"
    )
