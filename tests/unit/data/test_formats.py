import pytest

from lorastudy.data.formats import detect, recognise, without_empty_answers
from lorastudy.data.sources import Row
from lorastudy.errors import DataError

USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def rows(*values):
    return [Row(values=value, where=f"f:{i}") for i, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("values", "name", "columns"),
    [
        ({"instruction": "i", "input": "", "output": "o"}, "alpaca", ["instruction", "input", "output"]),
        ({"instruction": "i", "output": "o"}, "alpaca", ["instruction", "output"]),
        ({"instruction": "i", "input": None, "output": "o"}, "alpaca", ["instruction", "input", "output"]),
        ({"instruction": "i", "context": "c", "response": "o", "category": "x"}, "alpaca", ["instruction", "context", "response"]),
        ({"messages": [USER, BOT], "id": 3}, "messages", ["messages"]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": "[]"}, "sharegpt", ["conversations", "tools"]),
        ({"prompt": "p", "completion": "c"}, "prompt_completion", ["prompt", "completion"]),
        ({"question": "p", "answer": "c"}, "prompt_completion", ["question", "answer"]),
        ({"instruction": "p", "response": "c"}, "prompt_completion", ["instruction", "response"]),
        ({"query": "p", "response": "c", "type": "t"}, "prompt_completion", ["query", "response"]),
        ({"Question ": "p", "ANSWER": "c"}, "prompt_completion", ["Question ", "ANSWER"]),
        ({"text": "t", "url": "u"}, "text", ["text"]),
    ],
)  # fmt: skip
def test_recognised_by_its_columns(values, name, columns):
    found = recognise(rows(values))
    assert found.name == name
    assert list(found.columns.values()) == columns


def test_named_columns_win():
    found = recognise(rows({"messages": 1, "a": "p", "b": "c"}), prompt_column="a", completion_column="b")
    assert found.columns == {"prompt": "a", "completion": "b"}


def test_unknown_columns_list_what_there_is_and_what_is_known():
    with pytest.raises(DataError) as caught:
        recognise(rows({"foo": "x", "bar": "y"}))
    message = str(caught.value)
    for part in ("foo, bar", "alpaca", "messages", "sharegpt", "question and answer", "text"):
        assert part in message
    assert "--prompt-column NAME --completion-column NAME" in message


def test_two_possible_pairs_are_not_guessed():
    with pytest.raises(DataError, match="question -> answer; question -> response"):
        detect(rows({"question": "q", "answer": "a", "response": "r"}))


def test_one_flag_alone_and_a_column_that_is_not_there():
    with pytest.raises(DataError, match="give both"):
        detect(rows({"a": "x"}), prompt_column="a")
    with pytest.raises(DataError, match="no column 'b'; the columns are a"):
        detect(rows({"a": "x"}), prompt_column="a", completion_column="b")
    with pytest.raises(DataError, match="both name 'a': every answer would stand in its own prompt"):
        detect(rows({"a": "x", "b": "y"}), prompt_column="a", completion_column="a")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"prompt": "p"}, "has an empty answer"),
        ({"prompt": "p", "completion": None}, "has an empty answer"),
        ({"prompt": "p", "completion": float("nan")}, "has an empty answer"),
        ({"prompt": True, "completion": "c"}, "'prompt' is bool, not text"),
        ({"prompt": float("inf"), "completion": "c"}, "'prompt' is float, not text"),
        ({"prompt": "p", "completion": " \n"}, "has an empty answer"),
        ({"prompt": "p", "completion": "\ud83d"}, "half of a surrogate pair"),
        ({"prompt": "p", "completion": "a\x00"}, "holds a NUL character"),
        ({"instruction": "i", "input": ["a"], "output": "o"}, "'input' is list, not text"),
        ({"text": ""}, "has an empty answer"),
        ({"messages": "hello"}, "'messages' is not a list of turns"),
        ({"messages": []}, "'messages' is not a list of turns"),
        ({"messages": [USER]}, "no assistant turn that follows a user turn"),
        ({"messages": [BOT, USER]}, "no assistant turn that follows a user turn"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "has an empty answer"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "'content' is NoneType, not text"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": ["x"]}]}, "function call without a name"),
        ({"messages": [{"role": "narrator", "content": "x"}, BOT]}, "a turn by 'narrator'"),
        ({"conversations": [{"from": "human", "value": 1}]}, "'value' is int, not text"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": "none"}, "'tools' is not a list"),
    ],
)  # fmt: skip
def test_a_row_that_lacks_something_is_named(values, problem):
    good = {"prompt": "p", "completion": "c"} if "prompt" in values else values
    with pytest.raises(DataError) as caught:
        recognise(rows(good, values))
    assert f"f:2: {problem}" in str(caught.value) or problem in str(caught.value).partition("f:2: ")[2]


def test_the_first_five_bad_rows_are_shown_and_all_are_counted():
    with pytest.raises(DataError) as caught:
        recognise(rows({"prompt": "p", "completion": "c"}, *[{"prompt": "p", "completion": ""}] * 7))
    message = str(caught.value)
    assert message.startswith("7 of 8 rows are not usable as prompt_completion:")
    assert "f:6: has an empty answer" in message
    assert "f:7" not in message
    assert "and 2 more" in message


def test_only_empty_answers_are_left_out():
    given = rows(
        {"prompt": "p", "completion": "c"},
        {"prompt": "p", "completion": ""},
        {"prompt": "p"},
        {"prompt": [], "completion": "c"},
    )
    assert [row.where for row in without_empty_answers(given, detect(given))] == ["f:1", "f:4"]


@pytest.mark.parametrize("other", ["Prompt", " prompt"])
def test_columns_that_hide_one_another_are_refused(other):
    with pytest.raises(DataError, match="differ in case or white space alone; rename or remove one"):
        detect(rows({"prompt": "a", other: "b", "completion": "c"}))


def test_a_misspelt_optional_column_is_not_left_out_in_silence():
    with pytest.raises(
        DataError, match="column 'inputs' is not used by the format alpaca; is it meant as 'input'"
    ):
        detect(rows({"instruction": "i", "inputs": "x", "output": "o"}))
    assert detect(rows({"instruction": "i", "input": "", "inputs": "x", "output": "o"})).name == "alpaca"


def test_a_message_is_short_however_long_names_are():
    with pytest.raises(DataError) as caught:
        detect(rows({f"{number}{'x' * 9000}": 1 for number in range(50)}))
    assert len(str(caught.value)) < 2000
    assert "and 30 more" in str(caught.value)
    with pytest.raises(DataError) as caught:
        recognise(rows({"messages": [{"role": "x" * 9000, "content": "y"}]}))
    assert len(str(caught.value)) < 500
