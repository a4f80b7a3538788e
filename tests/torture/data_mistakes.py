"""Data files as they come: exported, pasted, converted, cut short, renamed, and made by programs with bugs."""

import gzip
import io
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
Draw = random.Random

WORDS = (
    "red",
    "blue",
    "two",
    "three",
    "apples",
    "why",
    "because",
    "caf\u00e9",
    "\u4e2d\u6587",
    "it's",
    "a,b",
    "x;y",
    'say "hi"',
)
ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file's ending and content."""

    ending: str
    content: bytes


def mistaken(draw: Draw) -> DataFile:
    """A data file with none to three mistakes in its values and none to two in its bytes."""
    rows = _rows(draw)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        draw.choice(VALUE_MISTAKES)(rows, draw)
    ending = draw.choice(ENDINGS)
    content = written(rows, ending, draw)
    for _ in range(draw.choice((0, 0, 1, 1, 2))):
        content = draw.choice(BYTE_MISTAKES)(content, draw)
    if draw.random() < 0.05:
        ending = draw.choice((*ENDINGS, ".JSONL", ".xml", "", ".json.gz"))
    return DataFile(ending=ending, content=content)


def _rows(draw: Draw) -> Rows:
    make = draw.choice((_alpaca, _pair, _pair, _messages, _sharegpt, _plain))
    return [make(draw, number) for number in range(draw.randint(1, 8))]


def _words(draw: Draw) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, 5)))


def _alpaca(draw: Draw, number: int) -> dict[str, Any]:
    return {
        "instruction": f"{number} {_words(draw)}",
        "input": draw.choice(("", _words(draw))),
        "output": _words(draw),
    }


def _pair(draw: Draw, number: int) -> dict[str, Any]:
    return {"prompt": f"{number} {_words(draw)} ", "completion": _words(draw), "id": number}


def _plain(draw: Draw, number: int) -> dict[str, Any]:
    return {"text": f"{number} {_words(draw)}\n{_words(draw)}"}


def _messages(draw: Draw, number: int) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"{number} {_words(draw)}"},
        {"role": "assistant", "content": _words(draw)},
    ]
    return {"messages": turns * draw.choice((1, 1, 2))}


def _sharegpt(draw: Draw, number: int) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"{number} {_words(draw)}"}, {"from": "gpt", "value": _words(draw)}]
    return {"conversations": turns, "system": "Be brief."}


# --- mistakes in the values ---------------------------------------------------------------------------


def odd_value(rows: Rows, draw: Draw) -> None:
    """A value of another type, or a text with something in it that few texts have."""
    row = draw.choice(rows)
    row[draw.choice(list(row) or ["x"])] = draw.choice(
        (None, 1, -0.5, float("nan"), float("inf"), True, [], {}, ["a", "b"], {"a": "b"}, "", "  \n", 10**30, "\x00", "a\x00b",
         "\ud800", "\udfff", "\ufeffa", "\u202egnp", "\x1b[31m", "two\r\nlines", "old\rmac", "ls\u2028ps", "\N{GRINNING FACE}", "=1+1", "@SUM(A1)",
         "<script>x</script>", "{{ 7 * 7 }}", "'); DROP TABLE runs;--", "</s>", "<|endoftext|>", b"bytes", [[[["deep"]]]], "NaN")
    )  # fmt: skip


def odd_turn(rows: Rows, draw: Draw) -> None:
    """A turn by nobody, without text, with parts instead of text, or a list of turns that is none."""
    row = draw.choice(rows)
    key = next((key for key in ("messages", "conversations") if isinstance(row.get(key), list)), None)
    if key is None:
        return
    row[key] = draw.choice(
        (
            [], [1], "text", json.dumps(row[key]), None, row[key][:1], row[key][::-1], [{}], [{"role": "user"}],
            [{"role": "x" * 5000, "content": "y"}], [{"role": ["user"], "content": "y"}], [{"role": "user", "content": None}],
            [{"role": "user", "content": [{"type": "text", "text": "y"}]}, {"role": "assistant", "content": "z"}],
            [*row[key], {"role": "assistant", "content": ""}], [{"from": "human", "value": 1}, {"from": "gpt", "value": "z"}],
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{" * 3000}}]}],
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": "f"}],
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "9" * 5000}}]}],
            [{"from": "human", "value": "q"}, {"from": "function_call", "value": "[" * 3000}, {"from": "gpt", "value": "z"}],
        )
    )  # fmt: skip


def lost_value(rows: Rows, draw: Draw) -> None:
    """A row without one of its columns."""
    row = draw.choice(rows)
    row.pop(draw.choice(list(row) or ["x"]), None)


def renamed_column(rows: Rows, draw: Draw) -> None:
    """A column under another name, in all rows or in one."""
    some = rows if draw.random() < 0.6 else [draw.choice(rows)]
    key = draw.choice(list(rows[0]) or [""])
    other = draw.choice(
        (
            key.upper(),
            key.title(),
            f" {key} ",
            key + "s",
            key[:-1],
            key.replace("o", "\u043e"),
            "x",
            "",
            "a" * 5000,
            "input",
            "response",
            "query",
        )
    )
    for row in some:
        if key in row:
            row[other] = row.pop(key)


def further_column(rows: Rows, draw: Draw) -> None:
    """A column that no format has, or that two have."""
    name = draw.choice(
        (
            "Prompt",
            "PROMPT ",
            "text",
            "answer",
            "inputs",
            "tool",
            "source",
            "n",
            "question",
            "system",
            "b" * 3000,
        )
    )
    for row in rows:
        row[name] = draw.choice(("more", 3, None, {"a": [1]}))


def rows_twice(rows: Rows, draw: Draw) -> None:
    """Rows that are there already."""
    rows.extend([dict(draw.choice(rows)) for _ in range(draw.randint(1, 5))])


def huge_row(rows: Rows, draw: Draw) -> None:
    """Now and then a row of ten megabytes."""
    row = draw.choice(rows)
    length = 10_000_000 if draw.random() < 0.06 else 100_000
    row[draw.choice(list(row) or ["x"])] = draw.choice(("a", "b ", '"', "\u4e2d")) * length


def deep_row(rows: Rows, draw: Draw) -> None:
    """Lists in lists."""
    value: Any = "x"
    for _ in range(draw.choice((10, 60, 400))):
        value = [value]
    draw.choice(rows)[draw.choice(("extra", "prompt", "tools"))] = value


VALUE_MISTAKES: tuple[Callable[[Rows, Draw], None], ...] = (
    odd_value, odd_value, odd_value, odd_turn, odd_turn, lost_value, renamed_column, renamed_column, further_column,
    rows_twice, huge_row, deep_row,
)  # fmt: skip


# --- how rows become bytes ----------------------------------------------------------------------------


def written(rows: Rows, ending: str, draw: Draw) -> bytes:
    """The rows as a file of this ending; what the format cannot hold is written as text."""
    if ending == ".jsonl":
        return b"".join(_json(row) + b"\n" for row in rows)
    if ending == ".json":
        return _json(rows if draw.random() < 0.8 else {"data": rows})
    if ending in {".csv", ".tsv"}:
        return _separated(rows, draw.choice(",,;\t") if ending == ".csv" else "\t")
    if ending == ".parquet":
        return _parquet(rows, draw)
    return "\n\n".join(" ".join(map(str, row.values())) for row in rows).encode("utf-8", "surrogatepass")


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")


def _separated(rows: Rows, delimiter: str) -> bytes:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    quoted = (delimiter.join('"' + str(value).replace('"', '""') + '"' for value in line) for line in lines)
    return ("\n".join(quoted) + "\n").encode("utf-8", "backslashreplace")


def _parquet(rows: Rows, draw: Draw) -> bytes:
    columns = dict.fromkeys(column for row in rows for column in row)
    arrays = [_array([row.get(column) for row in rows]) for column in columns]
    names = [column.encode("utf-8", "replace").decode() for column in columns]
    if draw.random() < 0.05:
        names = [names[0]] * len(names)
    file = io.BytesIO()
    try:
        pq.write_table(
            pa.Table.from_arrays(arrays, names=names),
            file,
            compression=draw.choice(("snappy", "none", "zstd")),
        )
    except pa.ArrowNotImplementedError:  # an object without keys
        return b"PAR1"
    return file.getvalue()


def _array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError):
        return pa.array([str(value).encode("utf-8", "surrogatepass") for value in values])


# --- mistakes in the bytes ----------------------------------------------------------------------------


def _saved_as(codec: str) -> Callable[[bytes, Draw], bytes]:
    return lambda content, draw: content.decode("utf-8", "replace").encode(codec, "replace")


def cut_short(content: bytes, draw: Draw) -> bytes:
    """Only the beginning."""
    return content[: draw.randrange(len(content) + 1)]


def bytes_changed(content: bytes, draw: Draw) -> bytes:
    """A few bytes that are others now."""
    changed = bytearray(content or b"x")
    for _ in range(draw.choice((1, 1, 3))):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def bytes_put_in(content: bytes, draw: Draw) -> bytes:
    """Something pasted somewhere."""
    at = draw.choice((0, len(content), draw.randrange(len(content) + 1)))
    piece = draw.choice(
        (b"\x00", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\n", b"\r", b'"', b"'", b",", b"{", b"]", b"NaN", b"// comment\n", b"\\",
         b"[" * 50_000, b'{"a":' * 50_000, b"9" * 5000, b'{"prompt": "one", "prompt": "two", "completion": "x"}\n',
         b'[{"prompt": "one", "completion": "x", "completion": "y"}]\n', b'{"prompt": "\\ud800", "completion": "x"}\n', b"null\n", b"[]\n", b"1\n",
         b"prompt,completion\n", b'"open,')
    )  # fmt: skip
    return content[:at] + piece + content[at:]


def key_twice(content: bytes, draw: Draw) -> bytes:
    """The first key of a JSON object, twice."""
    return re.sub(rb'\{("\w+"): ', rb'{\1: "lost", \1: ', content, count=draw.choice((1, 0)))


BYTE_MISTAKES: tuple[Callable[[bytes, Draw], bytes], ...] = (
    *(_saved_as(codec) for codec in ("utf-16", "utf-16-le", "utf-8-sig", "latin-1", "cp1252")),
    cut_short,
    cut_short,
    bytes_changed,
    bytes_changed,
    bytes_put_in,
    bytes_put_in,
    bytes_put_in,
    key_twice,
    lambda content, draw: content.replace(b"\n", b"\r\n"),
    lambda content, draw: content.replace(b"\n", b"\r"),
    lambda content, draw: gzip.compress(content, mtime=0),
    lambda content, draw: b"",
    lambda content, draw: content.split(b"\n")[0],
    lambda content, draw: content * 2,
    lambda content, draw: content.replace(b'"', b"'"),
    lambda content, draw: content.replace(b"}\n", b"},\n"),
)  # fmt: skip
