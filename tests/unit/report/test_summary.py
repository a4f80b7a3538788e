"""What a command ends with: the first page of its report in a few lines, in the report's own words."""

import textwrap
from dataclasses import replace

import pytest

from lorastudy.errors import StudyError
from lorastudy.report import read_report, save_report, write
from lorastudy.report.document import plain
from lorastudy.report.markdown import escape
from lorastudy.store.views import ImportedResult, ImportedScore
from tuned import at_worse_rates


@pytest.fixture
def text_of(make_tracker, tmp_path, monkeypatch):
    """The report that was read, and its Markdown; nothing is drawn."""
    monkeypatch.setattr(write, "save_figure", lambda figure, folder: [])
    monkeypatch.setattr(write, "render_html", lambda blocks: "")

    def make(tracker):
        report = read_report(tracker)
        path, *_ = save_report(report, tracker, output=tmp_path / "R.md")
        return report, path.read_text(encoding="utf-8")

    return make


@pytest.mark.parametrize("tuned", [True, False])
def test_every_sentence_stands_in_the_report(rank_study, make_tracker, text_of, tuned):
    results = [*rank_study, *at_worse_rates(rank_study)] if tuned else rank_study
    report, text = text_of(make_tracker(results))
    (summary,) = report.summaries
    assert summary.title == "rank_sweep (rank ablation)"
    assert summary.answer.startswith("Use r=32, lr 2e-4: " if tuned else "Cannot tell yet: ")
    for said in (*(said for _, said in summary.parts), *map(plain, summary.limits)):
        assert escape(said) in text
    assert f"**{escape(summary.answer)}**" in text


def test_it_is_a_few_lines_that_say_nothing_twice(rank_study, make_tracker):
    (summary,) = read_report(make_tracker(rank_study)).summaries
    lines = summary.lines()
    titles = ["Cannot tell yet: no arm had its learning rate tuned", "How sure", "What would decide"]
    assert [line.split(".")[0] for line in lines] == titles
    assert (
        sum(len(textwrap.wrap(line, 80)) for line in lines) <= 7
    )  # of ten, with the title, the adapter and the next command
    assert " ".join(lines).count("tuned") == 1


@pytest.mark.parametrize("tuned", [True, False])
def test_the_gravest_limit_is_told_and_the_others_are_counted_as_the_report_lists_them(
    rank_study, make_tracker, text_of, tuned
):
    results = [*rank_study, *at_worse_rates(rank_study)] if tuned else rank_study
    report, text = text_of(make_tracker(results))
    _, _, rest = text.partition("**What limits this.**\n\n")
    listed = rest.partition("\n\n")[0].splitlines()
    assert all(line.startswith("- ") for line in listed)
    assert ("(LS101, " in listed[0]) != tuned
    (summary,) = report.summaries
    gravest = plain(summary.limits[0])
    assert escape(gravest) in listed[0]
    more = len(listed) - 1
    assert more > 0
    assert len(listed) == min(len(summary.limits), 3) + (len(summary.limits) > 3)


def test_it_hides_what_the_report_hides(rank_study, make_tracker, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    data = {"dataset_path": "/home/somebody/data/rows.jsonl"}
    results = [replace(result, settings={**result.settings, **data}) for result in rank_study]
    (summary,) = read_report(make_tracker(results)).summaries
    told = " ".join(plain(limit) for limit in summary.limits)
    assert "data/rows.jsonl" in told
    assert "/home/somebody" not in told


def test_of_several_suites_the_one_that_ran_last_comes_first(make_rank_results, make_tracker, text_of):
    times = {"old": "2026-01-02T12:00:00+00:00", "new": "2026-01-04T12:00:00+00:00", "middle": "2026-01-03T12:00:00+00:00"}  # fmt: skip
    results = [
        replace(result, suite_name=name, experiment_id=f"{name}/{result.experiment_id}", started_at=at)
        for name, at in times.items()
        for result in make_rank_results(ranks=(2, 8))
    ]
    report, text = text_of(make_tracker(results))
    titles = [f"{name} (rank ablation)" for name in ("new", "middle", "old")]
    assert [summary.title for summary in report.summaries] == titles
    # named with what each came to before the first of them is told in full
    summary, _, _ = text.partition("## new (rank ablation)")
    places = [summary.index(f"- **{title}.** Cannot tell yet: no arm had") for title in titles]
    assert places == sorted(places)
    assert "`lorastudy report --suite-name NAME`" in summary
    assert [text.index(f"## {title}") for title in titles] == sorted(
        text.index(f"## {title}") for title in titles
    )


def imported(suite_name="public"):
    score = ImportedScore(metric="loss", value=1.0, unit="", lower_is_better=True, num_items=None)
    return ImportedResult(
        suite_name=suite_name, arm="a", seed=0, settings={}, sources={}, scores=(score,), costs={}, tool="table",
        file="a.csv", file_sha256="ab" * 32, location="1", imported_at="2026-01-02T03:04:05+00:00",
    )  # fmt: skip


def with_imported(tracker, results):
    tracker.get_imported = lambda suite_name=None: [r for r in results if suite_name in (None, r.suite_name)]
    return tracker


def test_imported_results_are_named_where_they_are_left_out(rank_study, make_tracker, text_of):
    report, text = text_of(with_imported(make_tracker(rank_study), [imported(), imported("other")]))
    assert report.imported_apart == ("public", "other")
    assert "Imported results are reported separately and are not in this report: public and other." in text


def test_a_store_of_imported_results_alone_says_how_to_report_them(make_tracker):
    with pytest.raises(StudyError, match=r"only imported results: public\. .* --suite-name NAME"):
        read_report(with_imported(make_tracker([]), [imported()]))


def test_imported_results_have_an_answer_and_limits_and_no_recommendation(make_tracker):
    tracker = with_imported(make_tracker([]), [imported()])
    (summary,) = read_report(tracker, suite_name="public").summaries
    assert summary.title == "Imported results: public"
    assert summary.parts == ()
    assert summary.limits
