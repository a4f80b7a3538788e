"""The report as files: what is in them, where they are, and that they come out the same."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lorastudy.analysis.study import split_studies
from lorastudy.errors import StudyError
from lorastudy.report import write
from lorastudy.report.html import chart_library
from lorastudy.report.numbers import ABSENT
from lorastudy.report.sections.reproduce import suite_yaml
from lorastudy.report.write import write_report
from lorastudy.spec.loading import load_suite

GOLDEN = Path(__file__).parents[2] / "golden" / "report_rank_study.md"
PLOTS = (
    "rank_comparison",
    "efficiency_frontier",
    "training_time",
    "adapter_size",
    "parameters",
    "training_curves",
    "forgetting",
)


@pytest.fixture
def undrawn(monkeypatch):
    """Reports with empty plots and an empty page, for what is not about them: to draw takes seconds."""

    def touch(figure, folder):
        path = folder / f"{figure.name}.png"
        path.touch()
        return [path]

    monkeypatch.setattr(write, "save_figure", touch)
    monkeypatch.setattr(write, "render_html", lambda blocks: "")


@pytest.fixture
def text_of(undrawn, make_tracker, tmp_path):
    """The Markdown of a report on these results."""

    def make(results, **options):
        path, *_ = write_report(make_tracker(results), output=tmp_path / "R.md", **options)
        return path.read_text(encoding="utf-8")

    return make


def test_the_files_of_the_specification(written):
    folder, paths = written
    plots = [Path("results/plots") / f"{name}.{ending}" for name in PLOTS for ending in ("png", "svg")]
    assert paths == [Path("RESULTS.md"), Path("RESULTS.html"), *plots]
    assert all((folder / path).stat().st_size > 0 for path in paths)


def test_the_golden_report(written):
    """To accept a change: copy the RESULTS.md that the failing test leaves in its folder over the golden file."""
    assert (written[0] / "RESULTS.md").read_text(encoding="utf-8") == GOLDEN.read_text(encoding="utf-8")


def test_the_same_results_give_the_same_bytes(written, make_rank_results, make_tracker, tmp_path):
    folder, first = written
    second = write_report(make_tracker(make_rank_results()), output=tmp_path / "RESULTS.md")
    assert [(folder / path).read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_images_are_linked_relative_to_the_report(written):
    links = re.findall(r"\]\((.+?)\)", (written[0] / "RESULTS.md").read_text(encoding="utf-8"))
    assert len(links) == len(PLOTS)
    assert all((written[0] / link).is_file() for link in links)


def test_plots_may_go_elsewhere_and_two_reports_keep_their_own(undrawn, make_result, make_tracker, tmp_path):
    tracker = make_tracker([make_result("a", 0)])
    paths = write_report(tracker, output=tmp_path / "sub" / "Mine.md", plots=tmp_path / "pictures")
    assert "(../pictures/rank_comparison.png)" in paths[0].read_text(encoding="utf-8")
    assert (tmp_path / "pictures" / "rank_comparison.png").is_file()
    other = write_report(tracker, output=tmp_path / "sub" / "Other.md")
    assert other[2].parent == tmp_path / "sub" / "other" / "plots"


def test_the_page_needs_no_network_and_carries_its_library_once(written):
    page = (written[0] / "RESULTS.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 2_000_000
    own = page.replace(chart_library(), "")
    assert len(page) - len(own) == len(chart_library())
    assert not re.search(r"<link|<script[^>]+src=|@import|url\(", own)
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", own)
    assert "default-src 'none'" in own.replace("&#x27;", "'")
    # 3 + 1 + 2 + 1 + 1 + 1 + 1 panels
    assert own.count('<div class="chart"></div>') == 10


def test_page_and_markdown_say_the_same(written):
    page = (written[0] / "RESULTS.html").read_text(encoding="utf-8")
    text = (written[0] / "RESULTS.md").read_text(encoding="utf-8")
    for row in re.findall(r"^\| (r\d+.*) \|$", text, flags=re.MULTILINE):
        for cell in row.split(" | "):
            assert cell.replace("<", "&lt;") in page


def test_failures_come_before_results_with_their_message(rank_study, text_of):
    failed = replace(
        rank_study[0],
        status="failed",
        failure_kind="diverged",
        failure_message="loss | is <b>nan</b>",
        scores={},
        profile=None,
    )
    waiting = replace(rank_study[1], status="pending", scores={}, profile=None)
    text = text_of([failed, waiting, *rank_study[2:]])
    assert text.index("## Failures and divergences") < text.index("## Results")
    assert "diverged at step 250 | loss \\| is &lt;b>nan&lt;/b> |" in text
    assert "Not finished: r1_s1." in text
    assert re.search(r"\| r1 \| 4 of 6 \|", text)


def test_no_failures_no_section(written):
    assert "Failures" not in (written[0] / "RESULTS.md").read_text(encoding="utf-8")


def test_an_arm_that_never_completed_has_a_row_of_dashes(make_result, text_of):
    results = [
        make_result("r16", 0),
        make_result("r32", 0, settings={"lora_rank": 32}, status="failed", scores={}),
    ]
    assert f"| r32 | 0 of 1 | {' | '.join([ABSENT] * 10)} |" in text_of(results)


def test_suites_are_parts_of_their_own_with_plots_of_their_own(undrawn, make_result, make_tracker, tmp_path):
    results = [make_result("a", 0, suite_name=name) for name in ("First Suite", "first/suite")]
    results.append(make_result("b", 0, suite_name="third", experiment_type="own"))
    paths = write_report(make_tracker(results), output=tmp_path / "R.md")
    text = paths[0].read_text(encoding="utf-8")
    assert "## First Suite (rank ablation)" in text
    assert "## third (own)" in text
    stems = {path.stem for path in paths[2:]}
    assert {"first_suite_rank_comparison", "first_suite_2_rank_comparison", "third_arm_comparison"} <= stems


def test_a_report_may_cover_one_type_or_one_suite(make_result, text_of):
    results = [
        make_result("a", 0, suite_name="first"),
        make_result("b", 0, suite_name="third", experiment_type="own"),
    ]
    assert "# LoRA study: third (own)" in text_of(results, experiment_type="own")
    assert "third" not in text_of(results, suite_name="first")


def test_a_suite_that_failed_as_a_whole_is_still_told(make_result, text_of):
    failed = make_result(
        "b", 0, suite_name="second", status="failed", failure_message="no such module", scores={}
    )
    text = text_of([make_result("a", 0, suite_name="first"), failed])
    assert text.index("## second (rank ablation)") < text.index("no such module")


def test_environments_that_differ_are_shown_and_flagged(rank_study, text_of):
    other = replace(rank_study[-1].environment, torch="9.9")
    text = text_of([*rank_study[:-1], replace(rank_study[-1], environment=other)])
    assert "**Results come from 2 environments.**" in text
    assert "| torch | 2.13.0 | 9.9 |" in text
    assert "**Environments differ.**" in text


def test_the_rule_of_a_verdict_is_that_of_the_study(make_rank_results, text_of):
    one = text_of(make_rank_results(ranks=(1, 2)))
    assert (
        "when the paired t test and the exact sign-flip test are both below .05, which takes at least six"
        in one
    )
    assert "the t test alone decides" not in one
    many = text_of(make_rank_results(ranks=(1, 2, 4), num_seeds=23))
    assert "the paired t test, Holm-corrected over these 2 comparisons, and the exact sign-flip test" in many
    assert "Beyond 22 seeds the t test alone decides." in many


def test_three_seeds_give_no_verdict_anywhere(make_rank_results, text_of):
    text = text_of(make_rank_results(num_seeds=3))
    rows = re.findall(r"^\| r\d+ \| 3 \| \+.*\| (.+?) \|$", text, flags=re.MULTILINE)
    # r16 is so near to r32 that three seeds do not even lean.
    too_few = "cannot tell (3 seeds are too few, six can show it)"
    assert rows == [too_few] * 4 + ["cannot tell (the interval contains 0)"]
    assert not re.search(r"\b(better|worse) for\b|n = 3: (better|worse)", text)


def test_what_is_missing_is_named(make_result, text_of):
    text = text_of([make_result("a", 0)])
    assert "- Exact match: not measured (set max_generation_samples above 0)." in text
    assert "- Peak memory: not measured." in text


def test_an_empty_store_says_what_to_run(make_tracker):
    with pytest.raises(StudyError, match="lorastudy suite"):
        write_report(make_tracker([]))


def test_a_filter_that_matches_nothing_is_named(rank_study, make_tracker):
    with pytest.raises(StudyError, match="of type 'module_ablation'"):
        write_report(make_tracker(rank_study), experiment_type="module_ablation")


def test_nothing_completed_says_why(make_result, make_tracker):
    failed = make_result("a", 0, status="failed", failure_message="out of memory", scores={})
    with pytest.raises(StudyError, match="What went wrong: out of memory"):
        write_report(make_tracker([failed]))


def test_the_printed_suite_is_the_study(rank_study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (study,) = split_studies(rank_study)
    path = tmp_path / "suite.yaml"
    path.write_text(suite_yaml(study), encoding="utf-8")
    suite = load_suite(path)
    assert (suite.name, suite.experiment_type) == (study.suite_name, study.experiment_type)
    assert [(arm.name, arm.settings) for arm in suite.arms] == [
        (arm.name, arm.typed_settings) for arm in study.arms
    ]
    assert {arm.seeds for arm in suite.arms} == {(0, 1, 2, 3, 4, 5)}


def test_reporting_imports_no_training_library():
    code = "import sys, lorastudy.report.write; print({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
