"""The same rows are the same tokens from every container: what a container adds is no content."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorastudy.data import formats, values
from lorastudy.data.load import load_examples, train_and_eval
from lorastudy.data.prompts import ChatTemplate, PromptStyle
from lorastudy.errors import DataError
from lorastudy.suite.settings import Settings

Rows = Sequence[Mapping[str, Any]]
#: Words that a careless reader takes for something else; quotes, delimiters and line breaks.
TEXTS = st.sampled_from(
    ["one", "two words", "a,b", "x;y", 'say "hi"', "it's", "l1\nl2", "w1\r\nw2", "m1\rm2\r", "tab\there", "[1, 2]", "{'a'}", "null", "NaN", "None", "12", "007", "1.50",
     "true", "-", "é\u4e2d", " padded ", "=1+1", "x\u2028y"]
)  # fmt: skip
OPTIONAL = st.one_of(st.just(None), TEXTS)


def _renders_all(messages: Any, /, *, tools: Any, add_generation_prompt: bool) -> str:
    parts = [json.dumps(tools, ensure_ascii=False, sort_keys=True)] if tools else []
    for message in messages:
        fields = {key: value for key, value in message.items() if key != "role"}
        parts.append(f"<|{message['role']}|>{json.dumps(fields, ensure_ascii=False, sort_keys=True)}\n")
    return "".join(parts) + ("<|assistant|>" if add_generation_prompt else "")


TEMPLATE = ChatTemplate(render=_renders_all)


def _without_none(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


@st.composite
def pair_rows(draw: st.DrawFn) -> Rows:
    row = st.fixed_dictionaries(
        {
            "question": TEXTS,
            "answer": TEXTS,
            "context": OPTIONAL,
            "system": OPTIONAL,
            "choices": st.one_of(st.none(), st.lists(TEXTS, min_size=1, max_size=3)),
            "history": st.one_of(st.none(), st.lists(st.tuples(TEXTS, TEXTS).map(list), min_size=1, max_size=2)),
            "note": OPTIONAL,
        }
    )  # fmt: skip
    first = {"question": "q", "answer": "a", "choices": ["a"], "history": [["q", "a"]]}
    return [first, *map(_without_none, draw(st.lists(row, min_size=1, max_size=3)))]


@st.composite
def message_rows(draw: st.DrawFn) -> Rows:
    user = st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS, "name": OPTIONAL})
    answer = st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": TEXTS, "reasoning_content": OPTIONAL, "weight": st.sampled_from([None, 1, 0])}
    )  # fmt: skip
    call = {
        "role": "assistant",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": "1", "y": "2"}}}
        ],
    }
    short = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "g", "arguments": {"x": "1"}}}]}  # fmt: skip
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        turns = [draw(user), draw(answer)]
        if draw(st.booleans()):
            turns += [
                draw(user),
                draw(st.sampled_from([call, short])),
                {"role": "tool", "content": draw(TEXTS), "tool_call_id": "c1"},
            ]
        turns += [draw(user), {"role": "assistant", "content": draw(TEXTS)}]
        tools = draw(
            st.sampled_from([None, [{"type": "function", "function": {"name": "f", "description": "d"}}]])
        )
        rows.append(_without_none({"messages": list(map(_without_none, turns)), "tools": tools}))
    return rows


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def write_json(rows: Rows, path: Path) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_jsonl(rows: Rows, path: Path) -> None:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


def write_separated(rows: Rows, path: Path) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",", quoting=csv.QUOTE_ALL)
        writer.writerow(columns)
        writer.writerows([[_cell(row.get(column)) for column in columns] for row in rows])


def write_pandas_csv(rows: Rows, path: Path) -> None:
    pd.DataFrame(list(rows)).to_csv(path, index=False)


def write_arrow(rows: Rows, path: Path) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = {column: [row.get(column) for row in rows] for column in columns}
    pq.write_table(pa.table(table), path)


def write_pandas_parquet(rows: Rows, path: Path) -> None:
    pd.DataFrame(list(rows)).to_parquet(path, index=False)


WRITERS = {
    "a.json": write_json,
    "a.jsonl": write_jsonl,
    "a.csv": write_separated,
    "a.tsv": write_separated,
    "b.csv": write_pandas_csv,
    "a.parquet": write_arrow,
    "b.parquet": write_pandas_parquet,
}


def read(rows: Rows, name: str, folder: Path) -> list[Any]:
    """What a study makes of the rows: texts, masks and hashes, under a template and without one; and what it says of columns."""
    path = folder / name
    WRITERS[name](rows, path)
    found: list[Any] = []
    for template in (None, TEMPLATE):
        try:
            fmt, examples = load_examples(str(path), style=PromptStyle(chat_template=template))
        except DataError as error:
            found.append(re.sub(rf"{path}(:\d+|\[\d+\])?", "FILE", str(error)))
            continue
        found += [(example.segments, example.content_hash, example.prompt_hash) for example in examples]
        found += [fmt.notes]
    return found


def differing(rows: Rows, folder: Path) -> list[str]:
    expected = read(rows, "a.json", folder)
    return [name for name in WRITERS if read(rows, name, folder) != expected]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("containers")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.one_of(pair_rows(), message_rows()))
def test_the_same_rows_are_the_same_tokens_from_every_container(rows: Rows, folder: Path) -> None:
    assert differing(rows, folder) == []


SPARSE: Rows = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "r"}]},
    {"messages": [{"role": "user", "content": "p", "name": "Ann"}, {"role": "assistant", "content": "b", "weight": 1}]},
]  # fmt: skip
PAIRS: Rows = [{"question": "q", "answer": "a", "context": "c"}, {"question": "p", "answer": "12"}]


def test_a_null_taken_for_content_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert differing(SPARSE, folder) == []
    monkeypatch.setattr(values, "without_nulls", lambda value: value)
    assert {"a.parquet", "b.parquet"} <= set(differing(SPARSE, folder))


def test_an_empty_cell_taken_for_content_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert differing(PAIRS, folder) == []
    monkeypatch.setattr(formats, "text_of", str)
    assert "a.csv" in differing(PAIRS, folder)


@pytest.mark.parametrize("answers", [[1, 2, 3], [0.5, 1.25, 3e-05], ["1", "2", "3"]])
def test_numbers_are_the_texts_that_csv_has_for_them(answers: list[Any], folder: Path) -> None:
    assert (
        differing([{"question": f"q{i} ", "answer": answer} for i, answer in enumerate(answers)], folder)
        == []
    )


def test_an_empty_answer_is_one_wherever_it_comes_from(folder: Path) -> None:
    rows = [{"question": f"q{i} ", "answer": "a" if i else None} for i in range(4)]
    for name, write in WRITERS.items():
        write(rows, folder / name)
        with pytest.raises(DataError, match=r"1 of 4 rows .*\n.*has an empty answer"):
            load_examples(str(folder / name))


def test_splits_are_the_same_from_every_container(folder: Path) -> None:
    rows = [{"question": f"q{i} ", "answer": "a", "context": "c" if i % 2 else None} for i in range(60)]
    held_out = set()
    for name, write in WRITERS.items():
        write(rows, folder / name)
        data = train_and_eval(Settings(dataset_path=str(folder / name), eval_fraction=0.2))
        held_out.add(tuple(example.row.values["question"] for example in data.held_out))
    assert len(held_out) == 1


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (np.array(["a", None], dtype=object), ["a", None]),
        (np.float64("nan"), None),
        ({"role": np.array(["user"]), "content": np.array(["q"])}, [{"role": "user", "content": "q"}]),
        ({"role": ["user", "assistant"], "content": ["q", None]}, [{"role": "user", "content": "q"}, {"role": "assistant"}]),
        ("[{'role': 'user', 'content': None}]", [{"role": "user"}]),
        ('[{"role": "user", "n": null}]', [{"role": "user"}]),
        ("[not a list", "[not a list"),
        ("[" * 5000, "[" * 5000),
        ("  ", None),
        ([], None),
    ],
)  # fmt: skip
def test_structures_of_cells(cell: Any, expected: Any) -> None:
    assert values.records_of(cell) == expected


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("x", "x"), ("", ""), (None, ""), (float("nan"), ""), (np.int64(3), "3"), (4.5, "4.5"), (True, None), (float("inf"), None), ([], None)],
)  # fmt: skip
def test_texts_of_cells(cell: Any, expected: str | None) -> None:
    assert values.text_of(cell) == expected
