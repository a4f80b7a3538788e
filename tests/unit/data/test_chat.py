"""Small templates, each with one habit of the published ones."""

import pytest
from jinja2 import Environment, TemplateError

from lorastudy.data.formats import recognise
from lorastudy.data.prompts import render
from lorastudy.data.sources import Row
from lorastudy.errors import DataError

CHATML = (
    "{% if tools %}<|tools|>{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_FUNCTIONS = (
    "{% for m in messages %}"
    "{% if m.role not in ('system', 'user', 'assistant') %}{{ refuse('unknown role') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: As Qwen3 does: an empty thought before the answer, but only before the last one.
THINKS_LAST = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: As reasoning models do: earlier thoughts are dropped.
FORGETS_THOUGHTS = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REWRITES = (
    "{{ messages | length }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHOUTS_EARLIER = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content if loop.last else m.content | upper }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def refuse(message):
    raise TemplateError(message)


def rendered(template, values):
    environment = Environment()
    environment.globals["refuse"] = refuse
    compiled = environment.from_string(template)

    def chat_template(messages, /, *, tools, add_generation_prompt):
        return compiled.render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt)

    row = Row(values=values, where="f:1")
    return [(s.text, s.trained) for s in render(row, recognise([row]), chat_template=chat_template)]


def two_turns(first="a1", second="a2"):
    pairs = [("user", "q1"), ("assistant", first), ("user", "q2"), ("assistant", second)]
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


WITH_CALL = {
    "conversations": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {}}'},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "a"},
    ],
    "tools": '[{"name": "add"}]',
}


def test_every_answer_is_trained_with_its_end_marker():
    assert rendered(CHATML, two_turns()) == [
        ("<|user|>q1<|end|>\n<|assistant|>", False),
        ("a1<|end|>\n", True),
        ("<|user|>q2<|end|>\n<|assistant|>", False),
        ("a2<|end|>\n", True),
    ]


def test_function_calls_are_the_templates_own_and_trained():
    assert rendered(CHATML, WITH_CALL) == [
        (
            '<|tools|>[{"function": {"name": "add"}, "type": "function"}]<|end|>\n<|user|>q<|end|>\n<|assistant|>',
            False,
        ),
        ('<call>{"arguments": {}, "name": "add"}</call><|end|>\n', True),
        ("<|tool|>7<|end|>\n<|assistant|>", False),
        ("a<|end|>\n", True),
    ]


@pytest.mark.parametrize("template", [NO_FUNCTIONS, NO_FUNCTIONS.replace("{{ refuse('unknown role') }}", "")])
def test_functions_become_text_where_the_template_refuses_or_drops_them(template):
    segments = rendered(template, WITH_CALL)
    assert segments[0][0].startswith("<|system|>Functions you can call:\n[{")
    assert segments[1:] == [
        ('{"name": "add", "arguments": {}}<|end|>\n', True),
        ("<|user|>7<|end|>\n<|assistant|>", False),
        ("a<|end|>\n", True),
    ]


def test_a_template_may_change_the_text_of_an_answer():
    collapsed = CHATML.replace("{{ m.content }}", "{{ m.content.replace('\\n\\n', '\\n') }}")
    assert rendered(collapsed, two_turns("a\n\n1"))[1] == ("a\n1<|end|>\n", True)


def test_a_thought_that_only_the_last_answer_has():
    assert [text for text, trained in rendered(THINKS_LAST, two_turns()) if trained] == [
        "a1<|end|>\n",
        "<think></think>a2<|end|>\n",
    ]


def test_a_thought_that_the_template_drops_later():
    values = two_turns("why</think>a1", "so</think>a2")
    segments = rendered(FORGETS_THOUGHTS, values)
    assert [text for text, trained in segments if trained] == ["a1<|end|>\n", "so</think>a2<|end|>\n"]
    assert "".join(text for text, _ in segments) == (
        "<|user|>q1<|end|>\n<|assistant|>a1<|end|>\n<|user|>q2<|end|>\n<|assistant|>so</think>a2<|end|>\n"
    )


@pytest.mark.parametrize("template", [REWRITES, SHOUTS_EARLIER])
def test_a_template_that_rewrites_what_it_wrote_is_refused(template):
    with pytest.raises(DataError, match="f:1: the model's chat template rewrites earlier"):
        rendered(template, two_turns())


def test_the_templates_own_refusal_is_passed_on():
    with pytest.raises(DataError, match="f:1: the model's chat template refuses it: no, never"):
        rendered("{{ refuse('no, never') }}", two_turns())
