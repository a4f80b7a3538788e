"""Every column and every field of a row changes what is trained, or is named."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from lorastudy.data import conversations, formats, prompts, row_index
from lorastudy.data.formats import Format
from lorastudy.data.load import to_example
from lorastudy.data.prompts import ChatTemplate, PromptStyle
from lorastudy.data.sources import Row
from lorastudy.errors import DataError
from tests.formatted import recognise

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
