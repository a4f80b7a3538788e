"""The chart of a report on a terminal: the rows of the drawn figure, in plain characters."""

from pathlib import Path

import pytest

from lorastudy.cli.report import say_report
from lorastudy.report.document import Estimate, Figure, PairRow, Panel
from lorastudy.report.figures.terminal import terminal_chart
from lorastudy.report.read import read_report


def a_pair(arm, mean, half, *, decided):
    return PairRow(
        arm=arm,
        mean=mean,
        low=None if half is None else mean - half,
        high=None if half is None else mean + half,
        n=6,
        verdict="reference is better" if decided else "cannot tell",
        decided=decided,
    )


def of_pairs(*pairs):
    arms = tuple(pair.arm for pair in pairs)
    return Figure(name="pairs", kind="pairs", title="T", caption="C", alt="A", arms=arms, pairs=pairs, x_label="Loss, arm minus r=8")  # fmt: skip


def test_a_star_is_a_verdict_a_circle_is_none_and_a_colon_is_no_difference():
    figure = of_pairs(a_pair("r=1", 8.0, 2.0, decided=True), a_pair("r=16", 1.0, 1.0, decided=False))
    # Columns 0 to 20 are the values 0 to 10: 44 = 4 for the names, 21 for the bars, 19 for the words.
    assert terminal_chart(figure, width=4 + 2 + 21 + 2 + 19) == [
        "Loss, arm minus r=8",
        "r=1   :           ----*----  reference is better",
        "r=16  --o--                  cannot tell",
        "      0.00             10.0",
    ]


@pytest.mark.parametrize("width", range(24, 120, 7))
def test_no_line_is_wider_than_the_terminal(width):
    figure = of_pairs(
        a_pair("r=1", 0.31, 0.2, decided=True), a_pair("an arm of a long name", -0.02, None, decided=False)
    )
    lines = terminal_chart(figure, width=width)
    assert all(len(line) <= width for line in lines)
    assert bool(lines) == (width >= 21 + 2 + 16)
    assert all(line.isascii() or "\N{MINUS SIGN}" in line for line in lines)


def test_scores_have_their_mean_beside_them():
    rows = tuple(
        Estimate(arm=arm, rank=None, mean=mean, low=mean - 0.1, high=mean + 0.1, values=(mean, mean))
        for arm, mean in (("q,v", 0.5), ("MLP", 0.9))
    )
    panel = Panel(label="Exact match (share)", rows=rows)
    figure = Figure(
        name="x", kind="dots", title="T", caption="C", alt="A", arms=("q,v", "MLP"), panels=(panel,)
    )
    # Columns 0 to 18 are the values .4 to 1.
    assert terminal_chart(figure, width=3 + 2 + 19 + 2 + 5) == [
        "Exact match (share)",
        "q,v  ---o---              0.500",
        "MLP              ---o---  0.900",
        "     0.400          1.00",
    ]


def test_another_figure_has_no_chart():
    figure = Figure(name="x", kind="parameters", title="T", caption="C", alt="A", arms=())
    assert terminal_chart(figure, width=80) == []


def test_a_demo_ends_with_the_chart_of_its_report(make_rank_results, make_tracker, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    report = read_report(make_tracker(make_rank_results(ranks=(2, 8, 32))))
    say_report(report, [Path("R.md")], chart=True)
    _, chart = capsys.readouterr().out.split("\nHeld-out loss, arm minus reference")
    unit, small, middle, ends, empty, file = chart.splitlines()
    assert unit == " (nats per token)"
    assert small.startswith("r=2  :")
    assert middle.startswith("r=8  :")
    assert small.endswith("o-  reference ahead, untuned")
    assert (ends.split()[0], empty, file) == ("0.00", "", "wrote R.md")
    assert all(len(line) <= 80 for line in (small, middle, ends))
