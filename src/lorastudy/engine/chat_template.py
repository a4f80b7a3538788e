"""The chat template of a tokenizer, in the form that `data` uses: with a fixed date, and with marked answers."""

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from lorastudy.data.prompts import ChatTemplate, Message, PromptStyle
from lorastudy.errors import ModelError
from lorastudy.suite.settings import PromptFormat

#: Replaces today's date in every template, so that equal rows give equal tokens tomorrow. Llama 3's default date.
DATE = dt.date(2024, 7, 26)

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_TODAY = re.compile(r"strftime_now\(\s*(?:format\s*=\s*)?(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")
_ANY_DAY = re.compile(r"strftime_now\s*\(")


def prompt_style(tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat) -> PromptStyle:
    """The layout of rows for the tokenizer's model.

    Raises:
        ModelError: `prompt_format` is `chat` and there is no template, or the template cannot be used.
    """
    if prompt_format not in ("auto", "chat"):
        return PromptStyle(prompt_format=prompt_format)
    chat_template = chat_template_of(tokenizer)
    if chat_template is None and prompt_format == "chat":
        raise ModelError(
            f"prompt_format: chat: {tokenizer.name_or_path} has no chat template; take a model that has one, or "
            "prompt_format: auto"
        )
    return PromptStyle(prompt_format=prompt_format, chat_template=chat_template)


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """The tokenizer's chat template; None when it has none.

    Raises:
        ModelError: the template computes the format of today's date, so the date cannot be replaced.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    sources = _sources(tokenizer)
    if any(_ANY_DAY.search(_at_date(source)) for source in sources):
        raise ModelError(
            f"base_model: {tokenizer.name_or_path}: its chat template writes today's date in a form that it computes, so "
            "its tokens would change from day to day; write a fixed date into the template"
        )

    def source_for(tools: object) -> str:
        return _at_date(tokenizer.get_chat_template(tools=tools))

    def render(
        messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None, add_generation_prompt: bool
    ) -> str:
        text = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            chat_template=source_for(tools),
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        assert isinstance(text, str)
        return text

    def generated(
        messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None
    ) -> Sequence[tuple[int, int]]:
        source = source_for(tools)
        if not _GENERATION.search(source):
            return ()
        given = [{key: value for key, value in message.items() if value is not None} for message in messages]
        _, spans = render_jinja_template(
            conversations=[given],
            tools=list(tools) if tools else None,
            chat_template=source,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
        return [tuple(span) for span in spans[0]]

    return ChatTemplate(
        render=render,
        generated=generated if any(map(_GENERATION.search, sources)) else None,
        date=DATE.isoformat() if any(map(_TODAY.search, sources)) else None,
    )


def _sources(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    template = tokenizer.chat_template
    return list(template.values()) if isinstance(template, dict) else [template]


def _at_date(source: str) -> str:
    """The template with `strftime_now("%d %b %Y")` written out as "26 Jul 2024"."""
    return _TODAY.sub(lambda call: f"{call['quote']}{DATE.strftime(call['format'])}{call['quote']}", source)
