"""Small templates, each with one habit of the published ones."""

import pytest
from jinja2 import Environment, TemplateError

from lorastudy.data.prompts import ChatTemplate, PromptStyle, render
from lorastudy.data.sources import Row
from lorastudy.errors import DataError
from tests.formatted import recognise

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


def rendering_of(template, values, prompt_format="auto"):
    environment = Environment()
    environment.globals["refuse"] = refuse
    compiled = environment.from_string(template)

    def render_messages(messages, *, tools, add_generation_prompt):
        return compiled.render(messages=messages, tools=tools, add_generation_prompt=add_generation_prompt)

    row = Row(values=values, where="f:1")
    style = PromptStyle(chat_template=ChatTemplate(render=render_messages), prompt_format=prompt_format)
    return render(row, recognise([row]), style=style)


def rendered(template, values):
    rendering = rendering_of(template, values)
    assert rendering.layout == "chat"
    segments = [(s.text, s.trained) for s in rendering.segments]
    after = segments.pop()[0] if not segments[-1][1] else ""
    assert not after.strip()  # what a template writes behind the last answer
    return segments


def two_turns(first="a1", second="a2"):
    pairs = [("user", "q1"), ("assistant", first), ("user", "q2"), ("assistant", second)]
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


PAIR = {"question": "2+2? ", "answer": " 4\n", "system": "Add.", "separator": "=>"}
ALPACA = {"instruction": "Add.", "input": "2+2", "output": "4"}


@pytest.mark.parametrize(
    ("values", "prompt_format", "layout", "prompt", "answer"),
    [
        (PAIR, "auto", "chat", "<|system|>Add.<|end|>\n<|user|>2+2?<|end|>\n<|assistant|>", "4<|end|>"),
        (PAIR, "plain", "plain", "Add.\n\n2+2? =>", " 4\n"),
        (ALPACA, "chat", "chat", "<|user|>Add.\n\n2+2<|end|>\n<|assistant|>", "4<|end|>"),
        (ALPACA, "plain", "plain", "Add.\n\n2+2\n\n", "4"),
        (two_turns(), "plain", "plain", "### User:\nq1\n\n### Assistant:\n", "a2"),
        (two_turns(), "alpaca", "plain", "### User:\nq1\n\n### Assistant:\n", "a2"),
        ({"text": "all"}, "chat", "text", "all", "all"),
    ],
)
def test_a_prompt_format_is_kept_to_where_the_model_has_a_chat_template(
    values, prompt_format, layout, prompt, answer
):
    rendering = rendering_of(CHATML, values, prompt_format)
    assert (rendering.layout, rendering.segments[0].text) == (layout, prompt)
    assert [segment.text for segment in rendering.segments if segment.trained][-1] == answer


@pytest.mark.parametrize("prompt_format", ["auto", "alpaca"])
@pytest.mark.parametrize("values", [PAIR, ALPACA])
def test_alpacas_prompt_for_pairs_where_it_is_asked_for(values, prompt_format):
    row = Row(values=values, where="f:1")
    style = PromptStyle(prompt_format=prompt_format)
    rendering = render(row, recognise([row]), style=style)
    is_alpaca = values is ALPACA or prompt_format == "alpaca"
    assert rendering.layout == ("alpaca" if is_alpaca else "plain")
    assert ("### Response:\n" in rendering.segments[0].text) is is_alpaca


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
        ("a1<|end|>", True),
        ("\n<|user|>q2<|end|>\n<|assistant|>", False),
        ("a2<|end|>", True),
    ]


def test_function_calls_are_the_templates_own_and_trained():
    assert rendered(CHATML, WITH_CALL) == [
        (
            '<|tools|>[{"function": {"name": "add"}, "type": "function"}]<|end|>\n<|user|>q<|end|>\n<|assistant|>',
            False,
        ),
        ('<call>{"arguments": {}, "name": "add"}</call><|end|>', True),
        ("\n<|tool|>7<|end|>\n<|assistant|>", False),
        ("a<|end|>", True),
    ]


@pytest.mark.parametrize("template", [NO_FUNCTIONS, NO_FUNCTIONS.replace("{{ refuse('unknown role') }}", "")])
def test_functions_become_text_where_the_template_refuses_or_drops_them(template):
    segments = rendered(template, WITH_CALL)
    assert segments[0][0].startswith("<|system|>Functions you can call:\n[{")
    assert segments[1:] == [
        ('{"name": "add", "arguments": {}}<|end|>', True),
        ("\n<|user|>7<|end|>\n<|assistant|>", False),
        ("a<|end|>", True),
    ]


def test_a_template_may_change_the_text_of_an_answer():
    collapsed = CHATML.replace("{{ m.content }}", "{{ m.content.replace('\\n\\n', '\\n') }}")
    assert rendered(collapsed, two_turns("a\n\n1"))[1] == ("a\n1<|end|>", True)


def test_a_thought_that_only_the_last_answer_has():
    assert [text for text, trained in rendered(THINKS_LAST, two_turns()) if trained] == [
        "a1<|end|>",
        "<think></think>a2<|end|>",
    ]


def test_a_thought_that_the_template_drops_later():
    values = two_turns("why</think>a1", "so</think>a2")
    segments = rendered(FORGETS_THOUGHTS, values)
    assert [text for text, trained in segments if trained] == ["a1<|end|>", "so</think>a2<|end|>"]
    assert "".join(text for text, _ in segments) == (
        "<|user|>q1<|end|>\n<|assistant|>a1<|end|>\n<|user|>q2<|end|>\n<|assistant|>so</think>a2<|end|>"
    )


#: A user's turn has an end only once it is answered: nobody can tell what was asked for.
ENDS_LATER = CHATML.replace("<|end|>\n", "{% if not loop.last %}<|end|>{% endif %}")


@pytest.mark.parametrize("template", [REWRITES, SHOUTS_EARLIER, ENDS_LATER])
def test_a_template_that_rewrites_what_it_wrote_is_refused(template):
    with pytest.raises(DataError, match="f:1: the model's chat template rewrites earlier"):
        rendered(template, two_turns())


def test_the_templates_own_refusal_is_passed_on():
    with pytest.raises(DataError, match="f:1: the model's chat template refuses it: no, never"):
        rendered("{{ refuse('no, never') }}", two_turns())


#: As DeepSeek-R1-Distill and QwQ do: asked for an answer, it opens a thought, which rendered answers do not have.
OPENS_THOUGHT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


@pytest.mark.parametrize("answers", [("a1", "a2"), ("<b>1</b>", "<thin>"), ("<", "[x]")])
def test_a_thought_that_the_generation_prompt_opens_and_the_answer_lacks(answers):
    assert rendered(OPENS_THOUGHT, two_turns(*answers)) == [
        ("<|user|>q1<|assistant|>", False),
        (f"{answers[0]}<|end|>", True),
        ("<|user|>q2<|assistant|>", False),
        (f"{answers[1]}<|end|>", True),
    ]


def test_a_thought_that_the_generation_prompt_opens_and_the_answer_closes():
    first, second = "<think>\nso</think>a1", "<think>\nas</think>a2"
    assert [text for text, trained in rendered(OPENS_THOUGHT, two_turns(first, second)) if trained] == [
        "so</think>a1<|end|>",
        "as</think>a2<|end|>",
    ]


def test_an_answer_that_only_the_next_role_ends():
    template = CHATML.replace("<|end|>\n", "")
    assert [segment.end for segment in rendering_of(template, two_turns()).segments] == [
        "",
        "next",
        "",
        "next",
    ]
    assert [segment.end for segment in rendering_of(CHATML, two_turns()).segments] == [""] * 5


def test_an_end_that_stands_between_turns_only():
    """The last answer then ends with EOS, which every row has."""
    end = "{% if m.role == 'user' or not loop.last %}<|end|>{% endif %}"
    template = CHATML.replace("<|end|>\n", end)
    assert rendered(template, two_turns())[1::2] == [("a1", True), ("a2", True)]
    assert [segment.end for segment in rendering_of(template, two_turns()).segments][1::2] == ["next", "next"]


@pytest.mark.parametrize(
    ("before", "preamble"),
    [
        ("", None),
        ("<s>", None),
        (
            "{% if messages[0].role != 'system' %}<|system|>Be kind.<|end|>\n{% endif %}",
            "<|system|>Be kind.",
        ),
    ],
)
def test_what_a_template_writes_by_itself(before, preamble):
    assert rendering_of(before + CHATML, two_turns()).preamble == preamble


def test_functions_as_text_are_told_apart():
    assert rendering_of(NO_FUNCTIONS, WITH_CALL).fell_back
    assert not rendering_of(NO_FUNCTIONS, two_turns()).fell_back
    assert not rendering_of(CHATML, WITH_CALL).fell_back
