from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from lorastudy.data import conversations, formats, prompts, row_index
from lorastudy.data.formats import Format
from lorastudy.data.load import to_example
from lorastudy.data.prompts import ChatTemplate, PromptStyle
from lorastudy.data.row_index import read_row, trained_rows
from lorastudy.data.sources import Row
from lorastudy.errors import DataError
from tests.formatted import detect, recognise

USER, BOT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"role": "tool", "content": "7"}
BASES: Mapping[str, Mapping[str, Any]] = {
    "alpaca": {"instruction": "i", "output": "o"},
    "alpaca with input": {"instruction": "i", "input": "n", "output": "o"},
    "pair": {"question": "q ", "answer": "a"},
    "messages": {"messages": [USER, BOT]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "text": {"text": "t"},
}
#: Two values for each column that means something to somebody.
COLUMNS: Mapping[str, tuple[Any, Any]] = {
    **dict.fromkeys(("system", "system_prompt", "system_message", "context", "passage", "document"), ("one", "two")),
    **dict.fromkeys(("article", "background", "input", "separator", "category", "url", "rejected", "label"), ("one", "two")),
    "history": ([["one", "1"]], [["one", "2"]]),
    "choices": (["one", "two"], ["one", "three"]),
    "options": ({"A": "one"}, {"B": "one"}),
    "tools": ([{"name": "f"}], [{"name": "g"}]),
    "functions": ([{"name": "f"}], [{"name": "g"}]),
    "weight": (1, 0),
    "train": (True, False),
    "kto_tag": (True, False),
    "score": (1, 2),
}  # fmt: skip
#: Two values for each field that a message may have, of an assistant's turn unless it is another's.
FIELDS: Mapping[str, tuple[Any, Any]] = {
    **dict.fromkeys(
        ("content", "name", "reasoning_content", "reasoning", "thinking", "timestamp"), ("one", "two")
    ),
    **dict.fromkeys(("weight", "train", "training", "trained", "loss", "loss_mask"), (1, 0)),
    "role": ("assistant", "user"),
    "tool_calls": ([CALL], [{**CALL, "id": "c2"}]),
    "function_call": ({"name": "f", "arguments": "{}"}, {"name": "g", "arguments": "{}"}),
}


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
    assert [read_row(row, detect(given)).problem == "has an empty answer" for row in given] == [
        False,
        True,
        True,
        False,
    ]


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


PAIR = {"question": "q ", "answer": "a"}


def told(*values, **flags):
    with pytest.raises(DataError) as caught:
        detect(rows(*values), **flags)
    return str(caught.value)


def test_preference_data_are_refused_with_the_way_out():
    message = told({"prompt": "p", "chosen": "c", "rejected": "r"})
    assert "column 'rejected' holds answers to be avoided" in message
    assert "--prompt-column prompt --completion-column chosen` trains the chosen ones" in message
    assert "in a file of their own" in told({"messages": [USER, BOT], "rejected_response": "r"})
    named = detect(
        rows({"prompt": "p", "chosen": "c", "rejected": "r"}),
        prompt_column="prompt",
        completion_column="chosen",
    )
    assert named.unused == {"rejected": 1}


@pytest.mark.parametrize("off", [False, 0, "False", "false", "0"])
def test_labels_that_call_answers_bad_are_refused(off):
    assert "'label' calls 1 of 2 answers bad" in told({**PAIR, "label": True}, {**PAIR, "label": off})


@pytest.mark.parametrize("labels", [(True, 1), ("pos", "neg"), (0, 2), (None, None)])
def test_labels_that_call_no_answer_bad_are_named_where_they_hold_something(labels):
    found = detect(rows(*[{**PAIR, "label": label} for label in labels]))
    assert found.unused == ({} if labels[0] is None else {"label": 2})


def test_a_text_beside_its_labels_is_refused_with_both_ways_out():
    given = [{"text": "t", "label": label} for label in ("pos", "neg", "pos", "neg")]
    message = told(*given)
    assert "without their 'label', whose values repeat (2 of them in 4 rows)" in message
    assert "--prompt-column text --completion-column label` makes it the answer" in message
    assert detect(rows(*given), text_column="text").unused == {"label": 4}
    assert "'label', whose values repeat" not in told(*[{"text": "t", "summary": f"s{i}"} for i in range(4)])


def test_columns_whose_values_repeat_are_proposed_as_the_answer():
    given = [{"text": f"t{i}", "lang of it": "de" if i % 2 else "en", "url": f"u{i}"} for i in range(6)]
    found = detect(rows(*given))
    assert found.unused == {"lang of it": 6, "url": 6}
    assert any(
        "--prompt-column text --completion-column 'lang of it'` makes them the answer" in note
        for note in found.notes
    )
    message = told(*[{"body": f"t{i}", "kind": i % 2} for i in range(6)])
    assert "The values of 'kind' repeat, so it may be the answer" in message


@pytest.mark.parametrize(
    ("values", "columns"),
    [
        ({"context": "c", **PAIR}, {"prompt": "question", "completion": "answer", "context": "context"}),
        ({"System Prompt": "s", "question": "q", "response": "r"}, {"prompt": "question", "completion": "response", "system": "System Prompt"}),
        ({"instruction": "i", "input": "n", "response": "o"}, {"instruction": "instruction", "input": "input", "output": "response"}),
        ({"instruction": "i", "context": "c", "output": "o"}, {"instruction": "instruction", "input": "context", "output": "output"}),
        ({"instruction": "i", "input": "n", "context": "c", "output": "o"}, {"instruction": "instruction", "input": "input", "output": "output", "context": "context"}),
        ({"messages": [USER, BOT], "system": "s", "functions": []}, {"messages": "messages", "system": "system", "tools": "functions"}),
        ({"passage": "c", "document": "d", **PAIR}, {"prompt": "question", "completion": "answer", "context": "passage"}),
    ],
)  # fmt: skip
def test_what_may_stand_beside_the_two(values, columns):
    assert detect(rows(values)).columns == columns


def test_flags_take_two_columns_and_leave_the_rest_as_it_is():
    found = detect(
        rows({"body": "b", "short": "s", "context": "c", "x": 1}),
        prompt_column="body",
        completion_column="short",
    )
    assert found.columns == {"prompt": "body", "completion": "short", "context": "context"}
    assert found.unused == {"x": 1}
    assert "leave out --prompt-column" in told({"a": "b"}, text_column="a", prompt_column="a")


def test_rows_are_turned_off_by_a_column_of_switches():
    given = rows(
        *[
            {**PAIR, "weight": weight, "train": train}
            for weight, train in [(1, None), (0, True), (None, False), ("", "")]
        ]
    )
    found = recognise(given)
    assert [row.where for row in trained_rows(given, found)] == ["f:1", "f:4"]
    assert found.row_switches == {"weight": 1, "train": 1}
    with pytest.raises(DataError, match="'weight' turned every row off; nothing is left to train"):
        recognise(rows({**PAIR, "weight": 0}))


def test_a_column_that_weighs_rows_is_refused_only_if_it_turns_some_off():
    assert detect(rows({**PAIR, "weight": 0.5}, {**PAIR, "weight": 2})).unused == {"weight": 2}
    assert "'weight' turns 1 row off and weighs others" in told(
        {**PAIR, "weight": 0}, {**PAIR, "weight": 0.5}
    )
    assert detect(rows({**PAIR, "train": "test"})).unused == {"train": 1}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({**PAIR, "choices": ["x", "y"], "answer": "1"}, "answers its choices by the number 1"),
        ({**PAIR, "choices": "x or y"}, "'choices' that are not a list of texts"),
        ({**PAIR, "choices": {"label": ["A"], "text": ["x", "y"]}}, "'choices' that are not a list of texts"),
        ({**PAIR, "history": ["q", "a"]}, "'history' that is neither pairs"),
        ({**PAIR, "history": [{"role": "narrator", "content": "x"}]}, "a turn by 'narrator'"),
        ({"messages": [USER, {**BOT, "weight": 0.5}]}, "whose 'weight' is 0.5; 0 (or false) makes an answer context"),
        ({"messages": [{**USER, "train": True}, BOT]}, "a turn by the user with 'train': true; only answers are trained"),
        ({"messages": [USER, {**BOT, "weight": 0}]}, "no answer that is trained: every one is turned off"),
        ({"messages": [{"role": "system", "content": "s"}, USER, BOT], "system": "t"}, "another system prompt beside it"),
    ],
)  # fmt: skip
def test_what_beside_the_two_cannot_be_used_is_named(values, problem):
    with pytest.raises(DataError) as caught:
        recognise(rows(values))
    assert problem in str(caught.value)


def test_an_untrained_answer_is_context():
    found = recognise(given := rows({"messages": [USER, {**BOT, "weight": 0, "content": ""}, USER, BOT]}))
    assert found.conversation(given[0]).answers == (3,)
    assert read_row(given[0], found).prompt == ("q", "", "q")


def test_fields_that_only_a_template_can_use_are_counted_once_a_row():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}", "strict": True}}
    tool = {"role": "tool", "content": "7", "tool_call_id": "c"}
    found = detect(
        rows(
            {"messages": [USER, {"role": "assistant", "tool_calls": [call]}, tool, tool, BOT]},
            {"messages": [USER, BOT]},
        )
    )
    assert found.for_template == {
        "messages[].tool_call_id": 1,
        "messages[].tool_calls[].id": 1,
        "messages[].tool_calls[].strict": 1,
    }


def _everything(messages: Any, /, *, tools: Any, add_generation_prompt: bool) -> str:
    shown = "".join(f"<|{message['role']}|>{sorted(message.items())}\n" for message in messages)
    return f"{tools or ''}{shown}" + ("<|assistant|>" if add_generation_prompt else "")


#: A chat template that shows each field of each message.
EVERYTHING = ChatTemplate(render=_everything)


def seen(values: Mapping[str, Any], chat_template: Any = None) -> tuple[Any, str]:
    """What is trained of a data set with this row, and all that is said of it."""
    given = [Row(values=dict(row), where="f") for row in (values, {**values, "weight": 1})]
    try:
        fmt = recognise(given)
        examples = [
            to_example(row, fmt, style=PromptStyle(chat_template=chat_template))
            for row in row_index.trained_rows(given, fmt)
        ]
    except DataError as error:
        return None, str(error)
    return [example.segments for example in examples], " ".join(fmt.notes)


def ignored(one: Mapping[str, Any], two: Mapping[str, Any], name: str, chat_template: Any = None) -> bool:
    """Whether the difference between two rows is neither trained nor named. A template that shows all has no excuse."""
    before, after = seen(one, chat_template), seen(two, chat_template)
    return before[0] == after[0] and (chat_template is not None or name not in before[1] + after[1])


def ignored_columns() -> list[str]:
    found = []
    for fmt, base in BASES.items():
        for name, (one, two) in COLUMNS.items():
            if name not in base and ignored({**base, name: one}, {**base, name: two}, name):
                found.append(f"{fmt}: {name}")
    return found


def ignored_fields() -> list[str]:
    found = []
    for chat_template in (None, EVERYTHING):
        for name, (one, two) in FIELDS.items():
            rows = [{"messages": [USER, BOT, USER, {**BOT, name: value}, USER, BOT]} for value in (one, two)]
            if ignored(rows[0], rows[1], name, chat_template):
                found.append(name)
        for name in ("name", "tool_call_id", "content"):
            rows = [
                {"messages": [USER, {**BOT, "tool_calls": [CALL]}, {**TOOL, name: value}, BOT]}
                for value in ("one", "two")
            ]
            if ignored(rows[0], rows[1], name, chat_template):
                found.append(f"tool: {name}")
    return found


def test_every_column_is_trained_or_named() -> None:
    assert ignored_columns() == []


def test_every_field_is_trained_or_named() -> None:
    assert ignored_fields() == []


# --- planted faults: each must be seen by one of the two tests above -----------------------------------


@pytest.mark.parametrize("layout", ["plain", "alpaca"])
@pytest.mark.parametrize("part", ["system", "history", "context", "input", "choices"])
def test_a_part_that_a_layout_leaves_out_is_seen(layout, part, monkeypatch):
    name = f"{layout}_prompt"
    real = getattr(prompts, name)

    def planted(instruction):
        return real(replace(instruction, **{part: type(getattr(instruction, part))()}))

    monkeypatch.setattr(prompts, name, planted)
    assert any(found.endswith(part) for found in ignored_columns())


def test_a_column_that_is_not_listed_is_seen(monkeypatch):
    monkeypatch.setattr(formats, "_with_unused", lambda fmt, columns: fmt)
    assert {"pair: category", "messages: url"} <= set(ignored_columns())


def test_a_field_that_does_not_reach_the_template_is_seen(monkeypatch):
    monkeypatch.setattr(
        conversations.Turn, "message", property(lambda turn: {"role": turn.role, "content": turn.text})
    )
    assert {"name", "reasoning_content", "tool_calls", "tool: name"} <= set(ignored_fields())


def test_a_weight_that_is_passed_over_is_seen(monkeypatch):
    monkeypatch.setattr(conversations, "_is_trained", lambda message, role: True)
    assert {"weight", "train", "loss_mask"} <= set(ignored_fields())


def test_a_row_that_stays_though_it_is_turned_off_is_seen(monkeypatch):
    monkeypatch.setattr(Format, "is_trained", lambda fmt, row: True)
    monkeypatch.setattr(Format, "notes", ())
    assert "pair: train" in ignored_columns()


def test_a_message_reaches_the_template_as_it_is() -> None:
    as_text = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": null}'},
    }
    messages = [
        USER,
        {"role": "assistant", "content": "", "reasoning_content": "why", "tool_calls": [CALL, as_text]},
        {"role": "tool", "content": "mild", "tool_call_id": "abcdefghi", "name": "weather"},
        {**BOT, "name": "Bo", "weight": 1},
    ]
    row = Row(values={"messages": messages}, where="f")
    turns = recognise([row]).conversation(row).turns
    assert [turn.message for turn in turns] == [*messages[:3], {**BOT, "name": "Bo"}]


SAYS_CONTENT = ChatTemplate(render=lambda messages, *, tools, add_generation_prompt: "".join(f"<{m['role']}>{m['content']}{m.get('name', '')}" for m in messages) + "<assistant>" * add_generation_prompt)  # fmt: skip
NEEDS_IDS = ChatTemplate(render=lambda messages, *, tools, add_generation_prompt: "".join(f"<{m['role']}>{m['content']}{[c['id'] for c in m['tool_calls']] if 'tool_calls' in m else ''}" + "f 7" for m in messages) + "<assistant>" * add_generation_prompt)  # fmt: skip


@pytest.mark.parametrize(
    ("template", "unseen"),
    [
        (EVERYTHING, ()),
        (None, ("tool_calls[].id", "tool_call_id", "timestamp")),
        # It has no notion of calls, so that they are given to it as text.
        (SAYS_CONTENT, ("name", "tool_calls[].id", "tool_call_id", "timestamp")),
        (NEEDS_IDS, ("name", "reasoning_content", "tool_call_id", "timestamp")),
    ],
)
def test_fields_that_a_layout_does_not_show_are_known(template, unseen):
    messages = [
        {**USER, "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "why"},
        {**TOOL, "tool_call_id": "c1"},
        {**BOT, "timestamp": "12:00"},
    ]
    row = Row(values={"messages": messages}, where="f")
    example = to_example(row, recognise([row]), style=PromptStyle(chat_template=template))
    assert set(example.rendering.unseen) == set(unseen)
