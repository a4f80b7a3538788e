"""An index made in one pass is the one that the obvious two passes make: the format first, then the rows."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorastudy.data import row_index
from lorastudy.data.formats import Columns, Format, format_of
from lorastudy.data.row_index import Index, ReadRow, index_rows, indexed_rows, read_row
from lorastudy.data.sources import Row
from lorastudy.data.values import parsed_line
from lorastudy.errors import DataError

TEXTS = st.sampled_from(["", " ", "Say hi", "say  HI", "ß and É", "x" * 70, "a\0b", "\ud83d", "0", "1"])
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXTS},
        optional={
            "weight": st.sampled_from([0, 1]),
            "name": TEXTS,
            "tool_calls": st.just([{"name": "f", "arguments": '{"a": "\\ud83d"}'}]),
        },
    ),
    max_size=4,
)
HISTORIES = st.one_of(st.lists(st.tuples(TEXTS, TEXTS).map(list), max_size=2), TURNS)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "instruction": TEXTS,
        "prompt": TEXTS,
        "output": TEXTS,
        "completion": TEXTS,
        "input": TEXTS,
        "system": TEXTS,
        "context": st.one_of(TEXTS, st.just(["no", "text"])),
        "history": HISTORIES,
        "choices": st.sampled_from([None, ["red", "blue"], {"label": ["A"], "text": ["red"]}, "red"]),
        "messages": TURNS,
        "text": TEXTS,
        "train": st.sampled_from([0, 1, 0.5]),
        "label": st.sampled_from([0, 1]),
        "rejected": TEXTS,
        "url": TEXTS,
    },
)
DATA = st.one_of(
    st.lists(ROWS, min_size=1, max_size=8),
    st.lists(st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS}), min_size=1, max_size=5).flatmap(
        lambda first: st.lists(ROWS, max_size=2).map(
            lambda rest: first + [{**first[0], **row} for row in rest]
        )
    ),
)


def two_passes(rows: Sequence[Row], *, leaves_out: bool) -> tuple[Format, Index]:
    fmt = format_of(Columns(rows))
    return fmt, index_rows(rows, fmt, leaves_out_empty_answers=leaves_out)


def one_pass(rows: Sequence[Row], *, leaves_out: bool) -> tuple[Format, Index]:
    found = indexed_rows(rows, format_of=format_of, leaves_out_empty_answers=leaves_out)
    return found.format, found.index


def outcome(way: Any, values: Sequence[dict[str, Any]], **options: Any) -> Any:
    rows = [Row(values=row, where=f"f:{number}") for number, row in enumerate(values, start=1)]
    try:
        fmt, index = way(rows, **options)
    except DataError as error:
        return str(error)
    return fmt, [bytes(column) for column in index.columns()], index.left_out


@given(DATA, st.booleans(), st.integers(1, 4))
def test_one_pass_finds_what_two_find(values: list[dict[str, Any]], leaves_out: bool, num_first: int):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(row_index, "_NUM_FIRST_ROWS", num_first)
        found = outcome(one_pass, values, leaves_out=leaves_out)
    assert found == outcome(two_passes, values, leaves_out=leaves_out)


@pytest.mark.parametrize(
    ("last", "format_or_error"),
    [
        ({"prompt": "q", "completion": "a", "system": "Be brief."}, "prompt_completion"),
        ({"prompt": "q", "completion": "a", "train": 0}, "prompt_completion"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "1 of"),
        ({"prompt": "q", "completion": "a", "rejected": "b"}, "preference training"),
        ({"prompt": "q"}, "has an empty answer"),
    ],
)
def test_a_last_row_that_changes_the_format_is_seen(last: dict[str, Any], format_or_error: str):
    values = [{"prompt": f"q{i}", "completion": "a"} for i in range(300)] + [last]
    found = outcome(one_pass, values, leaves_out=False)
    assert found == outcome(two_passes, values, leaves_out=False)
    if isinstance(found, str):
        assert format_or_error in found or "rows are not usable" in found
    else:
        assert found[0].name == format_or_error


def test_a_row_that_cannot_be_read_comes_before_what_is_wrong_with_others():
    def rows() -> Any:
        yield Row(values={"prompt": "q", "completion": ""}, where="f:1")
        raise DataError("f:2: not valid JSON")

    class Source:
        def __iter__(self) -> Any:
            return rows()

    with pytest.raises(DataError, match="not valid JSON"):
        indexed_rows(Source(), format_of=format_of)


def by_conversation(row: Row, fmt: Format) -> ReadRow:
    """`read_row` of an instruction by the conversation that it is."""
    turns, first = (conversation := fmt.conversation(row)).turns, conversation.answers[0]
    return ReadRow(
        texts=tuple(turn.plain for turn in turns),
        num_prompt_texts=first,
        asks_nothing=not any(turn.plain.strip() for turn in turns[:first] if turn.role != "system"),
    )


@given(
    st.fixed_dictionaries(
        {"prompt": TEXTS, "completion": TEXTS},
        optional={
            "system": TEXTS,
            "context": TEXTS,
            "history": HISTORIES,
            "choices": st.just(["red", "blue"]),
        },
    )
)
def test_an_instruction_is_read_as_the_conversation_that_it_is(values: dict[str, Any]):
    row = Row(values=values, where="f")
    fmt = format_of(Columns([row]))
    read = read_row(row, fmt)
    if read.problem is None:
        assert read == by_conversation(row, fmt)


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.sampled_from(["", " ", "\t", "\r"]),
)
def test_a_line_is_read_as_json_reads_it(value: Any, space: str):
    line = f"{space}{json.dumps(value)}{space}"
    assert parsed_line(line, "f:1") == json.loads(line)
