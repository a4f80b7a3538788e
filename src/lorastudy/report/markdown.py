"""A document as GitHub-flavoured Markdown. Whatever came from a user stays text: nothing in it is markup."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from lorastudy.report.document import (
    Block,
    Bullets,
    Cell,
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
    Text,
    Tiles,
    Versus,
    unfolded_in_markdown,
)

#: Only what GitHub would take for markup, so that the file stays pleasant to read as it is: `<` before a tag,
#: `&` before an entity, `]` before the target of a link, `_` at the edge of a word.
_MARKUP = re.compile(
    r"[\\`*|~$]|<(?=[A-Za-z/!?]|$)|&(?=#?\w+;)|\](?=[(\[:])|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"
)
#: What would begin a heading, a list or a quotation at the start of a line.
_LINE_START = re.compile(r"^(?:([#+>-])|(\d+)([.)]))")
_ENTITIES = {"<": "&lt;", "&": "&amp;"}


def render_markdown(blocks: Sequence[Block], *, output: Path, plots: Path) -> str:
    """The document as Markdown; images are linked relative to the folder of `output`."""
    link = quote(Path(os.path.relpath(plots.resolve(), output.resolve().parent)).as_posix())
    return "\n\n".join(_block(block, link) for block in unfolded_in_markdown(blocks)) + "\n"


def escape(text: str) -> str:
    """Plain text as Markdown that shows just this text, on one line."""
    flat = re.sub(r"\s+", " ", text)
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), flat)


def _block(block: Block, link: str) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {escape(block.text)}"
        case Paragraph():
            return _line(block.text)
        case Bullets():
            return "\n".join(f"- {_line(item)}" for item in block.items)
        case CodeBlock():
            return _fenced(block)
        case Table():
            return _table(block)
        case Figure():
            return _figure(block, link)
        case Details() | Shown() | StudyPart() | Tiles() | Versus():  # unfolded before
            raise AssertionError(block)


def _line(text: Text) -> str:
    line = "".join(_span(span) for span in text)
    return _LINE_START.sub(lambda match: f"\\{match[1]}" if match[1] else f"{match[2]}\\{match[3]}", line)


def _span(span: Span) -> str:
    match span:
        case Code():
            return _code(span.text)
        case Strong():
            return f"**{escape(span.text)}**"
        case _:
            return escape(span)


def _code(text: str) -> str:
    flat = " ".join(text.split())
    fence = "`" * (1 + _longest_run(flat))
    padding = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{fence}{padding}{flat}{padding}{fence}"


def _fenced(block: CodeBlock) -> str:
    fence = "`" * max(3, 1 + _longest_run(block.text))
    return f"{fence}{block.language}\n{block.text}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _table(table: Table) -> str:
    titles = _row([Cell(column.title) for column in table.columns])
    rule = "|" + "|".join("---:" if column.numeric else ":---" for column in table.columns) + "|"
    return "\n".join([titles, rule, *(_row(row) for row in table.rows)])


def _row(cells: Sequence[Cell]) -> str:
    return "| " + " | ".join(escape(cell.text) for cell in cells) + " |"


def _figure(figure: Figure, link: str) -> str:
    image = f"![{_alt(figure.alt)}]({link}/{quote(figure.name)}.png)"
    return f"{image}\n\n*{escape(figure.title)}.* {escape(figure.caption)}"


def _alt(text: str) -> str:
    """The text between the brackets of an image: every bracket in it is escaped, and none twice."""
    return re.sub(
        r"\\.|[\[\]]", lambda match: f"\\{match[0]}" if len(match[0]) == 1 else match[0], escape(text)
    )
