"""Of transformers' own templates: what they write today and what they mark."""

import pytest
from transformers.utils import chat_template_utils

import tiny
from lorastudy.data.load import to_example
from lorastudy.data.prompts import PromptStyle
from lorastudy.data.sources import Row
from lorastudy.engine.chat_template import DATE, chat_template_of, prompt_style
from lorastudy.errors import ModelError
from tests.formatted import recognise

TURNS = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4 w5"}]
TODAY = "{%- if strftime_now is defined %}{{- strftime_now('%d %b %Y') }}{%- endif %}"
GENERATION = (
    "{% for m in messages %}w9 {% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }} <eos>{% endgeneration %}{% else %}{{ m.content }}{% endif %} w8 {% endfor %}"
)


def template_of(source):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = source
    return chat_template_of(tokenizer)


def test_a_tokenizer_without_a_template_has_none():
    assert template_of(None) is None


def test_it_writes_what_transformers_writes():
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}{{ add_generation_prompt }}"
    template = template_of(source)
    assert template.render(TURNS, tools=None, add_generation_prompt=True) == "user:w3assistant:w4 w5True"
    assert (template.generated, template.date) == (None, None)


def test_tools_have_a_template_of_their_own_where_there_is_one():
    template = template_of({"default": "no tools", "tool_use": "tools" + TODAY})
    assert template.render(TURNS, tools=None, add_generation_prompt=False) == "no tools"
    assert (
        template.render(TURNS, tools=[{"type": "function"}], add_generation_prompt=False)
        == "tools26 Jul 2024"
    )
    assert template.date == "2024-07-26"


class AnotherDay:
    """In the place of `datetime` where transformers asks for the day."""

    @staticmethod
    def now():
        return DATE.replace(year=2031)


@pytest.mark.parametrize(
    ("call", "written"),
    [
        ("strftime_now('%d %b %Y')", "26 Jul 2024"),
        ('strftime_now( "%Y-%m-%d" )', "2024-07-26"),
        ("strftime_now(format='%A')", "Friday"),
    ],
)
def test_today_is_always_the_same_day(monkeypatch, call, written):
    monkeypatch.setattr(chat_template_utils, "datetime", AnotherDay)
    source = "{%- set day = " + call + " if strftime_now is defined else 'never' %}{{ day }}"
    template = template_of(source)
    assert template.render(TURNS, tools=None, add_generation_prompt=False) == written
    assert template.date == "2024-07-26"


def test_a_day_in_a_form_that_is_computed_is_refused():
    with pytest.raises(ModelError, match="would change from day to day; write a fixed date"):
        template_of("{{ strftime_now(form) }}")


def test_what_the_template_marks_is_trained():
    row = Row(values={"messages": [TURNS[1], *TURNS, *TURNS]}, where="f:1")
    example = to_example(row, recognise([row]), style=PromptStyle(chat_template=template_of(GENERATION)))
    assert [(segment.text, segment.trained) for segment in example.segments] == [
        ("w9 w4 w5 <eos> w8 w9 w3 w8 w9 ", False),  # a greeting answers nothing
        ("w4 w5 <eos>", True),
        (" w8 w9 w3 w8 w9 ", False),
        ("w4 w5 <eos>", True),
        (" w8 ", False),
    ]


def test_a_chat_template_that_is_asked_for_and_not_there_is_refused():
    tokenizer = tiny.tokenizer()
    assert prompt_style(tokenizer, "auto") == PromptStyle()
    with pytest.raises(
        ModelError, match=r"^prompt_format: chat: .* has no chat template; take a model that has one"
    ):
        prompt_style(tokenizer, "chat")
    tokenizer.chat_template = "{{ messages }}"
    assert prompt_style(tokenizer, "chat").template is not None
    assert prompt_style(tokenizer, "plain").template is None
