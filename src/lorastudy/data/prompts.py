"""The text that a row becomes, cut into segments that are trained and segments that are not.

Loss only on answers. Where the prompt ends and the answer begins is decided here, in text, and nowhere else.
"""

import json
from collections.abc import Mapping
from typing import Any

from lorastudy.data.chat import ChatTemplate, render_chat
from lorastudy.data.conversations import Conversation, ConversationError
from lorastudy.data.examples import Rendering, Segment
from lorastudy.data.formats import Format
from lorastudy.data.sources import Row
from lorastudy.errors import DataError

#: Stanford Alpaca's two prompts, word for word (github.com/tatsu-lab/stanford_alpaca).
_ALPACA = (
    "Below is an instruction that describes a task{paired}. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)
_PAIRED = ", paired with an input that provides further context"

_HEADINGS = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def render(row: Row, fmt: Format, *, chat_template: ChatTemplate | None = None) -> Rendering:
    """The row's text. Segments follow each other with nothing between them.

    Alpaca rows always get Alpaca's prompt. A prompt and its completion are joined as they are, as `trl` does:
    white space between them is the data's business, because a space added here would change the tokens of
    sets that bring their own. Conversations are rendered by the model's chat template where it has one, else
    in a plain layout; what follows the last answer is left out, as no token of it is trained or looked at.

    Raises:
        DataError: the chat template cannot render the row.
    """
    values = fmt.values(row)
    if fmt.name == "text":
        return Rendering(segments=(Segment(text=values["text"], trained=True, end="eos"),), layout="text")
    if fmt.name == "prompt_completion":
        return Rendering(segments=_prompt_and_answer(values["prompt"], values["completion"]), layout="plain")
    if fmt.name == "alpaca":
        return Rendering(
            segments=_prompt_and_answer(alpaca_prompt(values), values["output"]), layout="alpaca"
        )
    conversation = fmt.conversation(row)
    if chat_template is None:
        return Rendering(segments=_plain_layout(conversation), layout="plain")
    try:
        return render_chat(conversation, chat_template=chat_template)
    except ConversationError as error:
        raise DataError(f"{row.where}: {error}") from error


def _prompt_and_answer(prompt: str, answer: str) -> tuple[Segment, ...]:
    return Segment(text=prompt, trained=False), Segment(text=answer, trained=True, end="eos")


def alpaca_prompt(values: Mapping[str, Any]) -> str:
    """What stands before an Alpaca row's answer, with and without an input."""
    further = values.get("input")
    return _ALPACA.format(
        paired=_PAIRED if further else "",
        instruction=values["instruction"],
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
        heading = f"### {_HEADINGS[turn.role]}:\n"
        if i in answers:
            segments += _prompt_and_answer(pending + heading, turn.plain)
            pending = "\n\n"
        else:
            pending += f"{heading}{turn.plain.strip()}\n\n"
    return tuple(segments)
