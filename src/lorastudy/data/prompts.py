"""The text that a row becomes, cut into segments that are trained and segments that are not.

Loss only on answers. Where the prompt ends and the answer begins is decided here, in text, and nowhere else.
"""

import json
from dataclasses import dataclass, replace

from lorastudy.data.chat import ChatTemplate, render_chat, unseen_fields
from lorastudy.data.conversations import Conversation, ConversationError
from lorastudy.data.examples import Rendering, Segment
from lorastudy.data.formats import Format
from lorastudy.data.instructions import Instruction
from lorastudy.data.sources import Row
from lorastudy.errors import DataError
from lorastudy.suite.settings import PromptFormat

#: Stanford Alpaca's two prompts, word for word (github.com/tatsu-lab/stanford_alpaca).
_ALPACA = (
    "Below is an instruction that describes a task{paired}. "
    "Write a response that appropriately completes the request."
    "\n\n{history}### Instruction:\n{instruction}\n\n{input}### Response:\n"
)
_PAIRED = ", paired with an input that provides further context"

_HEADINGS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


@dataclass(frozen=True, kw_only=True)
class PromptStyle:
    """How rows are laid out: the format that is asked for, and the model's chat template, where it has one."""

    prompt_format: PromptFormat = "auto"
    chat_template: ChatTemplate | None = None

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template, where it is to be used."""
        return self.chat_template if self.prompt_format in ("auto", "chat") else None


#: Rows as they are without any model.
WITHOUT_MODEL = PromptStyle()


def render(row: Row, fmt: Format, *, style: PromptStyle = WITHOUT_MODEL) -> Rendering:
    """The row's text. Segments follow each other with nothing between them.

    The model's chat template lays out all but plain text, where it has one and the style does not ask for another
    layout. Without it Alpaca rows get Alpaca's prompt, and conversations a plain layout with headings; what follows the
    last answer is left out, as no token of it is trained or looked at. A prompt and its completion are joined as they are,
    as `trl` does, or with the row's separator: white space between them is the data's business, because a space added
    here would change the tokens of sets that bring their own. With a chat template it parts nothing and is left away.

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
        prompt += "\n\n"  # such rows never bring what parts them from their answer
    return Rendering(segments=_prompt_and_answer(prompt, instruction.answer), layout="plain")


def _prompt_and_answer(prompt: str, answer: str) -> tuple[Segment, ...]:
    return Segment(text=prompt, trained=False), Segment(text=answer, trained=True, end="eos")


def plain_prompt(instruction: Instruction) -> str:
    """What stands before a completion: system prompt, history and question, with blank lines between them, and the separator.

    Choices, which come last, end with a line break where nothing else parts them from the answer.
    """
    earlier = [turn.plain.strip() + ("\n" if turn.role == "user" else "\n\n") for turn in instruction.history]
    top = f"{instruction.system.strip()}\n\n" if instruction.system else ""
    text = f"{top}{''.join(earlier)}{instruction.question}"
    glued = instruction.choices and not instruction.separator and not text[-1:].isspace()
    return text + instruction.separator + ("\n" if glued else "")


def alpaca_prompt(instruction: Instruction) -> str:
    """What stands before an Alpaca row's answer: the system prompt at the top, earlier turns under Alpaca's own headings.

    Context and choices stand with the input.
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
    """Headings in the manner of Alpaca: `### User:`, `### Assistant:`; functions and calls as JSON. EOS ends each answer."""
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
