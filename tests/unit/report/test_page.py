"""The HTML page as a dashboard: its key figures, contents, colours, two arms side by side, and what it copies."""

import re
from html import unescape
from html.parser import HTMLParser

import pytest

from lorastudy.report.document import Cell, Heading, StudyPart, Table, TableColumn, Versus, unfolded
from lorastudy.report.html import render_html
from lorastudy.report.read import read_report
from lorastudy.report.sections.results import arms_table
from lorastudy.report.sections.tiles import key_figures
from lorastudy.report.sections.versus import versus_blocks
from lorastudy.suite.suite_file import load_suite

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def analysis(make_rank_results, make_tracker):
    (studied,) = read_report(make_tracker(make_rank_results())).studies
    return studied.analysis


@pytest.fixture(scope="module")
def page(written):
    return (written[0] / "RESULTS.html").read_text(encoding="utf-8")


class Ids(HTMLParser):
    """The anchors of a page and the links to them."""

    def __init__(self):
        super().__init__()
        self.ids, self.links = [], []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if tag.startswith("h") and "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])


def test_every_key_figure_stands_in_the_table_of_results(analysis):
    """The arm is not recommended, since its rate is untuned: the head says so."""
    found = key_figures(analysis)
    assert found.status == "open"
    table = arms_table(analysis)
    (row,) = [row for row in table.rows if row[0].text.startswith(f"{found.tiles[0].value} (")]
    cells = {column.title.split(" (")[0]: cell.text for column, cell in zip(table.columns, row, strict=True)}
    tiles = {tile.title: tile.value for tile in found.tiles}
    assert tiles["At the rates tried"] == "r=32"
    assert tiles["Held-out loss"] == cells["Held-out loss"]
    assert tiles["Peak memory, alone"] == f"{cells['Peak memory']} MiB"
    assert tiles["Adapter"] == f"{cells['Adapter']} KiB"
    assert tiles["One step, alone"].split()[0] == cells["Step"].split()[0]
    assert tiles["Seeds"] == cells["Seeds"] == "6"
    # 2304 x 32 of 310,000 + 2304 x 32 parameters
    assert tiles["Trained"] == "19.21 %"


def test_the_contents_lead_to_every_heading_but_the_title(page):
    ids = Ids()
    ids.feed(page)
    title, *others = ids.ids
    assert ids.links == [f"#{anchor}" for anchor in others]
    assert len(set(ids.ids)) == len(ids.ids) > 10
    assert title.startswith("lora-study")


def test_two_headings_of_one_name_have_two_anchors():
    page = render_html(
        [Heading(level=2, text="Arms"), Heading(level=2, text="Arms"), Heading(level=2, text="…")]
    )
    assert re.findall(r'<h2 id="([^"]*)"', page) == ["arms", "arms-2", "part"]


def test_a_row_has_its_arm_s_colour_and_no_other_row_has_one():
    texts = ("r=1 (reference)", "r=16", "constant answer (no model)")
    table = Table(columns=(TableColumn("Arm", numeric=False),), rows=tuple((Cell(text),) for text in texts))
    page = render_html([StudyPart(arms=("r=16", "r=1"), blocks=(table,))])
    body = page.split("<tbody>")[1]
    assert re.findall(r'<tr data-arm="([^"]*)"><td><i class="swatch" style="background:([^"]*)">', body) == [
        ("r=1", "#D55E00"),
        ("r=16", "#0072B2"),
    ]
    assert "<tr><td>constant answer" in body


def test_two_arms_side_by_side_have_the_cells_of_the_table_of_results(analysis):
    (versus,) = [block for block in unfolded(versus_blocks(analysis, level=2)) if isinstance(block, Versus)]
    assert versus.chosen == ("r=32", "r=1")
    results = arms_table(analysis)
    for column, title in enumerate(column.title for column in results.columns):
        if column:
            (row,) = [row for row in versus.table.rows if row[0].text == title]
            assert row[1:] == tuple(line[column] for line in results.rows)
    (ranks,) = [row for row in versus.table.rows if row[0].text == "lora_rank"]
    assert [cell.text for cell in ranks[1:]] == ["1", "2", "4", "8", "16", "32"]


def test_any_two_arms_have_their_paired_difference_in_both_orders(analysis):
    (versus,) = [block for block in unfolded(versus_blocks(analysis, level=2)) if isinstance(block, Versus)]
    found = {(one, other): text for one, other, text in versus.differences}
    assert len(found) == 6 * 5
    for comparison in analysis.primary_comparisons:
        there = found[comparison.arm, comparison.reference]
        back = found[comparison.reference, comparison.arm]
        assert there.startswith(f"{comparison.mean:+.3f}"[:6])
        assert back.startswith("\N{MINUS SIGN}")
        assert there.endswith("over 6 seeds")


def test_the_copied_configuration_is_a_suite_of_that_arm(page, tmp_path):
    (block,) = re.findall(
        r'<div class="code" data-copied="the configuration of r=32"><pre><code>(.*?)</code>',
        page,
        flags=re.DOTALL,
    )
    file = tmp_path / "suite.yaml"
    file.write_text(unescape(block), encoding="utf-8")
    (arm,) = load_suite(file).arms
    assert (arm.settings.lora_rank, arm.settings.max_steps, arm.seeds) == (32, 250, (0, 1, 2, 3, 4, 5))
