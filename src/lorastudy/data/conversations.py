"""The content of a row in one of two shapes: a conversation of turns, or an instruction with its answer.

`messages` and ShareGPT rows become a `Conversation`. Each turn is by the system, the user, the assistant or a tool. The
assistant makes a function call, so the call is an assistant turn; the function's result (`observation`) is a tool turn.
Rows of `alpaca` and `prompt_completion` become an `Instruction`.
"""

import json
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lorastudy.data.values import parsed_or_none, switch, text_of
from lorastudy.suite.wording import shown

Role = Literal["system", "user", "assistant", "tool"]

#: The problem of a row with a blank answer. `prepare` leaves such rows out.
EMPTY_ANSWER = "has an empty answer"

#: Fields that switch the training of a message on or off, from OpenAI, Axolotl and ms-swift.
SWITCHES = ("weight", "train", "training", "trained", "loss", "loss_mask")

#: Fields of a message that hold the thought before the answer.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")

#: Fields of a message that are used with or without a chat template.
KNOWN_FIELDS = frozenset(
    ("role", "content", "from", "value", "name", "tool_calls", "function_call", *THOUGHTS, *SWITCHES)
)

#: Prefix of the name of a field of a message's function calls.
OF_CALLS = "tool_calls[]."

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
    """The reason why a row is not a conversation. The caller adds the row's place."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a conversation.

    `calls` are function calls: `{"name": ..., "arguments": ...}`. `further` are the message's other fields, which a
    chat template gets unchanged: `name`, `tool_call_id`, `reasoning_content`, and `tool_calls` with their ids. An
    answer that is not `is_trained` is context.
    """

    role: Role
    text: str
    calls: tuple[Mapping[str, Any], ...] = ()
    further: Mapping[str, Any] = field(default_factory=dict)
    is_trained: bool = True

    @property
    def thought(self) -> str:
        """The assistant's thought before its answer."""
        thoughts = (self.further.get(name) for name in THOUGHTS)
        return next((text for text in thoughts if isinstance(text, str) and text.strip()), "")

    @property
    def plain(self) -> str:
        """The thought between the usual marks, then the text, then each call as a line of JSON."""
        if not self.further and not self.calls:
            return self.text
        thought = f"<think>\n{self.thought}\n</think>\n\n" if self.thought else ""
        lines = [self.text] if self.text else []
        return thought + "\n".join(lines + [json.dumps(call, ensure_ascii=False) for call in self.calls])

    @property
    def message(self) -> dict[str, Any]:
        """The turn as a message for a chat template."""
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.calls:
            message["tool_calls"] = [{"type": "function", "function": dict(call)} for call in self.calls]
        return {**message, **self.further}


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Turns in order, and the functions that may be called (as JSON schemas)."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def answers(self) -> tuple[int, ...]:
        """Positions of the trained assistant turns, without a greeting that opens the conversation."""
        return tuple(i for i in self.replies if self.turns[i].is_trained)

    @property
    def replies(self) -> tuple[int, ...]:
        """Positions of the assistant turns that answer something, trained or not."""
        first = next(
            (i for i, turn in enumerate(self.turns) if turn.role in ("user", "tool")), len(self.turns)
        )
        return tuple(i for i, turn in enumerate(self.turns) if turn.role == "assistant" and i > first)


def fields_of(message: Mapping[str, Any]) -> Iterator[str]:
    """A message's filled fields, and the fields of its function calls that not every call has."""
    yield from (key for key, value in message.items() if value is not None)
    for call in objects_in(message.get("tool_calls")):
        for part in (call, *objects_in([call.get("function")])):
            further = part.keys() - {"type", "function", "name", "arguments"}
            yield from (f"{OF_CALLS}{key}" for key in further if part[key] is not None)


def without_field(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The message without a field; `name` is as in `fields_of`."""
    if not name.startswith(OF_CALLS):
        return {key: value for key, value in message.items() if key != name}
    key = name.removeprefix(OF_CALLS)
    calls = [_without_key(call, key) for call in objects_in(message.get("tool_calls"))]
    return {**message, **({"tool_calls": calls} if calls else {})}


def _without_key(call: Mapping[str, Any], name: str) -> dict[str, Any]:
    kept = {key: value for key, value in call.items() if key != name}
    function = kept.get("function")
    return {**kept, "function": _without_key(function, name)} if isinstance(function, dict) else kept


def objects_in(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a list; empty if the value is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def from_messages(values: Mapping[str, Any]) -> Conversation:
    """The conversation in `{"messages": [{"role", "content", "tool_calls"?, ...}], "system"?, "tools"?}`.

    Raises:
        ConversationError: the values have another shape; it says what is wrong.
    """
    turns = [message_turn(message) for message in _turn_list(values.get("messages"), "messages")]
    return _checked(turns, values)


def from_sharegpt(values: Mapping[str, Any]) -> Conversation:
    """The conversation in `{"conversations": [{"from", "value", ...}], "system"?, "tools"?}`.

    Raises:
        ConversationError: the values have another shape; it says what is wrong.
    """
    turns = [_sharegpt_turn(turn) for turn in _turn_list(values.get("conversations"), "conversations")]
    return _checked(turns, values)


def _checked(turns: list[Turn], values: Mapping[str, Any]) -> Conversation:
    _put_system_first(turns, values.get("system") or "")
    conversation = Conversation(turns=tuple(turns), tools=_tools(values.get("tools")))
    if not conversation.replies:
        raise ConversationError("has no assistant turn that follows a user turn")
    if not conversation.answers:
        raise ConversationError("has no answer that is trained: every one is turned off")
    for i in conversation.answers:
        if not turns[i].plain.strip():
            raise ConversationError(EMPTY_ANSWER)
    return conversation


def _put_system_first(turns: list[Turn], system: str) -> None:
    """Put the row's system prompt before the turns. Most chat templates refuse a second system turn."""
    if not system.strip():
        return
    if turns[0].role != "system":
        turns.insert(0, Turn(role="system", text=system))
    elif turns[0].text.strip() != system.strip():
        raise ConversationError("has a system turn and another system prompt beside it; keep one")


def _turn_list(value: object, column: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise ConversationError(f"{column!r} is not a list of turns")
    return value


def message_turn(message: Mapping[str, Any]) -> Turn:
    """The turn in `{"role", "content", "tool_calls"?, ...}`.

    Raises:
        ConversationError: the message has another shape.
    """
    calls = _wrapped_calls(message.get("tool_calls") or message.get("function_call"))
    content = message.get("content")
    role = _role(message.get("role"))
    return Turn(
        role=role,
        text="" if content is None and calls else _string(content, "content"),
        calls=tuple(_call(call["function"]) for call in calls),
        further=_further(
            message, known=("role", "content", "tool_calls", "function_call", *SWITCHES), calls=calls
        ),
        is_trained=_is_trained(message, role),
    )


def _wrapped_calls(value: object) -> list[dict[str, Any]]:
    """The calls in the chat format, otherwise unchanged.

    The format is `{"id"?, "type": "function", "function": {...}}`.
    """
    calls = value if isinstance(value, list) else [value] if value else []
    return [
        call if isinstance(call, dict) and "function" in call else {"type": "function", "function": call}
        for call in calls
    ]


def _sharegpt_turn(turn: Mapping[str, Any]) -> Turn:
    text = _string(turn.get("value"), "value")
    role = _role(turn.get("from"))
    calls = _parsed_calls(text) if turn.get("from") == "function_call" else ()
    return Turn(
        role=role,
        text="" if calls else text,
        calls=calls,
        further=_further(turn, known=("from", "value", *SWITCHES)),
        is_trained=_is_trained(turn, role),
    )


def _further(
    message: Mapping[str, Any], *, known: Sequence[str], calls: Sequence[Mapping[str, Any]] = ()
) -> Mapping[str, Any]:
    further = {key: value for key, value in message.items() if key not in known}
    return further | {"tool_calls": list(calls)} if calls else further


def _is_trained(message: Mapping[str, Any], role: Role) -> bool:
    """Whether the message is trained: no field turns it off.

    Raises:
        ConversationError: a field is neither on nor off, or turns on a turn that is never trained.
    """
    if message.keys().isdisjoint(SWITCHES):
        return True
    settings = {name: message[name] for name in SWITCHES if name in message}
    for name, value in settings.items():
        if switch(value) is None:
            raise ConversationError(
                f"has a turn whose {name!r} is {shown(value)}; 0 (or false) makes an answer context, 1 (or true) trains it, "
                "and nothing between is known"
            )
        if switch(value) and role != "assistant":
            raise ConversationError(
                f"has a turn by the {role} with {name!r}: {shown(value)}; only answers are trained, so remove it there"
            )
    return all(switch(value) for value in settings.values())


def _parsed_calls(text: str) -> tuple[Mapping[str, Any], ...]:
    """The calls in the text; empty if it is not JSON with a function name. Then it stays text."""
    value = parsed_or_none(text)
    calls: list[Any] = value if isinstance(value, list) else [value]
    if any(not isinstance(call, dict) or "name" not in call for call in calls):
        return ()
    return tuple(_call(call) for call in calls)


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


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """The question and answer of a row. Missing parts are empty.

    `history` are earlier turns; all of them are context, answers included. `choices` are pairs of a letter and a text.
    `separator` stands between question and answer if no chat template marks the end of the question.
    """

    prompt: str
    answer: str
    system: str = ""
    history: tuple[Turn, ...] = ()
    context: str = ""
    input: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    separator: str = ""

    @property
    def listed_choices(self) -> str:
        """The choices, one a line: `A. Paris`."""
        return "\n".join(f"{letter}. {text}" for letter, text in self.choices)

    @property
    def question(self) -> str:
        """The whole question as one text: context, prompt, input and choices, with blank lines between them.

        White space at the prompt's end stays at the end: without a chat template it separates question and answer.
        """
        body = self.prompt.rstrip()
        end = self.prompt[len(body) :]
        parts = (self.context, body, self.input, self.listed_choices)
        return "\n\n".join(part for part in parts if part.strip()) + end

    @property
    def stripped(self) -> "Instruction":
        """The same without white space around prompt and answer, which separates them where they are joined."""
        return replace(self, prompt=self.prompt.strip(), answer=self.answer.strip())

    @property
    def conversation(self) -> Conversation:
        """The row as turns. Only the last one is trained."""
        turns = [Turn(role="system", text=self.system)] if self.system.strip() else []
        turns += self.history
        turns.append(Turn(role="user", text=self.question))
        turns.append(Turn(role="assistant", text=self.answer))
        return Conversation(turns=tuple(turns))


def instruction_from(values: Mapping[str, Any], *, prompt: str, answer: str) -> Instruction:
    """The instruction in a row's values; `prompt` and `answer` name the keys of the two parts.

    Raises:
        ConversationError: the answer is the number of a choice, or history or choices have an unknown shape.
    """
    choices = _choices(values.get("choices"))
    _refuse_number_of_choice(values[answer], choices)
    return Instruction(
        prompt=values[prompt],
        answer=values[answer],
        system=values.get("system") or "",
        history=_history(values.get("history")),
        context=values.get("context") or "",
        input=values.get("input") or "",
        choices=choices,
        separator=values.get("separator") or "",
    )


def _history(value: object) -> tuple[Turn, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    turns = [turn for item in items for turn in _earlier(item)]
    return tuple(replace(turn, is_trained=False) for turn in turns)


def _earlier(item: Any) -> tuple[Turn, ...]:
    """The turns of one entry of a history: a pair of question and answer, or a message."""
    match item:
        case [str() as question, str() as answer]:
            return Turn(role="user", text=question), Turn(role="assistant", text=answer)
        case {"role": _, "content": _}:
            return (message_turn(item),)
    raise ConversationError("has a 'history' that is neither pairs [question, answer] nor messages")


def _choices(value: object) -> tuple[tuple[str, str], ...]:
    """Lettered texts: a list, an object of letters and texts, or ARC's `{"label": [...], "text": [...]}`."""
    if value is None:
        return ()
    if isinstance(value, dict) and {"label", "text"} == value.keys():
        labels, texts = value["label"], value["text"]
    elif isinstance(value, dict):
        labels, texts = list(value), list(value.values())
    else:
        labels, texts = None, value
    texts = [text_of(text) for text in texts] if isinstance(texts, list) else [None]
    labels = (
        list(string.ascii_uppercase[: len(texts)]) if labels is None else [text_of(label) for label in labels]
    )
    if None in texts or None in labels or len(labels) != len(texts):
        raise ConversationError("has 'choices' that are not a list of texts, each with its letter")
    return tuple(zip(labels, texts, strict=True))


def _refuse_number_of_choice(answer: str, choices: tuple[tuple[str, str], ...]) -> None:
    """Refuse an answer that is the number of a choice.

    It may count from 0 or from 1, and the prompt shows letters.
    """
    known = {text.strip() for choice in choices for text in choice}
    if choices and answer.strip().isdigit() and answer.strip() not in known:
        raise ConversationError(
            f"answers its choices by the number {answer.strip()}; write the letter or the text of the choice as the answer"
        )
