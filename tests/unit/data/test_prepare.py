import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from lorastudy.cli import data as command
from lorastudy.data.load import load_examples, train_and_eval
from lorastudy.data.prepare import Wanted, prepare
from lorastudy.data.sources import Row, read_rows
from lorastudy.errors import DataError
from lorastudy.suite.settings import Settings
from tests.formatted import detect


def alpaca(count):
    return [{"instruction": f"do {i}", "input": "", "output": f"done {i}"} for i in range(count)]


def run(rows, tmp_path, **options):
    rows = [Row(values=row, where=f"f:{i}") for i, row in enumerate(rows, start=1)]
    options = {"datasets": ("alpaca",), "output_dir": tmp_path / "data"} | options
    return prepare(rows, wanted=Wanted(**options))


def written(prepared):
    return {file.path.name: file.num_rows for file in prepared.files}


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def answers(prepared):
    """Of the rows that were taken."""
    return {row["output"] for row in lines(prepared.files[0].path)}


def test_names_of_the_specification(tmp_path):
    assert written(run(alpaca(30), tmp_path)) == {"alpaca.jsonl": 30}
    assert written(run(alpaca(30), tmp_path, num_samples=10)) == {"alpaca_10_sample.jsonl": 10}
    split = written(run(alpaca(30), tmp_path, num_samples=20, train_share=0.7))
    assert set(split) == {"alpaca_20_sample.jsonl", "alpaca_train.jsonl", "alpaca_test.jsonl"}
    assert split["alpaca_train.jsonl"] + split["alpaca_test.jsonl"] == 20
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted({"alpaca.jsonl", "alpaca_10_sample.jsonl", *split})  # fmt: skip


def test_a_part_can_be_cut_again_by_a_suite(tmp_path):
    """With a suite's own draw nothing of this file would be below the share that was cut off before."""
    run(alpaca(400), tmp_path, train_share=0.8)
    train = tmp_path / "data/alpaca_train.jsonl"
    for share in (0.1, 0.2, 0.4):
        data = train_and_eval(Settings(dataset_path=str(train), eval_fraction=share))
        num_rows = len(lines(train))
        # Four standard errors of so many draws.
        assert len(data.held_out) == pytest.approx(
            share * num_rows, abs=4 * (num_rows * share * (1 - share)) ** 0.5
        )
        assert len(data.train) + len(data.held_out) == num_rows


def asking(num_prompts, num_answers):
    return [
        {"prompt": f"Town {town} lies where?", "completion": f"Land {town}, I say {number} times."}
        for town in range(num_prompts)
        for number in range(num_answers)
    ]


def test_no_prompt_stands_in_two_files(tmp_path):
    prepared = run(asking(40, 4), tmp_path, train_share=0.6, validation_share=0.2)
    prompts = [{row["prompt"] for row in lines(file.path)} for file in prepared.files[1:]]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 40
    assert prepared.split_by == "prompt"


def test_few_prompts_are_split_by_row_and_the_command_says_so(tmp_path, write):
    path = write("mine.jsonl", asking(3, 20))
    result = invoke("--dataset", path, "--train-test-split", 0.5, "--output-dir", tmp_path / "out")
    assert "Note: there are fewer than ten prompts" in result.output
    assert len(lines(tmp_path / "out/mine_train.jsonl")) in range(
        15, 46
    )  # 30, give or take 4 standard deviations


def test_several_files_are_one_data_set(tmp_path, write):
    first, second = write("a.jsonl", asking(2, 1)), write("b.csv", "prompt,completion\nx?,y\n")
    result = invoke("--dataset", first, second, "--output-dir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [row["prompt"] for row in lines(tmp_path / "out/a.jsonl")] == [
        "Town 0 lies where?",
        "Town 1 lies where?",
        "x?",
    ]


def test_three_files_are_parts_of_the_whole(tmp_path):
    prepared = run(alpaca(200), tmp_path, train_share=0.7, validation_share=0.1)
    assert list(written(prepared)) == [
        f"alpaca{part}.jsonl" for part in ("", "_train", "_validation", "_test")
    ]
    parts = [lines(tmp_path / f"data/alpaca_{part}.jsonl") for part in ("train", "validation", "test")]
    together = [row["output"] for part in parts for row in part]
    assert sorted(together) == sorted(row["output"] for row in lines(tmp_path / "data/alpaca.jsonl"))
    assert [len(part) for part in parts] == pytest.approx([140, 20, 40], abs=20)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"validation_share": 0.1}, "--validation-split: goes with --train-test-split"),
        (
            {"train_share": 0.8, "validation_share": 0.2},
            "--validation-split 0.2: give a share between 0 and the 0.2",
        ),
        ({"train_share": 0.8, "validation_share": -0.1}, "--validation-split -0.1"),
    ],
)
def test_a_validation_share_must_leave_test_rows(tmp_path, shares, message):
    with pytest.raises(DataError, match=message):
        run(alpaca(30), tmp_path, **shares)


def test_a_sample_follows_content_and_seed_and_is_split_in_proportion(tmp_path):
    one = run(alpaca(400), tmp_path, num_samples=100, train_share=0.5)
    assert 30 <= written(one)["alpaca_test.jsonl"] <= 70  # 50 plus or minus 4 standard deviations of 5
    taken = answers(one)
    assert answers(run(list(reversed(alpaca(400))), tmp_path, num_samples=100)) == taken
    assert answers(run(alpaca(400), tmp_path, num_samples=100, seed=1)) != taken


def test_duplicates_and_empty_answers_are_counted(tmp_path):
    empty = {"instruction": "x", "input": "", "output": " "}
    prepared = run([*alpaca(3), {**alpaca(1)[0], "output": "DONE 0"}, empty], tmp_path)
    counts = (prepared.num_rows, prepared.num_empty_answers, prepared.num_duplicates, prepared.num_taken)
    assert counts == (5, 1, 1, 4)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"instruction": "i", "output": "ö", "extra": 1}, {"instruction": "i", "input": "", "output": "ö"}),
        ({"Question": "q", "Answer": "a"}, {"prompt": "q", "completion": "a"}),
        ({"text": "t", "url": "u"}, {"text": "t"}),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 1}, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
    ],
)  # fmt: skip
def test_canonical_columns_that_are_recognised_again(tmp_path, row, columns):
    prepared = run([row], tmp_path)
    assert lines(prepared.files[0].path) == [columns]
    again = read_rows(str(prepared.files[0].path))
    assert detect(again).name == prepared.example.format.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "--num-samples 0: give a number of rows, or -1"),
        ({"train_share": 1.0}, "--train-test-split 1: give the share of training rows"),
        ({"train_share": 0.999999}, "left one side empty"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        run(alpaca(3), tmp_path, **options)
    assert not (tmp_path / "data").exists()


def test_unusable_rows_are_named(tmp_path):
    with pytest.raises(DataError, match="f:2: 'output' is list, not text"):
        run([*alpaca(1), {"instruction": "x", "output": ["y"]}], tmp_path)
    with pytest.raises(DataError, match="every row has an empty answer"):
        run([{"text": " "}], tmp_path)


def test_the_file_that_is_read_is_never_written(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text("kept")
    options = {"datasets": (str(source),), "output_dir": tmp_path}
    with pytest.raises(DataError, match="is the file that is read; choose another --output-dir"):
        run(alpaca(20), tmp_path, **options)
    split = run(alpaca(20), tmp_path, train_share=0.5, **options)
    assert set(written(split)) == {"rows_train.jsonl", "rows_test.jsonl"}
    assert source.read_text() == "kept"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        run(alpaca(1), tmp_path)


def invoke(*arguments):
    app = typer.Typer()
    app.command()(command.prepare)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_shows_counts_files_and_one_marked_example(tmp_path, write):
    path = write("mine.csv", "Question,Answer\nTwo?,2\nThree [x]?,3\nthree [x]?,3\nFour?,\n")
    result = invoke("--dataset", path, "--num-samples", 5, "--output-dir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for text in (
        "Format: prompt_completion (prompt = Question, completion = Answer)",
        "Rows: 4 read, 3 taken",
        "Left out: 1 with an empty answer",
        "Note: fewer rows than --num-samples 5: there are no more",
        "Duplicates: 1 ",
        f"Wrote {tmp_path / 'out' / 'mine_5_sample.jsonl'}: 3 rows",
        f"One example ({path}:2)",
        "Two?[trained]2[/trained]",
        r"nothing separates prompt and answer; --separator ' ' or --separator '\n' adds a separator",
    ):
        assert text in result.output
    assert "\x1b" not in result.output


def test_the_command_takes_column_names(tmp_path, write):
    path = write("mine.jsonl", [{"foo": "a [b] ", "bar": "c"}])
    options = ("--dataset", path, "--output-dir", tmp_path / "out")
    assert isinstance(invoke(*options).exception, DataError)
    result = invoke(*options, "--prompt-column", "foo", "--completion-column", "bar")
    assert "a [b] [trained]c[/trained]" in result.output
    assert "nothing separates" not in result.output
    assert lines(tmp_path / "out/mine.jsonl") == [{"prompt": "a [b] ", "completion": "c"}]


def test_the_command_puts_a_separator_between_and_a_suite_reads_it_again(tmp_path, write):
    path = write("mine.csv", "question,answer\nTwo?,2\n")
    result = invoke("--dataset", path, "--output-dir", tmp_path / "out", "--separator", r"\n=\\n ")
    assert "Two?\n=\\n [trained]2[/trained]" in result.output
    assert "nothing separates" not in result.output
    _, (example,) = load_examples(str(tmp_path / "out/mine.jsonl"))
    assert [segment.text for segment in example.segments] == ["Two?\n=\\n ", "2"]


def test_a_separator_needs_a_prompt_and_a_completion(tmp_path, write):
    path = write("mine.jsonl", alpaca(2))
    result = invoke("--dataset", path, "--output-dir", tmp_path / "out", "--separator", " ")
    assert "between a prompt and its completion, and these rows are alpaca" in str(result.exception)
    path = write("other.jsonl", [{"prompt": "a", "completion": "b", "separator": " "}])
    result = invoke("--dataset", path, "--output-dir", tmp_path / "out", "--separator", " ")
    assert "the column 'separator' gives one for each row" in str(result.exception)


def test_the_command_names_what_it_does_not_use(tmp_path, write):
    rows = [{"question": f"q{i} ", "answer": "a", "id": i, "note": None, "weight": i % 2} for i in range(4)]
    result = invoke("--dataset", write("mine.jsonl", rows), "--output-dir", tmp_path / "out")
    assert "Note: 'weight' turns 2 rows off; they are left out" in result.output
    assert "Note: columns that are not used: id (4 rows)\n" in result.output
    assert [row["prompt"] for row in lines(tmp_path / "out/mine.jsonl")] == ["q1 ", "q3 "]


def test_the_commands_example_of_a_conversation_and_of_a_long_row(tmp_path, write):
    turns = [{"from": "human", "value": "q" * 2000}, {"from": "gpt", "value": "a"}]
    path = write("mine.json", [{"conversations": turns}])
    result = invoke("--dataset", path, "--output-dir", tmp_path / "out")
    assert "### User:\n" in result.output
    assert "more characters]" in result.output
    assert "chat template" in result.output
