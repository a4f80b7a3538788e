import pytest

from lorastudy.data.prompts import render
from lorastudy.data.sources import Row
from tests.formatted import recognise

CALL = '{"name": "f", "arguments": {"x": 1}}'


def rendered(values, **options):
    row = Row(values=values, where="f:1")
    return [(s.text, s.trained) for s in render(row, recognise([row]), **options).segments]


@pytest.mark.parametrize("empty", [{}, {"input": ""}, {"input": None}])
def test_alpaca_without_input(empty):
    assert rendered({"instruction": "Say {x}.", "output": "Hello {y}.", **empty}) == [
        (
            (
                "Below is an instruction that describes a task. Write a response that appropriately completes "
                "the request.\n\n### Instruction:\nSay {x}.\n\n### Response:\n"
            ),
            False,
        ),
        ("Hello {y}.", True),
    ]


def test_alpaca_with_input():
    assert rendered({"instruction": "Add.", "input": "1 {2}", "output": "3"}) == [
        (
            (
                "Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request.\n\n"
                "### Instruction:\nAdd.\n\n### Input:\n1 {2}\n\n### Response:\n"
            ),
            False,
        ),
        ("3", True),
    ]


def test_a_pair_is_joined_as_it_is():
    assert rendered({"question": "2+2? ", "answer": "4\n"}) == [("2+2? ", False), ("4\n", True)]


def test_all_of_a_text_is_trained():
    assert rendered({"text": " some text"}) == [(" some text", True)]


def test_plain_layout_trains_every_answer_and_call_and_ends_with_the_last_one():
    conversation = [
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": "q1"},
        {"from": "function_call", "value": CALL},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "seven"},
        {"from": "human", "value": "thanks"},
    ]
    tools = '[{"name": "f"}]'
    assert rendered({"conversations": conversation, "system": "Be brief.", "tools": tools}) == [
        (
            (
                '### Functions:\n[{"type": "function", "function": {"name": "f"}}]\n\n'
                "### System:\nBe brief.\n\n### Assistant:\nHello.\n\n### User:\nq1\n\n### Assistant:\n"
            ),
            False,
        ),
        (CALL, True),
        ("\n\n### Tool:\n7\n\n### Assistant:\n", False),
        ("seven", True),
    ]


def test_messages_and_sharegpt_of_the_same_content_look_the_same():
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "a"},
    ]  # fmt: skip
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": CALL},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "a"},
    ]
    assert rendered({"messages": messages}) == rendered({"conversations": turns, "system": "s"})


def test_a_call_that_is_not_json_stays_text():
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f(1)"}]
    assert rendered({"conversations": turns})[-1] == ("f(1)", True)


BESIDE = {
    "system": " Be brief. ",
    "history": [["q1", "a1"], ["q2", "a2"]],
    "context": "The sky.",
    "choices": ["red", "blue"],
}


def test_all_that_may_stand_beside_a_pair():
    assert rendered({"question": "Colour?", "answer": "B", "input": "Now.", **BESIDE}) == [
        ("Be brief.\n\nq1\na1\n\nq2\na2\n\nThe sky.\n\nColour?\n\nNow.\n\nA. red\nB. blue\n", False),
        ("B", True),
    ]


@pytest.mark.parametrize(
    ("question", "separator", "end"),
    [("Colour?", None, "\n"), ("Colour?\n\n", None, "\n\n"), ("Colour? ", "=", " ="), ("Colour?", " ", " ")],
)
def test_what_parts_the_choices_from_the_answer(question, separator, end):
    values = {
        "question": question,
        "answer": "B",
        "choices": {"A": "red", "B": "blue"},
        "separator": separator,
    }
    assert rendered(values)[0][0] == f"Colour?\n\nA. red\nB. blue{end}"


def test_all_that_may_stand_beside_an_alpaca_row():
    messages = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}]
    text = rendered(
        {"instruction": "Name it.", "input": "Now.", "output": "blue", **BESIDE, "history": messages}
    )[0][0]
    assert text.startswith("Be brief.\n\nBelow is an instruction that describes a task, paired with an input")
    assert text.endswith(
        "request.\n\n### Instruction:\nq1\n\n### Response:\na1\n\n### Instruction:\nName it.\n\n"
        "### Input:\nThe sky.\n\nNow.\n\nA. red\nB. blue\n\n### Response:\n"
    )


def test_thoughts_and_names_stand_in_the_plain_layout():
    messages = [
        {"role": "user", "content": "q", "name": "Ann"},
        {"role": "assistant", "content": "a", "reasoning_content": "why"},
    ]
    assert rendered({"messages": messages}) == [
        ("### User (Ann):\nq\n\n### Assistant:\n", False),
        ("<think>\nwhy\n</think>\n\na", True),
    ]


def test_an_answer_that_is_turned_off_is_context():
    turns = [
        ("user", "q1", {}),
        ("assistant", "a1", {"weight": 0}),
        ("user", "q2", {}),
        ("assistant", "a2", {"weight": 1}),
    ]
    messages = [{"role": role, "content": text, **further} for role, text, further in turns]
    assert rendered({"messages": messages}) == [
        ("### User:\nq1\n\n### Assistant:\na1\n\n### User:\nq2\n\n### Assistant:\n", False),
        ("a2", True),
    ]
