"""A conversation rendered by a model's own chat template, with the answers told apart from the rest.

A template is a program that turns messages into one text; it does not say which part is the answer. So the
conversation is rendered again and again, each time a little longer: what the template writes before an answer
(with `add_generation_prompt`, as at inference) and what it has written after it are both prefixes of the
whole, and the answer with its end marker is the difference.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lorastudy.data.conversations import Conversation, ConversationError, Turn
from lorastudy.data.examples import Segment

Message = dict[str, Any]

#: A template is a program of somebody else's, and fails as programs do.
_OF_A_PROGRAM = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


class ChatTemplate(Protocol):
    """`tokenizer.apply_chat_template` with `tokenize=False`."""

    def __call__(
        self,
        messages: Sequence[Message],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str:
        """The text of the messages, and of what precedes an answer where that is asked for."""
        ...


def chat_segments(conversation: Conversation, *, chat_template: ChatTemplate) -> tuple[Segment, ...]:
    """The conversation up to its last answer, every answer trained, function calls too.

    Function calls and tool turns are rendered as the template has it; where it has no notion of them, as text:
    the call as JSON, the tool turn as a user turn, the functions in the system turn.

    Raises:
        ConversationError: the template refuses the conversation, or rewrites what it rendered before.
    """
    if not _uses_functions(conversation):
        return _segments(conversation, chat_template)
    try:
        segments = _segments(conversation, chat_template)
    except ConversationError:
        segments = ()
    if segments and _shows_functions(conversation, segments):
        return segments
    return _segments(_functions_as_text(conversation), chat_template)


def _segments(conversation: Conversation, chat_template: ChatTemplate) -> tuple[Segment, ...]:
    from jinja2 import TemplateError

    answers = conversation.answers
    messages = [_message(turn) for turn in conversation.turns]

    def render(num_messages: int, *, add_generation_prompt: bool) -> str:
        try:
            return chat_template(
                messages[:num_messages],
                tools=conversation.tools or None,
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, *_OF_A_PROGRAM) as error:
            raise ConversationError(f"the model's chat template refuses it: {error}") from error

    whole = render(answers[-1] + 1, add_generation_prompt=False)
    segments: list[Segment] = []
    position = 0
    for i in answers:
        before = render(i, add_generation_prompt=True)
        after = render(i + 1, add_generation_prompt=False)
        if not (whole.startswith(before) and after.startswith(before)) or len(before) < position:
            raise ConversationError(
                "the model's chat template rewrites earlier turns, so its answers cannot be told apart"
            )
        answer = _answer(whole[len(before) :], after[len(before) :], turn=conversation.turns[i])
        segments.append(Segment(text=whole[position : len(before)], trained=False))
        segments.append(Segment(text=answer, trained=True))
        position = len(before) + len(answer)
    return tuple(segments)


def _answer(rest: str, as_last: str, *, turn: Turn) -> str:
    """The longest end of `as_last` (the answer as it was rendered while last) with which `rest` begins.

    Usually all of it. Templates of reasoning models write an (empty) thought before the last answer only and
    take it away once the conversation goes on; then it is what is left.
    """
    if rest.startswith(as_last):
        return as_last
    needed = turn.calls[0]["name"] if turn.calls else turn.text.rpartition("</think>")[2].strip()
    start = next(i for i in range(len(as_last) + 1) if rest.startswith(as_last[i:]))
    if needed in as_last[start:]:
        return as_last[start:]
    raise ConversationError(
        "the model's chat template rewrites earlier answers, so they cannot be told apart"
    )


def _message(turn: Turn) -> Message:
    message: Message = {"role": turn.role, "content": turn.text}
    if turn.calls:
        message["tool_calls"] = [{"type": "function", "function": dict(call)} for call in turn.calls]
    return message


def _uses_functions(conversation: Conversation) -> bool:
    return bool(conversation.tools) or any(turn.calls or turn.role == "tool" for turn in conversation.turns)


def _shows_functions(conversation: Conversation, segments: Sequence[Segment]) -> bool:
    """Whether nothing was dropped: templates without a notion of functions pass over them in silence.

    Words are looked for, not whole texts, because some templates write what a tool gave back as a JSON string.
    """
    text = "".join(segment.text for segment in segments)
    turns = conversation.turns[: conversation.answers[-1] + 1]
    words = [call["name"] for turn in turns for call in turn.calls]
    words += [tool["function"].get("name", "") for tool in conversation.tools]
    words += [word for turn in turns if turn.role == "tool" for word in re.findall(r"\w+", turn.text)]
    return all(word in text for word in words)


def _functions_as_text(conversation: Conversation) -> Conversation:
    turns = [
        Turn(role="user" if turn.role == "tool" else turn.role, text=turn.plain)
        for turn in conversation.turns
    ]
    if conversation.tools:
        tools = f"Functions you can call:\n{json.dumps(conversation.tools, ensure_ascii=False)}"
        if turns[0].role == "system":
            turns[0] = Turn(role="system", text=f"{turns[0].text}\n\n{tools}")
        else:
            turns.insert(0, Turn(role="system", text=tools))
    return Conversation(turns=tuple(turns))
