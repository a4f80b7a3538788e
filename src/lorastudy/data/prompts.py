"""The text of a row, cut into segments that are trained and segments that are not.

Only answers are trained. This module alone decides where a prompt ends and its answer begins, and it decides in text.

If the model has a chat template, it lays out conversations. A template is a program that turns messages into one text.
Templates with `{% generation %}` mark the parts that the model answers, and those parts are trained. Most templates
have no such marks. Then the conversation is rendered again and again, each time a little longer. The text that the
template writes before an answer (with `add_generation_prompt`, as at inference) is a prefix of the whole text, and so
is the text up to the end of that answer. The difference is the answer with its end mark.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from lorastudy.data.conversations import (
    KNOWN_FIELDS,
    Conversation,
    ConversationError,
    Instruction,
    Turn,
    fields_of,
    without_field,
)
from lorastudy.data.formats import Format
from lorastudy.data.sources import Row
from lorastudy.errors import DataError
from lorastudy.suite.settings import PromptFormat

Layout = Literal["chat", "alpaca", "plain", "text"]
"""The layout of a row: the model's chat template, Alpaca's prompt, plain headings or none, or no prompt at all."""

Message = dict[str, Any]

#: Stanford Alpaca's two prompts, word for word (github.com/tatsu-lab/stanford_alpaca).
_ALPACA = (
    "Below is an instruction that describes a task{paired}. "
    "Write a response that appropriately completes the request."
    "\n\n{history}### Instruction:\n{instruction}\n\n{input}### Response:\n"
)

_PAIRED = ", paired with an input that provides further context"

_HEADINGS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}

#: The errors of a template, which is somebody else's program.
_OF_A_PROGRAM = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)

_REWRITES = "the model's chat template rewrites earlier turns, so its answers cannot be told apart"

#: Every conversation needs these fields of a message.
_ALWAYS_SHOWN = ("role", "content", "tool_calls")

#: An answer that no template has a reason to change.
_SAMPLE = "A1b2C3"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of text. The loss covers its tokens only if it is `trained`.

    `end` names what ends an answer besides its own text: nothing, the EOS token, or the next special token, for
    templates in which the mark of the next role ends a turn. Either token is trained with the answer.
    """

    text: str
    trained: bool
    end: Literal["", "eos", "next"] = ""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A row's text as consecutive segments, with nothing between them, and the layout that made it.

    `fell_back` is true if the chat template ignores functions, so the row gives them to it as text. `preamble` is the
    text that the template writes by itself, such as a default system prompt. `date` is the template's date of today.
    """

    segments: tuple[Segment, ...]
    layout: Layout
    fell_back: bool = False
    unseen: tuple[str, ...] = ()
    """Fields of the row's messages that the text does not show."""
    preamble: str | None = None
    date: str | None = None


@dataclass(frozen=True, kw_only=True)
class Example:
    """A row with its rendering. Both hashes depend on the row's texts, not on how a model renders them."""

    row: Row
    format: Format
    rendering: Rendering
    content_hash: str
    prompt_hash: str

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The rendered text."""
        return self.rendering.segments


@dataclass(frozen=True, kw_only=True, eq=False)
class ChatTemplate:
    """A model's chat template as functions; `engine.chat_template` makes one from a tokenizer.

    `render` takes messages, and by keyword `tools` and `add_generation_prompt` (whether to write the text that precedes
    an answer), like `tokenizer.apply_chat_template`, and returns the text. `generated` is set for templates with `{%
    generation %}` marks: it takes messages and `tools`, and returns where in the text the marked parts begin and end.
    `date` stands for today's date, if the template writes one.
    """

    render: Callable[..., str]
    generated: Callable[..., Sequence[tuple[int, int]]] | None = None
    date: str | None = None


@dataclass(frozen=True, kw_only=True)
class PromptStyle:
    """How rows are laid out: the requested format, and the model's chat template if it has one."""

    prompt_format: PromptFormat = "auto"
    chat_template: ChatTemplate | None = None

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template, if this style uses it."""
        return self.chat_template if self.prompt_format in ("auto", "chat") else None


#: The layout without any model.
WITHOUT_MODEL = PromptStyle()


def render(row: Row, fmt: Format, *, style: PromptStyle = WITHOUT_MODEL) -> Rendering:
    """The row's text as consecutive segments, with nothing between them.

    The model's chat template lays out every row but plain text, unless the model has none or the style requests another
    layout. Without a template, Alpaca rows get Alpaca's prompt and conversations get plain headings; the turns after
    the last answer are left out, because no token of them is trained or read. A prompt and its completion are joined
    unchanged, as in `trl`, or with the row's separator. No space is added: it would change the tokens of data sets that
    bring their own. A chat template ignores the separator.

    Raises:
        DataError: the chat template cannot render the row.
    """
    if fmt.name == "text":
        return Rendering(
            segments=(Segment(text=fmt.values(row)["text"], trained=True, end="eos"),), layout="text"
        )
    if fmt.name in ("alpaca", "prompt_completion"):
        instruction = fmt.instruction(row)
        if style.template is None:
            return _instruction_layout(instruction, fmt, prompt_format=style.prompt_format)
        conversation = instruction.stripped.conversation
    else:
        conversation = fmt.conversation(row)
    if style.template is None:
        unseen = unseen_fields(conversation, chat_template=None)
        return Rendering(segments=_plain_layout(conversation), layout="plain", unseen=unseen)
    try:
        rendering = render_chat(conversation, chat_template=style.template)
        unseen = unseen_fields(conversation, chat_template=style.template, fell_back=rendering.fell_back)
        return replace(rendering, unseen=unseen)
    except ConversationError as error:
        raise DataError(f"{row.where}: {error}") from error


def _instruction_layout(instruction: Instruction, fmt: Format, *, prompt_format: PromptFormat) -> Rendering:
    """A prompt and its answer without a chat template: in Alpaca's prompt, or joined."""
    is_alpaca = fmt.name == "alpaca" if prompt_format in ("auto", "chat") else prompt_format == "alpaca"
    if is_alpaca:
        return Rendering(
            segments=_prompt_and_answer(alpaca_prompt(instruction), instruction.answer), layout="alpaca"
        )
    prompt = plain_prompt(instruction)
    if fmt.name == "alpaca" and not prompt[-1:].isspace():
        prompt += "\n\n"  # such rows bring no separator of their own
    return Rendering(segments=_prompt_and_answer(prompt, instruction.answer), layout="plain")


def _prompt_and_answer(prompt: str, answer: str) -> tuple[Segment, ...]:
    return Segment(text=prompt, trained=False), Segment(text=answer, trained=True, end="eos")


def plain_prompt(instruction: Instruction) -> str:
    """The text before a completion: system prompt, history, question and separator.

    Blank lines stand between the first three. Choices come last in the question. They end with a line break if there is
    no separator.
    """
    earlier = [turn.plain.strip() + ("\n" if turn.role == "user" else "\n\n") for turn in instruction.history]
    top = f"{instruction.system.strip()}\n\n" if instruction.system else ""
    text = f"{top}{''.join(earlier)}{instruction.question}"
    glued = instruction.choices and not instruction.separator and not text[-1:].isspace()
    return text + instruction.separator + ("\n" if glued else "")


def alpaca_prompt(instruction: Instruction) -> str:
    """The text before an Alpaca row's answer.

    The system prompt is at the top, earlier turns follow under Alpaca's own headings, and context and choices are part
    of the input.
    """
    further = "\n\n".join(
        part for part in (instruction.context, instruction.input, instruction.listed_choices) if part
    )
    headings = {"user": "Instruction", "assistant": "Response"}
    earlier = [
        f"### {headings.get(turn.role, _HEADINGS[turn.role])}:\n{turn.plain.strip()}\n\n"
        for turn in instruction.history
    ]
    top = f"{instruction.system.strip()}\n\n" if instruction.system else ""
    return top + _ALPACA.format(
        paired=_PAIRED if further else "",
        history="".join(earlier),
        instruction=instruction.prompt,
        input=f"### Input:\n{further}\n\n" if further else "",
    )


def _plain_layout(conversation: Conversation) -> tuple[Segment, ...]:
    """Headings like Alpaca's: `### User:`, `### Assistant:`. Functions and calls are JSON. EOS ends each answer."""
    pending = ""
    if conversation.tools:
        pending = f"### Functions:\n{json.dumps(conversation.tools, ensure_ascii=False)}\n\n"
    answers = conversation.answers
    segments: list[Segment] = []
    for i, turn in enumerate(conversation.turns[: answers[-1] + 1]):
        name = turn.further.get("name")
        heading = f"### {_HEADINGS[turn.role]}{f' ({name})' if name else ''}:\n"
        if i in answers:
            segments += _prompt_and_answer(pending + heading, turn.plain)
            pending = "\n\n"
        else:
            pending += f"{heading}{turn.plain.strip()}\n\n"
    return tuple(segments)


def render_chat(conversation: Conversation, *, chat_template: ChatTemplate) -> Rendering:
    """The conversation up to its last answer. Every answer is trained, function calls included.

    The template renders function calls and tool turns. If it ignores them, they become text: the call is JSON, the tool
    turn is a user turn, and the functions are in the system turn.

    Raises:
        ConversationError: the template refuses the conversation, or changes text that it rendered before.
    """
    segments, fell_back = _segments_and_fallback(conversation, chat_template)
    return Rendering(
        segments=segments,
        layout="chat",
        fell_back=fell_back,
        preamble=_preamble(chat_template),
        date=chat_template.date,
    )


def _segments_and_fallback(
    conversation: Conversation, chat_template: ChatTemplate
) -> tuple[tuple[Segment, ...], bool]:
    if not _uses_functions(conversation):
        return _segments(conversation, chat_template), False
    try:
        segments = _segments(conversation, chat_template)
    except ConversationError:
        segments = ()
    if segments and _shows_functions(conversation, segments):
        return segments, False
    return _segments(_functions_as_text(conversation), chat_template), True


@dataclass(frozen=True, kw_only=True)
class _Renderer:
    """Renders the beginnings of one conversation with a template."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None
    chat_template: ChatTemplate

    def text(self, num_messages: int, *, add_generation_prompt: bool = False) -> str:
        """The text of the first `num_messages` messages."""
        with _its_refusals():
            return self.chat_template.render(
                self.messages[:num_messages], tools=self.tools, add_generation_prompt=add_generation_prompt
            )

    def generated(self, num_messages: int) -> Sequence[tuple[int, int]]:
        """The parts of that text that `{% generation %}` marks; empty if the template has no such marks."""
        if self.chat_template.generated is None:
            return ()
        with _its_refusals():
            return self.chat_template.generated(self.messages[:num_messages], tools=self.tools)


@contextmanager
def _its_refusals() -> Iterator[None]:
    from jinja2 import TemplateError

    try:
        yield
    except (TemplateError, *_OF_A_PROGRAM) as error:
        raise ConversationError(f"the model's chat template refuses it: {error}") from error


def _segments(conversation: Conversation, chat_template: ChatTemplate) -> tuple[Segment, ...]:
    answers = conversation.answers
    messages = [turn.message for turn in conversation.turns]
    renderer = _Renderer(messages=messages, tools=conversation.tools or None, chat_template=chat_template)
    whole = renderer.text(answers[-1] + 1)
    marked = renderer.generated(answers[-1] + 1)
    if marked:
        return _marked_segments(whole, marked, conversation=conversation)
    own_end = _own_end(chat_template)
    segments: list[Segment] = []
    position = 0
    for i in answers:
        start = _start(whole, i, renderer=renderer)
        if start < position:
            raise ConversationError(_REWRITES)
        as_last = renderer.text(i + 1)
        if not as_last.startswith(whole[:start]):
            raise ConversationError(_REWRITES)
        answer = _answer(whole[start:], as_last[start:], turn=conversation.turns[i])
        has_own_end = bool(own_end) and answer.rstrip().endswith(own_end)
        text = answer.rstrip() if has_own_end else answer
        segments.append(Segment(text=whole[position:start], trained=False))
        segments.append(Segment(text=text, trained=True, end="" if has_own_end else "next"))
        position = start + len(text)
    return _with_rest(segments, whole[position:])


def _start(whole: str, i: int, *, renderer: _Renderer) -> int:
    """Where the answer of message `i` begins.

    It begins after the text that asks for it. If that text opens a thought (`<think>`) which the rendered answer does
    not have, the answer begins where the mark that opens the thought would be.
    """
    before = renderer.text(i, add_generation_prompt=True)
    if whole.startswith(before):
        return len(before)
    asked = renderer.text(i)
    shared = sum(1 for _ in itertools.takewhile(bool, map(str.__eq__, whole, before)))
    marks = [match.start() for match in re.finditer(r"[<\[]", before)]
    opened = [mark for mark in marks if len(asked) < mark <= shared]
    if not opened or not before.startswith(asked):
        raise ConversationError(_REWRITES)
    return opened[-1]


@functools.cache
def _own_end(chat_template: ChatTemplate) -> str:
    """The text that the template writes after an answer, without white space; empty if the next role's mark ends it."""
    messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": _SAMPLE}]
    renderer = _Renderer(messages=messages, tools=None, chat_template=chat_template)
    try:
        _, found, after = renderer.text(2).rpartition(_SAMPLE)
    except ConversationError:
        return ""
    return after.strip() if found else ""


@functools.cache
def _preamble(chat_template: ChatTemplate) -> str | None:
    """The text that the template writes before a first question but not before a second; None if it has only marks."""
    turns = [("user", _SAMPLE), ("assistant", "A"), ("user", _SAMPLE)]
    messages = [{"role": role, "content": text} for role, text in turns]
    renderer = _Renderer(messages=messages, tools=None, chat_template=chat_template)
    try:
        first, _, _ = renderer.text(1).partition(_SAMPLE)
        second, _, _ = renderer.text(3).rpartition(_SAMPLE)
    except ConversationError:
        return None
    num_shared = sum(1 for _ in itertools.takewhile(bool, map(str.__eq__, reversed(first), reversed(second))))
    own = first[: len(first) - num_shared]
    return own.strip() if re.sub(r"<[^>]*>|\[[^\]]*\]", "", own).strip() else None


def _marked_segments(
    whole: str, marked: Sequence[tuple[int, int]], *, conversation: Conversation
) -> tuple[Segment, ...]:
    """Segments from the template's marks. A turn that answers nothing, such as an opening greeting, is not trained."""
    answers = conversation.answers
    speaking = [i for i, turn in enumerate(conversation.turns[: answers[-1] + 1]) if turn.role == "assistant"]
    if len(speaking) == len(marked):
        marked = [span for i, span in zip(speaking, marked, strict=True) if i in answers]
    segments: list[Segment] = []
    position = 0
    for start, end in marked:
        segments.append(Segment(text=whole[position:start], trained=False))
        segments.append(Segment(text=whole[start:end], trained=True))
        position = end
    return _with_rest([segment for segment in segments if segment.text], whole[position:])


def _with_rest(segments: list[Segment], rest: str) -> tuple[Segment, ...]:
    """The segments, and the text that the template writes after the last answer.

    The answer's last token may extend into that text.
    """
    return (*segments, *([Segment(text=rest, trained=False)] if rest else []))


def _answer(rest: str, as_last: str, *, turn: Turn) -> str:
    """The longest suffix of `as_last` with which `rest` begins.

    `as_last` is the answer as rendered while it was the last turn, and usually it is the result. Templates of reasoning
    models write an (empty) thought before the last answer only, and remove it once the conversation goes on. Then the
    suffix is the part without the thought.
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


def unseen_fields(
    conversation: Conversation, *, chat_template: ChatTemplate | None, fell_back: bool = False
) -> tuple[str, ...]:
    """The filled fields of the messages that the rendered text does not show.

    A template shows a field if the text changes, or fails, without it. Without a template, and where functions become
    text, the written fields are known.
    """
    messages = [turn.message for turn in conversation.turns[: conversation.answers[-1] + 1]]
    fields = dict.fromkeys(field for message in messages for field in fields_of(message))
    if chat_template is None or fell_back:
        written = KNOWN_FIELDS if chat_template is None else KNOWN_FIELDS - {"name"}
        return tuple(field for field in fields if field not in written)
    tools = conversation.tools or None
    whole = _Renderer(messages=messages, tools=tools, chat_template=chat_template).text(len(messages))

    def shows(field: str) -> bool:
        without = [without_field(message, field) for message in messages]
        renderer = _Renderer(messages=without, tools=tools, chat_template=chat_template)
        try:
            return renderer.text(len(messages)) != whole
        except ConversationError:
            return True

    return tuple(field for field in fields if field not in _ALWAYS_SHOWN and not shows(field))


def _uses_functions(conversation: Conversation) -> bool:
    return bool(conversation.tools) or any(turn.calls or turn.role == "tool" for turn in conversation.turns)


def _shows_functions(conversation: Conversation, segments: Sequence[Segment]) -> bool:
    """Whether the text shows every function and call. Templates that ignore functions drop them silently.

    The check looks for words, not whole texts, because some templates write a tool's result as a JSON string.
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
