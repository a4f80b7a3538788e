"""A document as one HTML file that needs no network: styles, script, chart data and the chart library inside.

The page is a dashboard: contents that stay in view, key figures, charts two abreast, tables to sort and filter, arms to choose
among. What a reader does there only hides and orders what is written; no number is made in the page.

Everything that came from a user is escaped. Should that ever be forgotten, the page's content security policy
runs no script but those whose hash it names, and forbids every request, so that the file cannot call home.
"""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.resources import files

import vl_convert

from lorastudy.report.document import (
    BLACK,
    Block,
    Bullets,
    Code,
    CodeBlock,
    Details,
    Figure,
    Heading,
    Paragraph,
    Shown,
    Span,
    Strong,
    StudyPart,
    Table,
    TableColumn,
    Text,
    Tiles,
    Versus,
    colour,
    unfolded,
)
from lorastudy.report.figures.interactive import Spec, vega_lite_specs, vega_lite_version

#: Vega evaluates its expressions as functions, hence 'unsafe-eval'; blob: and data: serve "save as PNG".
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src {hashes} 'unsafe-eval'; img-src data: blob:"
)
_SCRIPTS = ("charts.js", "tables.js", "versus.js", "page.js")
_TOOLS = (
    '<div class="tools"><button type="button" data-do="theme">Light or dark</button>'
    '<button type="button" data-do="print">Print</button></div>'
)


def render_html(blocks: Sequence[Block]) -> str:
    """The document as a page. The chart library is embedded once, and only if there is a chart."""
    figures = [block for block in unfolded(blocks) if isinstance(block, Figure)]
    charts = {figure.name: vega_lite_specs(figure) for figure in figures}
    specs = [spec for figure in figures for spec in charts[figure.name]]
    body = _Body(num_panels={name: len(panels) for name, panels in charts.items()})
    main = body.html(blocks)
    title = next((block.text for block in blocks if isinstance(block, Heading)), "LoRA study")
    scripts = [*([chart_library()] if specs else []), "\n".join(map(_asset, _SCRIPTS))]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(_policy(scripts))}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{_asset('page.css')}</style>",
            "</head>",
            "<body>",
            _navigation(body.headings),
            f"<main>\n{main}\n</main>",
            f'<script type="application/json" id="charts">{_json(specs)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body>",
            "</html>\n",
        ]
    )


def _policy(scripts: Sequence[str]) -> str:
    """The policy that lets just these scripts run."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return _POLICY.format(hashes=hashes)


@cache
def chart_library() -> str:
    """Vega, Vega-Lite and vega-embed in one script, of the version of altair's specifications."""
    bundle: str = vl_convert.javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=vega_lite_version()
    )
    return bundle.replace("</script", "<\\/script")


def _navigation(headings: Sequence[tuple[Heading, str]]) -> str:
    """The contents, with links to all headings but the title."""
    items = "".join(
        f'<li class="level{heading.level}"><a href="#{anchor}">{escape(heading.text)}</a></li>'
        for heading, anchor in headings
        if heading.level > 1
    )
    contents = f"<details><summary>Contents</summary><ol>{items}</ol></details>" if items else ""
    return f'<nav aria-label="Contents">{contents}{_TOOLS}</nav>'


@dataclass
class _Body:
    """Renders blocks in their order, and keeps what has to be known across them."""

    num_panels: Mapping[str, int]
    headings: list[tuple[Heading, str]] = field(default_factory=list)
    """With their anchors, in order."""
    arms: tuple[str, ...] = ()
    """Those of the study whose part is being rendered, in the order of their colours."""
    is_choice_due: bool = False
    """Whether the study's arms have not been shown yet: they stand above its first figures."""

    def html(self, blocks: Sequence[Block]) -> str:
        """The blocks, with neighbouring figures side by side."""
        parts = []
        for is_figure, group in itertools.groupby(
            _on_page(blocks), key=lambda block: isinstance(block, Figure)
        ):
            html = "\n".join(map(self._block, group))
            parts.append(f'{self._choice()}<div class="figures">\n{html}\n</div>' if is_figure else html)
        return "\n".join(parts)

    def _block(self, block: Block) -> str:
        match block:
            case Heading():
                return self._heading(block)
            case Paragraph():
                return f"<p>{_line(block.text)}</p>"
            case Bullets():
                return "<ul>" + "".join(f"<li>{_line(item)}</li>" for item in block.items) + "</ul>"
            case CodeBlock():
                return _code_block(block)
            case Table():
                return _table(block, arms=self.arms)
            case _:
                return self._box(block)

    def _box(self, block: Block) -> str:
        match block:
            case Tiles():
                return _tiles(block)
            case Versus():
                return _versus(block)
            case Figure():
                return _figure(block, self.num_panels[block.name])
            case Details():
                return f"<details><summary>{escape(block.summary)}</summary>\n{self.html(block.blocks)}\n</details>"
            case StudyPart():
                return self._study(block)
            case _:
                raise AssertionError(block)

    def _heading(self, heading: Heading) -> str:
        anchor = re.sub(r"[^a-z0-9]+", "-", heading.text.lower()).strip("-") or "part"
        taken = {each for _, each in self.headings}
        if anchor in taken:
            anchor = next(f"{anchor}-{n}" for n in itertools.count(2) if f"{anchor}-{n}" not in taken)
        self.headings.append((heading, anchor))
        return f'<h{heading.level} id="{anchor}">{escape(heading.text)}</h{heading.level}>'

    def _study(self, part: StudyPart) -> str:
        self.arms, self.is_choice_due = part.arms, True
        html = f'<section class="study">\n{self.html(part.blocks)}\n</section>'
        self.arms, self.is_choice_due = (), False
        return html

    def _choice(self) -> str:
        """The arms with their colours, above the study's first figures: a click hides one of them everywhere."""
        if not self.is_choice_due or not self.arms:
            return ""
        self.is_choice_due = False
        buttons = "".join(
            f'<button type="button" aria-pressed="true" data-arm="{escape(arm, quote=True)}">{_swatch(place)}'
            f"{escape(arm)}</button>"
            for place, arm in enumerate(self.arms)
        )
        return f'<div class="arms" role="group" aria-label="Arms shown">{buttons}</div>\n'


def _on_page(blocks: Sequence[Block]) -> list[Block]:
    """The blocks with those that only the page shows, so that these stand beside their neighbours."""
    return [
        each
        for block in blocks
        for each in (_on_page(block.on_page) if isinstance(block, Shown) else [block])
    ]


def _swatch(place: int) -> str:
    """A dot in the arm's colour. Black is white in the dark."""
    shade = "var(--black)" if colour(place) == BLACK else colour(place)
    return f'<i class="swatch" style="background:{shade}"></i>'


def _line(text: Text) -> str:
    return "".join(_span(span) for span in text)


def _span(span: Span) -> str:
    match span:
        case Code():
            return f"<code>{escape(span.text)}</code>"
        case Strong():
            return f"<strong>{escape(span.text)}</strong>"
        case _:
            return escape(span)


def _code_block(block: CodeBlock) -> str:
    label = f' data-copied="{escape(block.copied_as, quote=True)}"' if block.copied_as else ""
    return f'<div class="code"{label}><pre><code>{escape(block.text)}</code></pre></div>'


def _tiles(block: Tiles) -> str:
    tiles = "".join(
        f"<div><dt>{escape(tile.title)}</dt><dd>{escape(tile.value)}</dd>"
        + (f'<dd class="note">{escape(tile.note)}</dd>' if tile.note else "")
        + "</div>"
        for tile in block.tiles
    )
    return f'<dl class="tiles {block.status}">{tiles}</dl>'


def _versus(block: Versus) -> str:
    """All arms, of which those that are not chosen are hidden: the script shows others."""
    selects = " and ".join(
        f'<select aria-label="{label} arm">'
        + "".join(
            f"<option{' selected' if arm == chosen else ''}>{escape(arm)}</option>" for arm in block.arms
        )
        + "</select>"
        for label, chosen in zip(("First", "Second"), block.chosen, strict=True)
    )
    head = "".join(f'<th scope="col"{_of_arm(arm, block.chosen)}>{escape(arm)}</th>' for arm in block.arms)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(title.text)}</th>'
        + "".join(
            f"<td{_of_arm(arm, block.chosen)}>{escape(cell.text)}</td>"
            for arm, cell in zip(block.arms, cells, strict=True)
        )
        + "</tr>"
        for title, *cells in block.table.rows
    )
    differences = "\n".join(
        f'<p class="difference{"" if (one, other) == block.chosen else " off"}" data-one="{escape(one, quote=True)}" '
        f'data-other="{escape(other, quote=True)}">{escape(one)} minus {escape(other)}: {escape(text)}.</p>'
        for one, other, text in block.differences
    )
    return (
        f'<div class="versus"><p class="choice">{selects} <label><input type="checkbox" checked> Only what differs</label></p>\n'
        f"{differences}\n<table>\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _of_arm(arm: str, shown: Sequence[str]) -> str:
    hidden = "" if arm in shown else ' class="off"'
    return f' data-arm="{escape(arm, quote=True)}"{hidden}'


def _table(table: Table, *, arms: Sequence[str]) -> str:
    head = "".join(_head_cell(column) for column in table.columns)
    rows = "\n".join(
        f"<tr{_arm_of(place, arms)}>"
        + "".join(
            f"<td{_class(column)}{_sort_value(cell.value)}>"
            f"{_swatch(place) if place is not None and column is table.columns[0] else ''}{escape(cell.text)}</td>"
            for column, cell in zip(table.columns, row, strict=True)
        )
        + "</tr>"
        for row in table.rows
        for place in (_place_of(row[0].text, arms),)
    )
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _place_of(text: str, arms: Sequence[str]) -> int | None:
    """The place of the arm that a row is about, `r=16` or `r=16 (reference)`; None if it is about no arm."""
    return next(
        (
            place
            for place, arm in enumerate(arms)
            if text == arm or text.startswith((f"{arm} (", f"{arm}, alone"))
        ),
        None,
    )


def _arm_of(place: int | None, arms: Sequence[str]) -> str:
    return "" if place is None else f' data-arm="{escape(arms[place], quote=True)}"'


def _head_cell(column: TableColumn) -> str:
    return f'<th scope="col"{_class(column)}>{escape(column.title)}</th>'


def _class(column: TableColumn) -> str:
    return ' class="number"' if column.numeric else ""


def _sort_value(value: float | None) -> str:
    return "" if value is None else f' data-value="{value!r}"'


def _figure(figure: Figure, num_panels: int) -> str:
    """Empty boxes that the script fills, one for each panel, in the order of the specifications."""
    boxes = "".join('<div class="chart"></div>' for _ in range(num_panels))
    label = escape(figure.alt, quote=True)
    wide = ' class="wide"' if num_panels > 1 else ""
    return (
        f'<figure{wide} role="group" aria-label="{label}"><h3>{escape(figure.title)}</h3>'
        f'<div class="panels">{boxes}</div><figcaption>{escape(figure.caption)}</figcaption></figure>'
    )


def _json(specs: Sequence[Spec]) -> str:
    """JSON that cannot close its script element: `<` only occurs inside strings, where it may be escaped."""
    return json.dumps(specs, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files("lorastudy.report").joinpath("assets", name).read_text(encoding="utf-8")
