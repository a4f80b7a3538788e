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


def test_csv_takes_fields_longer_than_the_modules_default_limit(write):
    long = "x" * 200_000
    assert read_rows(write("a.csv", f"prompt,completion\n{long},y\n"))[0].values["prompt"] == long


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": [{"role": "user", "content": "x"}]}]), path)
    assert read_rows(str(path)) == [
        Row(values={"messages": [{"role": "user", "content": "x"}]}, where=f"{path}[0]")
    ]


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
