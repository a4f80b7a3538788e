"""How numbers are written, and that nothing a user wrote becomes markup."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from lorastudy.report import numbers
from lorastudy.report.document import (
    Bullets,
    Cell,
    Code,
    CodeBlock,
    Figure,
    Heading,
    Paragraph,
    Strong,
    Table,
    TableColumn,
)
from lorastudy.report.html import render_html
from lorastudy.report.markdown import escape, render_markdown
from lorastudy.stats.summary import Spread

HOSTILE = "a|b <script>alert(1)</script> **x** [l](http://e.vil) `c` $m$ &amp; _y_"


def markdown(*blocks):
    return render_markdown(blocks, output=Path("RESULTS.md"), plots=Path("results/plots"))


def test_numbers_have_the_digits_their_spread_supports():
    assert numbers.decimals_for([0.0123]) == 3
    assert numbers.decimals_for([12.0]) == 1
    assert numbers.decimals_for([None]) == 4
    assert numbers.mean_sd(Spread.of([1.0, 2.0]), 2) == "1.50 ± 0.71"
    assert numbers.mean_sd(Spread.of([1.0]), 2) == "1.00"
    assert numbers.mean_sd(None, 2) == numbers.ABSENT


def test_values_that_differ_look_different_as_far_as_decimals_go():
    assert numbers.decimals_that_differ([0.2, 0.7], least=1, most=5) == 1
    assert numbers.decimals_that_differ([0.21, 0.2149, 0.7], least=1, most=5) == 3  # .210, .215
    assert numbers.decimals_that_differ([0.21, 0.21, 0.7], least=2, most=5) == 2
    # Equal up to the last decimal counts as equal.
    assert numbers.decimals_that_differ([0.21, 0.210000001], least=2, most=5) == 2


def test_signs():
    assert numbers.number(-0.0001, 2) == "0.00"
    assert numbers.number(-1.5, 1) == "\N{MINUS SIGN}1.5"
    assert numbers.signed(0.25, 2) == "+0.25"
    assert numbers.signed(0.0001, 2) == "0.00"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.size(None), numbers.ABSENT),
        (numbers.size(100), "100 bytes"),
        (numbers.size(3 * 2**20), "3.00 MiB"),
        (numbers.size(1536 * 2**20), "1.50 GiB"),
        (numbers.duration(0.0123), "12.3 ms"),
        (numbers.duration(90), "1.50 min"),
        (numbers.p_value(0.0001), "< 0.001"),
        (numbers.p_value(0.03125), "0.031"),
        (numbers.count(1234567), "1,234,567"),
        (numbers.percent_more(110, 100), "+10.0 %"),
        (numbers.listing(["a", "b", "c"]), "a, b and c"),
        (numbers.listing(map(str, range(24))), f"{', '.join(map(str, range(23)))} and 23"),
        (numbers.listing(map(str, range(25))), "0, 1, 2, 3, 4, 5, 6, 7 and 17 more"),
        (numbers.names(map(str, range(25)), every=True), f"{', '.join(map(str, range(24)))} and 24"),
        (numbers.names(["a", "b, c"]), "a and “b, c”"),
    ],
)
def test_written_forms(written, expected):
    assert written == expected


def test_markdown_shows_hostile_text_as_text():
    written = escape(HOSTILE)
    assert written.startswith("a\\|b &lt;script>alert(1)&lt;/script> \\*\\*x\\*\\*")
    assert not re.search(r"(?<!\\)\]\(", written)
    assert "\\`c\\` \\$m\\$" in written
    assert " _y_" not in written


def test_markdown_leaves_ordinary_text_readable():
    assert (
        escape("rank_ablation: -0.1 [0.2, 0.3], p < 0.001 & more")
        == "rank_ablation: -0.1 [0.2, 0.3], p < 0.001 & more"
    )


@pytest.mark.parametrize("start", ["# x", "- x", "+ x", "> x", "1. x", "12) x"])
def test_a_line_that_begins_like_markup_stays_a_line(start):
    assert "\\" in markdown(Paragraph((start,))).split()[0]


def test_a_table_row_stays_one_row():
    table = Table(columns=(TableColumn("Arm"), TableColumn("Loss")), rows=((Cell("x | y\nz"), Cell("1")),))
    *_, row = markdown(table).strip().splitlines()
    assert row == "| x \\| y z | 1 |"


@pytest.mark.parametrize("alt", ["[0-3](q|v)", "[x]: y", "a[", "b]", "\\\\[x](y)"])
def test_the_text_of_an_image_ends_at_its_own_bracket(alt):
    figure = Figure(name="x", kind="bars", title="T", caption="C", alt=alt, arms=())
    image, _ = markdown(figure).split("\n\n", 1)
    (inline,) = (token for token in MarkdownIt("commonmark").parse(image) if token.type == "inline")
    (shown,) = inline.children
    assert (shown.type, "".join(part.content for part in shown.children)) == ("image", alt)


def test_code_with_backticks_keeps_its_fence():
    assert markdown(CodeBlock("a\n```\nb")).startswith("````\n")
    assert markdown(Paragraph((Code("a`b"),))) == "``a`b``\n"


class Tags(HTMLParser):
    """Every element and the text outside scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def test_html_shows_hostile_text_as_text():
    blocks = (
        Heading(level=1, text=HOSTILE),
        Paragraph((HOSTILE, Strong(HOSTILE), Code(HOSTILE))),
        Bullets(((HOSTILE,),)),
        CodeBlock(HOSTILE),
        Table(columns=(TableColumn(HOSTILE),), rows=((Cell(HOSTILE),),)),
    )
    tags = Tags()
    tags.feed(render_html(blocks))
    assert tags.tags.count("script") == 2  # chart data and the page's own; the library only with a chart
    assert "".join(tags.text).count(HOSTILE) == 9  # title, and once for each place above


def test_html_cells_sort_by_value_and_not_by_text():
    table = Table(columns=(TableColumn("Loss"),), rows=((Cell("1.5 ± 0.1", 1.5),), (Cell(numbers.ABSENT),)))
    page = render_html((table,))
    assert '<td class="number" data-value="1.5">1.5 ± 0.1</td>' in page
    assert f'<td class="number">{numbers.ABSENT}</td>' in page
