"""The text that a row becomes, cut into segments that are trained and segments that are not.

Loss only on answers. Where the prompt ends and the answer begins is decided here, in text, and nowhere else.
"""

import json
from dataclasses import replace

from lorastudy.data.chat import ChatTemplate, render_chat, unseen_fields
from lorastudy.data.conversations import Conversation, ConversationError
from lorastudy.data.examples import Rendering, Segment
from lorastudy.data.formats import Format
from lorastudy.data.instructions import Instruction
from lorastudy.data.sources import Row
from lorastudy.errors import DataError

#: Stanford Alpaca's two prompts, word for word (github.com/tatsu-lab/stanford_alpaca).
_ALPACA = (
    "Below is an instruction that describes a task{paired}. "
    "Write a response that appropriately completes the request."
    "\n\n{history}### Instruction:\n{instruction}\n\n{input}### Response:\n"
)
_PAIRED = ", paired with an input that provides further context"

_HEADINGS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def render(row: Row, fmt: Format, *, chat_template: ChatTemplate | None = None) -> Rendering:
    """The row's text. Segments follow each other with nothing between them.

    Alpaca rows always get Alpaca's prompt. A prompt and its completion are joined as they are, as `trl` does, or with
    the row's separator: white space between them is the data's business, because a space added here would change
    the tokens of sets that bring their own. Conversations are rendered by the model's chat template where it has one, else
    in a plain layout; what follows the last answer is left out, as no token of it is trained or looked at.

    Raises:
        DataError: the chat template cannot render the row.
    """
    values = fmt.values(row)
    if fmt.name == "text":
        return Rendering(segments=(Segment(text=values["text"], trained=True, end="eos"),), layout="text")
    if fmt.name == "prompt_completion":
        instruction = fmt.instruction(row)
        segments = _prompt_and_answer(plain_prompt(instruction), instruction.answer)
        return Rendering(segments=segments, layout="plain")
    if fmt.name == "alpaca":
        instruction = fmt.instruction(row)
        segments = _prompt_and_answer(alpaca_prompt(instruction), instruction.answer)
        return Rendering(segments=segments, layout="alpaca")
    conversation = fmt.conversation(row)
    if chat_template is None:
        unseen = unseen_fields(conversation, chat_template=None)
        return Rendering(segments=_plain_layout(conversation), layout="plain", unseen=unseen)
    try:
        rendering = render_chat(conversation, chat_template=chat_template)
        unseen = unseen_fields(conversation, chat_template=chat_template, fell_back=rendering.fell_back)
        return replace(rendering, unseen=unseen)
    except ConversationError as error:
        raise DataError(f"{row.where}: {error}") from error


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
