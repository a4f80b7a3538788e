"""A question with its answer, as rows of `alpaca` and `prompt_completion` have it, and what may stand beside the two."""

import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorastudy.data.conversations import Conversation, ConversationError, Turn, message_turn
from lorastudy.data.values import text_of


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What a row asks and answers; parts that it lacks are empty.

    `history` are earlier turns, which are context here, their answers too. `choices` are pairs of a letter and a
    text. `separator` stands between question and answer where no chat template says how one ends.
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
        """The choices, a line for each: `A. Paris`."""
        return "\n".join(f"{letter}. {text}" for letter, text in self.choices)

    @property
    def question(self) -> str:
        """All that is asked, in one text: context, prompt, input and choices, with blank lines between them.

        White space at the prompt's end stays at the end: where no chat template does, it parts question and answer.
        """
        body = self.prompt.rstrip()
        end = self.prompt[len(body) :]
        parts = (self.context, body, self.input, self.listed_choices)
        return "\n\n".join(part for part in parts if part.strip()) + end

    @property
    def stripped(self) -> "Instruction":
        """The same without the white space around prompt and answer, which parts them where they are joined."""
        return replace(self, prompt=self.prompt.strip(), answer=self.answer.strip())

    @property
    def conversation(self) -> Conversation:
        """The row as turns, of which the last is trained."""
        turns = [Turn(role="system", text=self.system)] if self.system.strip() else []
        turns += self.history
        turns.append(Turn(role="user", text=self.question))
        turns.append(Turn(role="assistant", text=self.answer))
        return Conversation(turns=tuple(turns))


def instruction_from(values: Mapping[str, Any], *, prompt: str, answer: str) -> Instruction:
    """The instruction in a row's values; `prompt` and `answer` name the parts that hold the two.

    Raises:
        ConversationError: the answer is a choice's number, or history or choices are of no known shape.
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
    """Refuse an answer that counts the choices: whether from 0 or from 1 nobody says, and the prompt has letters."""
    known = {text.strip() for choice in choices for text in choice}
    if choices and answer.strip().isdigit() and answer.strip() not in known:
        raise ConversationError(
            f"answers its choices by the number {answer.strip()}; write the letter or the text of the choice as the answer"
        )
