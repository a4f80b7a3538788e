"""Rows as the base model will see them: computing and showing a preview."""

import dataclasses
import json
import sys
from collections.abc import Iterable

from rich.text import Text

from lorastudy.cli.console import BEGIN, END, PlainConsole
from lorastudy.cli.terminal import runs_own_code, say, shown
from lorastudy.data.formats import listed, shortened
from lorastudy.executors.process import JobWorker
from lorastudy.planning.preview import Preview, PreviewedRow, TextPiece, preview
from lorastudy.protocol.jobs import PreviewQuestion
from lorastudy.report.numbers import count, plural
from lorastudy.report.rows import laid_out
from lorastudy.suite.base_model import check_base_model

CUT = "[cut]"
_NUM_CUT_CHARACTERS = 200


def previewed(question: PreviewQuestion) -> Preview:
    """The rows as a worker reads them. The worker takes seconds to start.

    Raises:
        StudyError: the error that a run would give for these rows.
    """
    base_model = question.settings["base_model"]
    check_base_model(base_model)
    if question.settings["trust_remote_code"]:
        say(f"note: {runs_own_code(base_model)}", file=sys.stderr)
    say(f"reading the rows with the tokenizer of {base_model} ...", file=sys.stderr)

    with JobWorker() as worker:
        return preview(question, worker.do)


def preview_as_json(found: Preview) -> str:
    """The whole preview as JSON, ids and labels included."""
    return json.dumps(dataclasses.asdict(found), indent=1)


def show_preview(console: PlainConsole, found: Preview, *, of: str) -> None:
    """Print how all rows were read, and then some of them. `of` names the rows."""
    console.print(f"{of}: {_counts(found)}.{laid_out(found.summary)}")
    for note in found.notes:
        console.print(f"Note: {note}")
    console.print(
        f"The part between {BEGIN} and {END} is trained. Special tokens appear as the tokenizer writes them."
    )
    usable = [row for row in found.rows if not row.is_refused]
    for number, row in enumerate(usable, start=1):
        _show_row(console, row, title=f"{number}. {row.where}: {_length(row, found.max_seq_length)}")
    for row in found.rows:
        if row.is_refused:
            title = (
                f"refused: {row.where}: only the first {found.max_seq_length} of its "
                f"{plural(row.num_whole_tokens, 'token')} are kept, and its answer begins after them"
            )
            _show_row(console, row, title=title)


def _counts(found: Preview) -> str:
    summary = found.summary
    parts = [
        f"{plural(summary.num_rows, 'row')} read ({summary.format})",
        plural(summary.num_tokens, "token"),
        f"{count(summary.num_completion_tokens)} of them trained",
    ]
    if summary.num_truncated_rows:
        parts.append(f"{count(summary.num_truncated_rows)} cut at {found.max_seq_length} tokens")
    if summary.num_refused_rows:
        parts.append(f"{count(summary.num_refused_rows)} more refused, since nothing of the answer is left")
    if summary.num_unread_rows:
        parts.append(f"a fixed sample, with {count(summary.num_unread_rows)} more rows that are not counted")
    return ", ".join(parts)


def _length(row: PreviewedRow, max_seq_length: int) -> str:
    num_trained = row.num_trained_tokens
    if not row.is_cut:
        return f"{plural(len(row.input_ids), 'token')}, {count(num_trained)} trained"
    return (
        f"{max_seq_length} of {count(row.num_whole_tokens)} tokens, {count(num_trained)} trained of "
        f"{count(row.num_whole_trained_tokens)}; the rest is cut off"
    )


def _show_row(console: PlainConsole, row: PreviewedRow, *, title: str) -> None:
    console.print()
    console.print(title, style="bold")
    if row.fell_back:
        console.print("Its functions are given to the chat template as text.")
    if row.unseen:
        console.print(
            f"Nothing of these fields is shown to the model: {listed(list(map(shortened, row.unseen)))}"
        )
    console.print(_marked(row.pieces))


def _marked(pieces: Iterable[TextPiece]) -> Text:
    """The text with marks and colours. Of a part that is cut off, only the beginning."""
    text = Text()
    rest = ""
    is_open = False
    for piece in pieces:
        if piece.is_cut_off:
            rest += piece.text
            continue
        if piece.is_trained != is_open:
            is_open = piece.is_trained
            text.append(BEGIN if is_open else END, style="bold green")
        text.append(shown(piece.text), style=_style(piece))
    if is_open:
        text.append(END, style="bold green")
    if rest:
        more = len(rest) - _NUM_CUT_CHARACTERS
        ending = f" [... {count(more)} more characters]" if more > 0 else ""
        text.append(f"{CUT}{shown(rest[:_NUM_CUT_CHARACTERS])}{ending}", style="strike dim")
    return text


def _style(piece: TextPiece) -> str:
    if piece.is_trained:
        return "bold green reverse" if piece.is_special else "bold green"
    return "cyan" if piece.is_special else "dim"
