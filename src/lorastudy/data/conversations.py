"""Conversations in one shape, whether they came as `messages` or in ShareGPT form.

A turn is by the system, the user, the assistant or a tool. A function call is something that the assistant
says, so it is an assistant turn; what the function gave back (`observation`) is a tool turn.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorastudy.data.json_reading import parsed_or_none
from lorastudy.spec.wording import shown

Role = Literal["system", "user", "assistant", "tool"]

#: What is said of a row whose answer is blank; `prepare` leaves such rows out.
EMPTY_ANSWER = "has an empty answer"

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


class ConversationError(Exception):
    """What keeps a row from being a conversation; the reader of the row adds where it stands."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side says. `calls` are function calls: `{"name": ..., "arguments": ...}`."""

    role: Role
    text: str
    calls: tuple[Mapping[str, Any], ...] = ()

    @property
    def plain(self) -> str:
        """The text, and each call as a line of JSON after it."""
        lines = [self.text] if self.text else []
        return "\n".join(lines + [json.dumps(call, ensure_ascii=False) for call in self.calls])


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns in order, and the functions that may be called (as JSON schemas)."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def answers(self) -> tuple[int, ...]:
        """Positions of the assistant turns that answer something; a greeting that opens the conversation does not."""
        first = next(
            (i for i, turn in enumerate(self.turns) if turn.role in ("user", "tool")), len(self.turns)
        )
        return tuple(i for i, turn in enumerate(self.turns) if turn.role == "assistant" and i > first)


def from_messages(values: Mapping[str, Any]) -> Conversation:
    """The conversation in `{"messages": [{"role", "content", "tool_calls"?}], "tools"?}`.

    Raises:
        ConversationError: it is not of that shape; says what is wrong.
    """
    turns = [_message_turn(message) for message in _turn_list(values.get("messages"), "messages")]
    return _checked(turns, values.get("tools"))


def from_sharegpt(values: Mapping[str, Any]) -> Conversation:
    """The conversation in `{"conversations": [{"from", "value"}], "system"?, "tools"?}`.

    Raises:
        ConversationError: it is not of that shape; says what is wrong.
    """
    turns = [_sharegpt_turn(turn) for turn in _turn_list(values.get("conversations"), "conversations")]
    system = values.get("system")
    if system:
        turns.insert(0, Turn(role="system", text=_string(system, "system")))
    return _checked(turns, values.get("tools"))


def _checked(turns: Sequence[Turn], tools: object) -> Conversation:
    conversation = Conversation(turns=tuple(turns), tools=_tools(tools))
    if not conversation.answers:
        raise ConversationError("has no assistant turn that follows a user turn")
    for i in conversation.answers:
        if not turns[i].plain.strip():
            raise ConversationError(EMPTY_ANSWER)
    return conversation


def _turn_list(value: object, column: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise ConversationError(f"{column!r} is not a list of turns")
    return value


def _message_turn(message: Mapping[str, Any]) -> Turn:
    calls = tuple(_call(_function(call)) for call in message.get("tool_calls") or ())
    content = message.get("content")
    text = "" if content is None and calls else _string(content, "content")
    return Turn(role=_role(message.get("role")), text=text, calls=calls)


def _sharegpt_turn(turn: Mapping[str, Any]) -> Turn:
    text = _string(turn.get("value"), "value")
    if turn.get("from") == "function_call":
        calls = _parsed_calls(text)
        if calls:
            return Turn(role="assistant", text="", calls=calls)
    return Turn(role=_role(turn.get("from")), text=text)


def _parsed_calls(text: str) -> tuple[Mapping[str, Any], ...]:
    """The calls in the text; none when it is not JSON with a function name, and then it stays text."""
    value = parsed_or_none(text)
    calls: list[Any] = value if isinstance(value, list) else [value]
    if any(not isinstance(call, dict) or "name" not in call for call in calls):
        return ()
    return tuple(_call(call) for call in calls)


def _function(call: object) -> object:
    """The call itself: the chat format wraps it as `{"type": "function", "function": {...}}`."""
    return call.get("function", call) if isinstance(call, dict) else call


def _call(call: object) -> Mapping[str, Any]:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ConversationError("has a function call without a name")
    arguments = call.get("arguments", {})
    parsed = parsed_or_none(arguments) if isinstance(arguments, str) else arguments
    return {"name": call["name"], "arguments": arguments if parsed is None else parsed}


def _tools(value: object) -> tuple[Mapping[str, Any], ...]:
    parsed = parsed_or_none(value) if isinstance(value, str) else value
    if not value or parsed == []:
        return ()
    tools = parsed if isinstance(parsed, list) else [parsed]
    return tuple(_tool(tool) for tool in tools)


def _tool(tool: object) -> Mapping[str, Any]:
    if not isinstance(tool, dict):
        raise ConversationError("'tools' is not a list of function schemas")
    return tool if isinstance(tool.get("function"), dict) else {"type": "function", "function": tool}


def _role(name: object) -> Role:
    if not isinstance(name, str) or name not in _ROLES:
        raise ConversationError(f"has a turn by {shown(name)}; known: {', '.join(_ROLES)}")
    return _ROLES[name]


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ConversationError(f"has a turn whose {name!r} is {type(value).__name__}, not text")
    return value
