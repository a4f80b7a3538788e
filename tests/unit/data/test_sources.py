import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorastudy.data.sources import Row, read_rows
from lorastudy.errors import DataError

TWO = [{"prompt": "a", "completion": "b"}, {"prompt": "c\u2028d", "completion": "é"}]


@pytest.mark.parametrize("content", [TWO, {"data": TWO}])
def test_json_list_or_data_key(write, content):
    path = write("rows.json", content)
    assert read_rows(path) == [Row(values=TWO[i], where=f"{path}[{i}]") for i in (0, 1)]


def test_jsonl_counts_blank_lines_and_keeps_unicode_line_separators(write):
    path = write("rows.jsonl", '{"prompt": "a"}\n\n{"prompt": "c\u2028d"}\n')
    assert read_rows(path) == [
        Row(values={"prompt": "a"}, where=f"{path}:1"),
        Row(values={"prompt": "c\u2028d"}, where=f"{path}:3"),
    ]


def test_jsonl_under_the_name_of_json_is_read(write):
    assert len(read_rows(write("rows.json", '{"a": "1"}\n{"a": "2"}\n'))) == 2


def test_byte_order_mark_and_crlf_are_tolerated(write):
    for name, content in (
        ("a.csv", b"\xef\xbb\xbfprompt,completion\r\nx,y\r\n"),
        ("a.jsonl", b'\xef\xbb\xbf{"prompt": "x", "completion": "y"}\r\n'),
    ):
        assert read_rows(write(name, content))[0].values == {"prompt": "x", "completion": "y"}


def test_csv_names_the_line_on_which_a_row_begins(write):
    path = write("a.csv", 'question,answer\n"two\nlines",1\nthree,"say ""x"", y"\n')
    assert read_rows(path) == [
        Row(values={"question": "two\nlines", "answer": "1"}, where=f"{path}:2"),
        Row(values={"question": "three", "answer": 'say "x", y'}, where=f"{path}:4"),
    ]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_of_spreadsheets_with_another_delimiter(write, delimiter):
    path = write("a.csv", f"question{delimiter}answer\nx, y{delimiter}z\n")
    assert read_rows(path)[0].values == {"question": "x, y", "answer": "z"}


def test_tsv_is_separated_by_tabs_whatever_else_its_header_holds(write):
    rows = read_rows(write("a.tsv", "question, or task\tanswer\nx, y\tz\n"))
    assert rows[0].values == {"question, or task": "x, y", "answer": "z"}


def test_a_csv_of_old_macintoshes_is_read(write):
    path = write("a.csv", b"question;answer\rx, y, z;1\r")
    assert read_rows(path)[0].values == {"question": "x, y, z", "answer": "1"}


@pytest.mark.parametrize("inner", ["\n", "\r\n", "\r", "\r\n\r\n", "\n\r"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_line_breaks_inside_a_cell_stay_whatever_ends_the_lines(write, name, line_end, inner):
    delimiter = "\t" if "tsv" in name else ","
    answer = f"one{inner}two{inner}"
    lines = [("prompt", "completion"), ("x", f'"{answer}"'), (f'"{answer}"', "y")]
    content = "".join(delimiter.join(cells) + line_end for cells in lines).encode()
    path = write(name, gzip.compress(content) if name.endswith(".gz") else content)
    rows = [row.values for row in read_rows(path)]
    assert rows == [{"prompt": "x", "completion": answer}, {"prompt": answer, "completion": "y"}]


def test_csv_takes_fields_longer_than_the_modules_default_limit(write):
    long = "x" * 200_000
    assert read_rows(write("a.csv", f"prompt,completion\n{long},y\n"))[0].values["prompt"] == long


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": [{"role": "user", "content": "x"}]}]), path)
    assert read_rows(str(path)) == [
        Row(values={"messages": [{"role": "user", "content": "x"}]}, where=f"{path}[0]")
    ]


def test_parquet_with_a_column_twice(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    with pytest.raises(DataError, match="the column 'text' appears twice; keep one"):
        read_rows(str(path))


def test_parquet_with_text_that_is_not_utf_8_names_the_row(tmp_path):
    path = tmp_path / "rows.parquet"
    text = pa.Array.from_buffers(pa.utf8(), 2, pa.array([b"fine", b"caf\xe9"], pa.binary()).buffers())
    pq.write_table(pa.Table.from_arrays([text], names=["text"]), path)
    with pytest.raises(DataError, match=r"rows\.parquet\[1\]: cannot be read: 'utf-8' codec"):
        read_rows(str(path))


def test_parquet_that_was_cut_short(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(TWO), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"rows\.parquet: not a readable Parquet file"):
        read_rows(str(path))


def test_a_name_too_long_for_the_system(tmp_path):
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        read_rows(str(tmp_path / ("a" * 300 + ".csv")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(write):
    path = write("a.csv", "prompt,completion\nx,y\n")
    Path(path).chmod(0)
    with pytest.raises(DataError, match=r"a\.csv: cannot be read: Permission denied"):
        read_rows(path)


def test_text_gives_paragraphs(write):
    path = write("a.txt", " \n = Title = \n \nfirst\nsecond\n\n\nthird")
    assert [(row.values["text"], row.where) for row in read_rows(path)] == [
        ("= Title =", f"{path}:2"),
        ("first\nsecond", f"{path}:4"),
        ("third", f"{path}:8"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[]", "holds no rows"),
        ("a.json", "", "holds no rows"),
        ("a.csv", "prompt,completion\n", "holds no rows"),
        ("a.txt", "\n \n", "holds no rows"),
        ("a.xml", "<a/>", r"cannot read '\.xml'; known endings: \.json, \.jsonl"),
        ("a.json", '[{"a": 1},\n {"a" 2}]', r"a\.json:2:7: not valid JSON"),
        ("a.json", '{"rows": 1}', "expected a list of objects"),
        ("a.json", "[1]", r"a\.json\[0\]: expected an object .* found int"),
        ("a.jsonl", '{"a": 1}\n{"a": }\n', r"a\.jsonl:2:7: not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl:2: byte 0xff is not UTF-8"),
        ("a.csv", "prompt,prompt\nx,y\n", r"a\.csv:1: the first line must name every column"),
        ("a.csv", "prompt,completion\nx,y,z\n", r"a\.csv:2: 3 fields where the first line names 2"),
        ("a.csv", 'prompt,completion\nx,y\n"open,z\n', r"a\.csv:3: not valid CSV"),
        ("a.parquet", "no", "not a readable Parquet file"),
        ("a.tsv", 'prompt\tcompletion\n"open\tz\n', r"a\.tsv:2: not valid TSV"),
        ("a.csv", "a,b\n".encode("utf-16"), r"a\.csv:1: is UTF-16 text; save the file as UTF-8"),
        ("a.csv", b"prompt,completion\nx,y\nx,\0\n", r"a\.csv:3: holds a NUL"),
        ("a.jsonl", "a\n".encode("utf-16-le"), r"a\.jsonl:1: holds a NUL"),
        (
            "a.json",
            '[{"a": 1},\n {"a": 1, "b": 2, "a": 3}]',
            r"a\.json\[1\]: the key 'a' appears twice in one object",
        ),
        ("a.json", '{"data": [{"a": {"b": 1, "b": 2}}]}', r"a\.json\[0\]: the key 'b' appears twice"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "a": 1}', r"a\.jsonl:2: the key 'a' appears twice"),
        ("a.json", f'[{{"a": 1}}, {{"a": {"[" * 9999}{"]" * 9999}}}]', r"a\.json\[1\]: is nested too deep"),
        ("a.jsonl", f'{{"a": {"[" * 9999}{"]" * 9999}}}', r"a\.jsonl:1: is nested too deep"),
        ("a.jsonl", f'{{"a": {"[" * 60}{"]" * 60}}}', r"a\.jsonl:1: is nested more than 50 levels deep"),
        ("a.jsonl", f'{{"a": {"9" * 5000}}}', r"a\.jsonl:1: holds a number with thousands of digits"),
        (
            "a.json",
            f'[{{"a": 1}}, {{"a": {"9" * 5000}}}]',
            r"a\.json\[1\]: holds a number with thousands of digits",
        ),
        ("a.csv", "x" * 9000 + ",\n", r"a\.csv:1: .{,200}$"),
    ],
)
def test_what_cannot_be_read_is_named(write, name, content, message):
    with pytest.raises(DataError, match=message):
        read_rows(write(name, content))


def test_a_missing_file_says_how_to_make_it_and_what_was_meant(write, tmp_path):
    write("alpaca_500_sample.jsonl", "x")
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path / "alpaca_50_sample.jsonl"))
    assert "lorastudy prepare --dataset alpaca --num-samples 50" in str(caught.value)
    assert f"Did you mean {tmp_path / 'alpaca_500_sample.jsonl'}?" in str(caught.value)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_rows(str(tmp_path))


def test_lab_rows(monkeypatch):
    from lorastudy import lab

    monkeypatch.setattr(lab, "rows", lambda name: [{"prompt": name, "completion": "x"}])
    assert read_rows("lab:facts") == [
        Row(values={"prompt": "facts", "completion": "x"}, where="lab:facts[0]")
    ]
