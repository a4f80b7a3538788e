"""What the columns of a data set mean: five formats, recognised by column names and never guessed.

alpaca             instruction, input (optional), output
messages           messages: [{role, content}], tools (optional)
sharegpt           conversations: [{from, value}], system and tools (optional)
prompt_completion  prompt, completion, or a usual pair of names such as question, answer
text               text; all of it is trained (for perplexity and forgetting)
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorastudy.data.conversations import (
    EMPTY_ANSWER,
    Conversation,
    ConversationError,
    from_messages,
    from_sharegpt,
)
from lorastudy.data.sources import Row
from lorastudy.errors import DataError
from lorastudy.spec.wording import shown

FormatName = Literal["alpaca", "messages", "sharegpt", "prompt_completion", "text"]

_PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("input", "target"),
    ("source", "target"),
    ("problem", "solution"),
)
_NUM_SHOWN = 5
_MAX_COLUMNS, _MAX_NAME = 20, 40


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format, and which of the data set's columns plays which part (canonical name -> the column's name)."""

    name: FormatName
    columns: Mapping[str, str]

    def values(self, row: Row) -> dict[str, Any]:
        """The row's values under the canonical names; columns that the format has no use for are left out."""
        return {part: row.values[column] for part, column in self.columns.items() if column in row.values}

    def conversation(self, row: Row) -> Conversation:
        """The row of a `messages` or `sharegpt` data set as a conversation.

        Raises:
            ConversationError: the row is not of that shape.
        """
        assert self.name in ("messages", "sharegpt")
        read = from_messages if self.name == "messages" else from_sharegpt
        return read(self.values(row))


def recognise(
    rows: Sequence[Row], *, prompt_column: str | None = None, completion_column: str | None = None
) -> Format:
    """The format of the rows; every row is checked against it.

    Raises:
        DataError: unknown or ambiguous columns, or rows that lack what the format needs.
    """
    found = detect(rows, prompt_column=prompt_column, completion_column=completion_column)
    check(rows, found)
    return found


def detect(
    rows: Sequence[Row], *, prompt_column: str | None = None, completion_column: str | None = None
) -> Format:
    """The format that the column names tell (their case does not matter); the rows are not checked.

    Raises:
        DataError: the columns fit no format, or more than one pair of names.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    if prompt_column or completion_column:
        return _named_pair(columns, prompt_column, completion=completion_column)
    names = _by_name(columns)
    found = _conversation_format(names) or _alpaca(names) or _pair(names, columns)
    if found is None and "text" in names:
        found = Format(name="text", columns={"text": names["text"]})
    if found is None:
        raise DataError(_unknown(columns))
    _refuse_near_misses(found, columns)
    return found


def _by_name(columns: Sequence[str]) -> dict[str, str]:
    """The columns by the name that counts; two that differ in case or white space would hide one another."""
    names: dict[str, str] = {}
    for column in columns:
        other = names.setdefault(column.strip().lower(), column)
        if other != column:
            raise DataError(
                f"columns {shown(other)} and {shown(column)} differ in case or white space alone; rename or remove one"
            )
    return names


def _refuse_near_misses(fmt: Format, columns: Sequence[str]) -> None:
    """An optional part under a misspelt name would be left out of every prompt in silence."""
    unused = [column for column in columns if column not in fmt.columns.values()]
    for part in _OPTIONAL.get(fmt.name, ()):
        near = difflib.get_close_matches(part, unused, n=1, cutoff=0.8) if part not in fmt.columns else []
        if near:
            raise DataError(
                f"column {shown(near[0])} is not used by the format {fmt.name}; is it meant as {part!r}? "
                "Rename it so, or remove it"
            )


def check(rows: Sequence[Row], fmt: Format) -> None:
    """Nothing, when every row has what the format needs.

    Raises:
        DataError: names the first rows that do not, and says how many there are.
    """
    bad = [f"{row.where}: {problem}" for row in rows if (problem := _problem(row, fmt))]
    if bad:
        more = f"\n... and {len(bad) - _NUM_SHOWN} more" if len(bad) > _NUM_SHOWN else ""
        listing = "\n".join(bad[:_NUM_SHOWN])
        raise DataError(f"{len(bad)} of {len(rows)} rows are not usable as {fmt.name}:\n{listing}{more}")


def asks_nothing(row: Row, fmt: Format) -> bool:
    """Whether a checked row's prompt is blank; of a conversation, whatever stands before its first answer."""
    values = fmt.values(row)
    if fmt.name == "text":
        return False
    if fmt.name in ("messages", "sharegpt"):
        conversation = fmt.conversation(row)
        asked = [
            turn.plain for turn in conversation.turns[: conversation.answers[0]] if turn.role != "system"
        ]
    else:
        asked = [values.get(part) or "" for part in ("instruction", "input", "prompt")]
    return not any(text.strip() for text in asked)


def without_empty_answers(rows: Sequence[Row], fmt: Format) -> list[Row]:
    """The rows whose answer is not blank. Published sets have a few such rows (the original Alpaca has)."""
    return [row for row in rows if _problem(row, fmt) != EMPTY_ANSWER]


def _conversation_format(names: Mapping[str, str]) -> Format | None:
    if "messages" in names:
        return Format(name="messages", columns=_present(names, ("messages", "tools")))
    if "conversations" in names:
        return Format(name="sharegpt", columns=_present(names, ("conversations", "system", "tools")))
    return None


def _alpaca(names: Mapping[str, str]) -> Format | None:
    if {"instruction", "output"} <= names.keys():
        return Format(name="alpaca", columns=_present(names, ("instruction", "input", "output")))
    # Dolly's names for the same thing. Without the third column it is an ordinary pair.
    if {"instruction", "context", "response"} <= names.keys():
        dolly = {"instruction": "instruction", "input": "context", "output": "response"}
        return Format(name="alpaca", columns={part: names[column] for part, column in dolly.items()})
    return None


def _present(names: Mapping[str, str], parts: Sequence[str]) -> dict[str, str]:
    return {part: names[part] for part in parts if part in names}


def _pair(names: Mapping[str, str], columns: Sequence[str]) -> Format | None:
    pairs = [(names[p], names[c]) for p, c in _PAIRS if p in names and c in names]
    if not pairs:
        return None
    if len(pairs) > 1:
        raise DataError(
            f"columns {_listed(columns)}: more than one pair could be prompt and answer "
            f"({'; '.join(' -> '.join(pair) for pair in pairs)}). {_HOW_TO_NAME}"
        )
    return Format(name="prompt_completion", columns={"prompt": pairs[0][0], "completion": pairs[0][1]})


def _named_pair(columns: Sequence[str], prompt: str | None, *, completion: str | None) -> Format:
    if prompt is None or completion is None:
        raise DataError("--prompt-column and --completion-column go together; give both")
    if prompt == completion:
        raise DataError(
            f"--prompt-column and --completion-column both name {prompt!r}: every answer would stand in its own prompt; "
            "name two columns"
        )
    for column in (prompt, completion):
        if column not in columns:
            raise DataError(f"no column {column!r}; the columns are {_listed(columns)}")
    return Format(name="prompt_completion", columns={"prompt": prompt, "completion": completion})


_HOW_TO_NAME = "Say which columns to use: `lorastudy prepare --dataset FILE --prompt-column NAME --completion-column NAME`"


def _listed(columns: Sequence[str]) -> str:
    """The first column names, none of them longer than a message can bear."""
    names = [name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..." for name in columns[:_MAX_COLUMNS]]
    more = f" and {len(columns) - _MAX_COLUMNS} more" if len(columns) > _MAX_COLUMNS else ""
    return ", ".join(names) + more or "(none)"


def _unknown(columns: Sequence[str]) -> str:
    return (
        f"columns {_listed(columns)}: not a known format. Known: alpaca (instruction, input, output), "
        "messages (messages), sharegpt (conversations), prompt_completion "
        f"({'; '.join(' and '.join(pair) for pair in _PAIRS[:5])}; ...), text (text). {_HOW_TO_NAME}"
    )


#: Columns that a format may do without.
_OPTIONAL: dict[FormatName, tuple[str, ...]] = {
    "alpaca": ("input",),
    "messages": ("tools",),
    "sharegpt": ("system", "tools"),
}
_NEEDED: dict[FormatName, tuple[str, ...]] = {
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}


def _problem(row: Row, fmt: Format) -> str | None:
    """What makes the row unusable, or None."""
    if fmt.name in ("messages", "sharegpt"):
        try:
            conversation = fmt.conversation(row)
        except ConversationError as error:
            return str(error)
        return _broken_text([turn.plain for turn in conversation.turns])
    needed = _NEEDED[fmt.name]
    values = fmt.values(row)
    for part in needed:
        if not isinstance(values.get(part), str):
            return f"{fmt.columns[part]!r} {_found(values, part)}"
    if not isinstance(values.get("input"), str | None):
        return f"{fmt.columns['input']!r} {_found(values, 'input')}"
    if not values[needed[-1]].strip():
        return EMPTY_ANSWER
    return _broken_text([value for value in values.values() if value])


def _found(values: Mapping[str, Any], part: str) -> str:
    if values.get(part) is None:
        return "is missing"
    return f"is {type(values[part]).__name__}, not text"


def _broken_text(texts: Sequence[str]) -> str | None:
    """JSON can spell half a surrogate pair, which is no character: no tokenizer and no file takes it."""
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is not text"
    return "holds a NUL character, which is not text" if any("\0" in text for text in texts) else None
