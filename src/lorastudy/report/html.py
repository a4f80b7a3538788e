"""A document as one HTML file that needs no network: styles, script, chart data and the chart library inside.

Everything that came from a user is escaped. Should that ever be forgotten, the page's content security policy
runs no script but those whose hash it names, and forbids every request, so that the file cannot call home.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files

import vl_convert

from lorastudy.report.document import (
    Block,
    Bullets,
    Code,
    CodeBlock,
    Details,
    Figure,
    Heading,
    Paragraph,
    Span,
    Strong,
    Table,
    TableColumn,
    Text,
    unfolded,
)
from lorastudy.report.figures.interactive import Spec, vega_lite_specs, vega_lite_version

#: Vega evaluates its expressions as functions, hence 'unsafe-eval'; blob: and data: serve "save as PNG".
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src {hashes} 'unsafe-eval'; img-src data: blob:"
)


def render_html(blocks: Sequence[Block]) -> str:
    """The document as a page. The chart library is embedded once, and only if there is a chart."""
    figures = [block for block in unfolded(blocks) if isinstance(block, Figure)]
    charts = {figure.name: vega_lite_specs(figure) for figure in figures}
    specs = [spec for figure in figures for spec in charts[figure.name]]
    num_panels = {name: len(panels) for name, panels in charts.items()}
    body = "\n".join(_block(block, num_panels) for block in blocks)
    title = next((block.text for block in blocks if isinstance(block, Heading)), "LoRA study")
    scripts = [*([chart_library()] if specs else []), _asset("page.js")]
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
            f"<main>\n{body}\n</main>",
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


def _block(block: Block, num_panels: Mapping[str, int]) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Paragraph():
            return f"<p>{_line(block.text)}</p>"
        case Bullets():
            return "<ul>" + "".join(f"<li>{_line(item)}</li>" for item in block.items) + "</ul>"
        case Details() | Figure():
            return _box(block, num_panels)
        case CodeBlock():
            return f"<pre><code>{escape(block.text)}</code></pre>"
        case Table():
            return _table(block)


def _box(block: Details | Figure, num_panels: Mapping[str, int]) -> str:
    if isinstance(block, Figure):
        return _figure(block, num_panels[block.name])
    inner = "\n".join(_block(each, num_panels) for each in block.blocks)
    return f"<details><summary>{escape(block.summary)}</summary>\n{inner}\n</details>"


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


def _table(table: Table) -> str:
    head = "".join(_head_cell(column) for column in table.columns)
    rows = "\n".join(
        "<tr>"
        + "".join(
            f"<td{_class(column)}{_sort_value(cell.value)}>{escape(cell.text)}</td>"
            for column, cell in zip(table.columns, row, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


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
    return (
        f'<figure role="group" aria-label="{label}"><h3>{escape(figure.title)}</h3>{boxes}'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _json(specs: Sequence[Spec]) -> str:
    """JSON that cannot close its script element: `<` only occurs inside strings, where it may be escaped."""
    return json.dumps(specs, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files("lorastudy.report").joinpath("assets", name).read_text(encoding="utf-8")
