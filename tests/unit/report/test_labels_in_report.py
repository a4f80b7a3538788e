"""A reader meets labels: no page, plot or summary has an arm's name, which stands in folders and commands alone."""

import re
from dataclasses import replace

from lorastudy.report import write
from lorastudy.report.figures.data import study_figures
from lorastudy.report.figures.interactive import vega_lite_specs
from lorastudy.report.read import read_report
from lorastudy.report.write import write_report
from tuned import at_worse_rates

CODE = re.compile(r"```.*?```|`[^`\n]*`|<pre>.*?</pre>|<code>.*?</code>", re.DOTALL)


def renamed(results):
    """The same results under names that no label can hold."""
    return [
        replace(result, arm=f"zz_{result.arm}_zz", name=f"zz_{result.arm}_zz_seed{result.seed}")
        for result in results
    ]


def ended_badly(results):
    """One seed of one arm failed, and another was stopped by racing."""
    first, second, *rest = results
    failed = replace(
        first, status="failed", failure_kind="out_of_memory", failure_message="no room", scores={}
    )
    return [failed, replace(second, status="paused"), *rest]


def test_no_page_plot_or_line_has_a_name(make_rank_results, make_tracker, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "save_figure", lambda figure, folder: [])  # what they draw is read below
    ranks = make_rank_results(ranks=(4, 16, 2))
    for results in (ranks, ended_badly(ranks), [*ranks, *at_worse_rates(ranks)]):
        tracker = make_tracker(renamed(results))
        write_report(tracker, output=tmp_path / "RESULTS.md")
        for page in ("RESULTS.md", "RESULTS.html"):
            text = CODE.sub("", (tmp_path / page).read_text(encoding="utf-8"))
            assert "zz_" not in text, re.findall(r".{60}zz_.{30}", text)[:3]
        report = read_report(tracker)
        (studied,) = report.studies
        drawn = [vega_lite_specs(figure) for figure in study_figures(studied.analysis, {})]
        assert "zz_" not in str([drawn, [summary.lines() for summary in report.summaries]])


def test_arms_come_in_the_order_of_their_values(make_rank_results, make_tracker):
    custom = [replace(result, experiment_type="custom") for result in make_rank_results(ranks=(4, 16, 2))]
    tracker = make_tracker(renamed(custom))
    (studied,) = read_report(tracker).studies
    assert [summary.arm.name for summary in studied.analysis.summaries] == ["r=2", "r=4", "r=16"]
    # The suite's first arm is the reference all the same.
    assert studied.analysis.reference.name == "r=4"
    assert [arm.given_name for arm in studied.analysis.study.arms] == ["zz_r2_zz", "zz_r4_zz", "zz_r16_zz"]
