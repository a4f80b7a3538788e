"""The meaning of a data set's columns: five formats, recognised by column names and never guessed.

alpaca             instruction, input (optional), output
messages           messages: [{role, content, ...}], system and tools (optional)
sharegpt           conversations: [{from, value, ...}], system and tools (optional)
prompt_completion  prompt, completion, or a usual pair of names such as question, answer
text               text; all of it is trained (for perplexity and forgetting)

The formats alpaca and prompt_completion allow a system prompt, a history, a context, an input, choices and a separator
besides their two columns. An unused column is counted and reported. A column that would change the meaning of the
answers (KTO's `label`, DPO's `rejected`, labels beside a plain text) is an error.

The content of the columns is gathered row by row, so that every unused column is known.
"""

import difflib
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lorastudy.data.conversations import (
    KNOWN_FIELDS,
    Conversation,
    ConversationError,
    Instruction,
    fields_of,
    from_messages,
    from_sharegpt,
    instruction_from,
)
from lorastudy.data.sources import Row
from lorastudy.data.values import is_filled, records_of, structure_of, switch, text_of
from lorastudy.errors import DataError
from lorastudy.suite.wording import shown

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
#: Optional parts beside a prompt and its answer, each with the usual names of its column.
_BESIDE: Mapping[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt", "system_message"),
    "history": ("history",),
    "context": ("context", "passage", "document", "article", "background"),
    "input": ("input",),
    "choices": ("choices", "options"),
    "separator": ("separator",),
    "tools": ("tools", "functions"),
}
_ALPACA_ANSWERS = ("output", "response", "completion", "answer")
#: The optional parts of each format.
_OPTIONAL: Mapping[FormatName, tuple[str, ...]] = {
    "alpaca": ("input", "context", "choices", "system", "history"),
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "prompt_completion": ("context", "input", "choices", "system", "history", "separator"),
    "text": (),
}
_NEEDED: Mapping[FormatName, tuple[str, ...]] = {
    "alpaca": ("instruction", "output"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
#: Columns that turn a whole row off.
_ROW_SWITCHES = ("weight", "train", "training", "trained")
#: Columns that call a row's answer good or bad, as in KTO.
_VERDICTS = ("label", "kto_tag")
#: Columns beside a plain text that are probably its answer.
_ANSWERS_TO_TEXT = (
    "label", "labels", "target", "class", "category", "sentiment", "intent", "emotion", "answer", "output", "response",
    "completion", "summary",
)  # fmt: skip
_STRUCTURES = frozenset(("messages", "conversations", "tools", "history", "choices"))
_PREPARE = "`lorastudy prepare --dataset FILE"

#: Columns whose entries are turns of a conversation. The fields of those turns are counted too.
_OF_TURNS = ("messages", "conversations")
#: How many different values of a column are counted, and the longest value that may be a label.
_MAX_VALUES, _MAX_VALUE = 200, 64
_MAX_COLUMNS, _MAX_NAME = 20, 40


@dataclass(kw_only=True)
class Column:
    """How many cells of a column are filled, and how often each value occurs, until there are too many for a label."""

    has_turns: bool = False
    """Whether the entries are conversations."""
    num_filled: int = 0
    values: Counter[str] | None = field(default_factory=Counter)

    def add(self, value: Any) -> None:
        """Count a filled cell."""
        self.num_filled += 1
        if self.values is None:
            return
        text = str(value) if isinstance(value, str | int | float) else ""
        if not text or len(text) > _MAX_VALUE:
            self.values = None
            return
        self.values[text] += 1
        if len(self.values) > _MAX_VALUES:
            self.values = None

    @property
    def repeats(self) -> bool:
        """Whether the values are few and repeat, as labels do."""
        return self.values is not None and 1 < len(self.values) <= self.num_filled / 2

    @property
    def num_off(self) -> int:
        """The number of cells that turn something off."""
        return sum(times for value, times in (self.values or {}).items() if switch(value) is False)

    @property
    def is_switch(self) -> bool:
        """Whether every filled cell turns something on or off."""
        return bool(self.values) and all(switch(value) is not None for value in self.values or ())


class Columns:
    """The columns of all added rows, in the order in which they first appeared."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.by_name: dict[str, Column] = {}
        self.turn_fields: Counter[str] = Counter()
        for row in rows:
            self.add(row.values)

    def add(self, values: Mapping[str, Any]) -> None:
        """Count the cells of one row."""
        for name, value in values.items():
            column = self.by_name.get(name)
            if column is None:
                column = self.by_name[name] = Column(has_turns=plain_name(name) in _OF_TURNS)
            if is_filled(value):
                column.add(value)
                if column.has_turns:
                    self._add_turns(name, value)

    def _add_turns(self, name: str, value: Any) -> None:
        turns = value if isinstance(value, list) else records_of(value)
        if isinstance(turns, list):
            fields = {key for turn in turns if isinstance(turn, dict) for key in fields_of(turn)}
            self.turn_fields.update(f"{name}[].{field}" for field in fields)

    @property
    def names(self) -> str:
        """The columns' names for a message."""
        return listed([shortened(name) for name in self.by_name])

    def by_plain_name(self) -> dict[str, str]:
        """The columns by their plain name.

        Raises:
            DataError: two names differ only in case or white space, so one would hide the other.
        """
        names: dict[str, str] = {}
        for column in self.by_name:
            other = names.setdefault(plain_name(column), column)
            if other != column:
                raise DataError(
                    f"columns {shown(other)} and {shown(column)} differ in case or white space alone; rename or remove one"
                )
        return names


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format, and the role of each column of the data set.

    `columns` maps canonical names to column names. `row_switches` are columns that turn rows off, with the number of
    rows each turns off. `unused` are columns that play no part, and `for_template` fields of turns that only a chat
    template can use, both with the number of rows that fill them. `repeating` are the unused columns whose values
    repeat, as labels do.
    """

    name: FormatName
    columns: Mapping[str, str]
    row_switches: Mapping[str, int] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
    for_template: Mapping[str, int] = field(default_factory=dict)
    repeating: tuple[str, ...] = ()
    separator: str = ""
    """The text between prompt and completion in every row."""

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each kind of columns, rows or fields that are not trained on."""
        notes = []
        for column, times in self.row_switches.items():
            if times:
                notes.append(f"{shown(column)} turns {counted(times)} off; they are left out")
        if self.unused:
            notes.append(f"columns that are not used: {_with_rows(self.unused)}")
        if self.name == "text" and self.repeating:
            notes.append(
                f"the values of {listed(self.repeating)} repeat, so they may be what should be learnt: "
                f"{_pair_command(self.columns['text'], self.repeating[0])} makes them the answer"
            )
        if self.for_template:
            fields = _with_rows(self.for_template)
            notes.append(f"fields that only a chat template can use, if it knows them: {fields}")
        return tuple(notes)

    def values(self, row: Row) -> dict[str, Any]:
        """The row's values under the canonical names, without additions of its container.

        Optional parts are included only if filled.

        Raises:
            ConversationError: a value has the wrong type for its part.
        """
        values = {}
        needed = _NEEDED[self.name]
        for part, column in self.columns.items():
            value = _part(part, row.values.get(column), column=column)
            if part in needed or is_filled(value) or (part == "separator" and value):
                values[part] = value
        return values | ({"separator": self.separator} if self.separator else {})

    def conversation(self, row: Row) -> Conversation:
        """The row as a conversation, for every format but plain text.

        Raises:
            ConversationError: the row does not have the format's shape.
        """
        return self.conversation_of(self.values(row))

    def conversation_of(self, values: Mapping[str, Any]) -> Conversation:
        """The conversation in a row's `values`; raises the same errors as `conversation`."""
        if self.name == "messages":
            return from_messages(values)
        if self.name == "sharegpt":
            return from_sharegpt(values)
        return self.instruction_of(values).conversation

    def instruction(self, row: Row) -> Instruction:
        """The row of an `alpaca` or `prompt_completion` data set.

        Raises:
            ConversationError: the row does not have the format's shape.
        """
        return self.instruction_of(self.values(row))

    def instruction_of(self, values: Mapping[str, Any]) -> Instruction:
        """The instruction in a row's `values`; raises the same errors as `instruction`."""
        assert self.name in ("alpaca", "prompt_completion")
        prompt, answer = _NEEDED[self.name]
        return instruction_from(values, prompt=prompt, answer=answer)

    @property
    def answer_part(self) -> str:
        """The trained part of a format without turns: the answer, or all of a plain text."""
        return _NEEDED[self.name][-1]

    def reads_as(self, other: "Format") -> bool:
        """Whether both formats read every row alike. Their counts of columns may differ."""
        ways = [(fmt.name, fmt.columns, fmt.row_switches.keys(), fmt.separator) for fmt in (self, other)]
        return ways[0] == ways[1]

    def is_trained(self, row: Row) -> bool:
        """Whether no column turns the row off."""
        if not self.row_switches:
            return True
        values = (row.values.get(column) for column in self.row_switches)
        return not any(is_filled(value) and switch(value) is False for value in values)


def _pair_command(prompt: str, completion: str) -> str:
    return f"{_PREPARE} --prompt-column {shlex.quote(prompt)} --completion-column {shlex.quote(completion)}`"


def _with_rows(numbers: Mapping[str, int]) -> str:
    """Names with the number of rows that fill them: `url (12 rows), id (12 rows)`."""
    return listed([f"{shortened(name)} ({counted(times)})" for name, times in numbers.items()])


def _part(part: str, value: Any, *, column: str) -> Any:
    if part in _STRUCTURES:
        return structure_of(value) if part in ("tools", "choices") else records_of(value)
    text = text_of(value)
    if text is None:
        raise ConversationError(f"{column!r} is {type(value).__name__}, not text")
    return text


def format_of(
    columns: Columns,
    *,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    text_column: str | None = None,
    separator: str = "",
) -> Format:
    """The format that the column names decide (in any case), or that flags decide by naming the columns.

    Raises:
        DataError: the columns fit no format, or more than one pair of names; a column is misspelt; or a column says
            that some answers must not be learnt.
    """
    names = columns.by_plain_name()
    is_named = bool(prompt_column or completion_column or text_column)
    if is_named:
        needed = _named(columns, prompt_column, completion=completion_column, text=text_column)
    else:
        _refuse_preferences(names)
        needed = _recognised(names, columns)
    fmt = _with_optional(needed, names)
    if not is_named:
        _refuse_near_misses(fmt, list(columns.by_name))
        _refuse_labelled_text(fmt, names, columns=columns)
    _refuse_verdicts(fmt, names, columns=columns)
    fmt = _with_separator(fmt, separator)
    fmt = _with_unused(_with_switches(fmt, names, columns=columns), columns)
    return replace(fmt, repeating=()) if is_named else fmt


def _recognised(names: Mapping[str, str], columns: Columns) -> Format:
    if "messages" in names:
        return Format(name="messages", columns={"messages": names["messages"]})
    if "conversations" in names:
        return Format(name="sharegpt", columns={"conversations": names["conversations"]})
    found = _alpaca(names) or _pair(names, columns)
    if found is None and "text" in names:
        found = Format(name="text", columns={"text": names["text"]})
    if found is None:
        raise DataError(_unknown(columns))
    return found


def _alpaca(names: Mapping[str, str]) -> Format | None:
    """Alpaca's own names; or `instruction`, another name for the answer, and an input.

    A `context` counts as the input, as in Dolly.
    """
    answers = [name for name in _ALPACA_ANSWERS if name in names]
    further = "input" if "input" in names else "context" if "context" in names else None
    if "instruction" not in names or not answers:
        return None
    if "output" not in answers and (further is None or len(answers) > 1):
        return None
    columns = {"instruction": "instruction", **({"input": further} if further else {}), "output": answers[0]}
    return Format(name="alpaca", columns={part: names[name] for part, name in columns.items()})


def _pair(names: Mapping[str, str], columns: Columns) -> Format | None:
    pairs = [(names[p], names[c]) for p, c in _PAIRS if p in names and c in names]
    if not pairs:
        return None
    if len(pairs) > 1:
        raise DataError(
            f"columns {columns.names}: more than one pair could be prompt and answer "
            f"({'; '.join(' -> '.join(pair) for pair in pairs)}). {_HOW_TO_NAME}"
        )
    return Format(name="prompt_completion", columns={"prompt": pairs[0][0], "completion": pairs[0][1]})


def _named(columns: Columns, prompt: str | None, *, completion: str | None, text: str | None) -> Format:
    if text and (prompt or completion):
        raise DataError(
            "--text-column makes plain text of one column; leave out --prompt-column and --completion-column"
        )
    if not text and (prompt is None or completion is None):
        raise DataError("--prompt-column and --completion-column go together; give both")
    if prompt and prompt == completion:
        raise DataError(
            f"--prompt-column and --completion-column both name {prompt!r}: every answer would stand in its own prompt; "
            "name two columns"
        )
    parts = {"text": text} if text else {"prompt": prompt, "completion": completion}
    named = {part: column for part, column in parts.items() if column is not None}
    for column in named.values():
        if column not in columns.by_name:
            raise DataError(f"no column {column!r}; the columns are {columns.names}")
    return Format(name="text" if text else "prompt_completion", columns=named)


def _with_optional(fmt: Format, names: Mapping[str, str]) -> Format:
    """The format with its optional columns. If two columns name the same part, the first counts."""
    found = dict(fmt.columns)
    for part in _OPTIONAL[fmt.name]:
        free = [names[name] for name in _BESIDE[part] if name in names and names[name] not in found.values()]
        if free and part not in found:
            found[part] = free[0]
    return replace(fmt, columns=found)


def _with_separator(fmt: Format, separator: str) -> Format:
    if separator and fmt.name != "prompt_completion":
        raise DataError(
            f"--separator stands between a prompt and its completion, and these rows are {fmt.name}; leave it out"
        )
    if separator and "separator" in fmt.columns:
        raise DataError(
            f"--separator: the column {shown(fmt.columns['separator'])} gives one for each row; keep one of the two"
        )
    return replace(fmt, separator=separator)


def _with_switches(fmt: Format, names: Mapping[str, str], *, columns: Columns) -> Format:
    switches = {}
    for name in _ROW_SWITCHES:
        column = columns.by_name.get(names.get(name, ""))
        if column is None or names[name] in fmt.columns.values():
            continue
        if column.num_off and not column.is_switch:
            raise DataError(
                f"column {shown(names[name])} turns {counted(column.num_off)} off and weighs others; rows are trained "
                "whole or not at all, so keep 0 and 1 in it, or remove it"
            )
        if column.is_switch:
            switches[names[name]] = column.num_off
    return replace(fmt, row_switches=switches)


def _with_unused(fmt: Format, columns: Columns) -> Format:
    used = {*fmt.columns.values(), *fmt.row_switches}
    unused = {
        name: column.num_filled
        for name, column in columns.by_name.items()
        if name not in used and column.num_filled
    }
    fields = {
        name: times
        for name, times in sorted(columns.turn_fields.items())
        if name.partition("[].")[0] in used and name.partition("[].")[2] not in KNOWN_FIELDS
    }
    repeating = tuple(name for name in unused if columns.by_name[name].repeats)
    return replace(fmt, unused=unused, for_template=fields, repeating=repeating)


def _refuse_preferences(names: Mapping[str, str]) -> None:
    """Refuse data sets with answers to avoid, as for DPO: here every answer is learnt."""
    rejected = next((column for name, column in names.items() if name.startswith("rejected")), None)
    if rejected is None:
        return
    prompt = next((names[name] for name, _ in _PAIRS if name in names), None)
    way_out = "keep the chosen answers in a file of their own, as `completion` or `messages`"
    if "chosen" in names and prompt:
        way_out = f"{_pair_command(prompt, names['chosen'])} trains the chosen ones"
    raise DataError(
        f"column {shown(rejected)} holds answers to be avoided, as preference training (DPO) takes them. This is "
        f"supervised training, which learns every answer: {way_out}"
    )


def _refuse_verdicts(fmt: Format, names: Mapping[str, str], *, columns: Columns) -> None:
    """Refuse data sets that call some answers bad, as for KTO."""
    if fmt.name == "text":
        return
    for name in _VERDICTS:
        column = columns.by_name.get(names.get(name, ""))
        if column is None or names[name] in fmt.columns.values() or not (column.is_switch and column.num_off):
            continue
        raise DataError(
            f"column {shown(names[name])} calls {column.num_off} of {column.num_filled} answers bad, as KTO takes them. "
            "This is supervised training, which learns every answer: keep the rows with good answers, and remove the column"
        )


def _refuse_labelled_text(fmt: Format, names: Mapping[str, str], *, columns: Columns) -> None:
    """Refuse a plain text whose labels would be lost."""
    label = next(
        (
            names[name]
            for name in _ANSWERS_TO_TEXT
            if name in names and columns.by_name[names[name]].num_filled
        ),
        None,
    )
    if fmt.name == "text" and label is not None:
        text = fmt.columns["text"]
        raise DataError(
            f"columns {columns.names}: as plain text the rows would be trained without their "
            f"{shown(label)}{_repetition(columns.by_name[label])}. {_pair_command(text, label)} makes it the answer; "
            f"{_PREPARE} --text-column {shlex.quote(text)}` trains the text alone"
        )


def _refuse_near_misses(fmt: Format, columns: Sequence[str]) -> None:
    """Refuse an optional part under a misspelt name: it would be missing from every prompt."""
    unused = [column for column in columns if column not in fmt.columns.values()]
    for part in _OPTIONAL[fmt.name]:
        near = difflib.get_close_matches(part, unused, n=1, cutoff=0.8) if part not in fmt.columns else []
        if near and part not in ("context", "separator"):  # `content` and `operator` are other words
            raise DataError(
                f"column {shown(near[0])} is not used by the format {fmt.name}; is it meant as {part!r}? "
                "Rename it so, or remove it"
            )


def _repetition(column: Column) -> str:
    if not column.repeats or column.values is None:
        return ""
    return f", whose values repeat ({len(column.values)} of them in {column.num_filled} rows)"


_HOW_TO_NAME = f"Say which columns to use: {_PREPARE} --prompt-column NAME --completion-column NAME`"


def _unknown(columns: Columns) -> str:
    labels = [name for name, column in columns.by_name.items() if column.repeats]
    label = f" The values of {shown(labels[0])} repeat, so it may be the answer." if labels else ""
    return (
        f"columns {columns.names}: not a known format. Known: alpaca (instruction, input, output), "
        "messages (messages), sharegpt (conversations), prompt_completion "
        f"({'; '.join(' and '.join(pair) for pair in _PAIRS[:5])}; ...), text (text).{label} {_HOW_TO_NAME}"
    )


def plain_name(column: str) -> str:
    """The name without differences that spreadsheets and people make: case, and white space around and inside."""
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def listed(names: Sequence[str]) -> str:
    """The first names, for a message."""
    more = f" and {len(names) - _MAX_COLUMNS} more" if len(names) > _MAX_COLUMNS else ""
    return ", ".join(names[:_MAX_COLUMNS]) + more or "(none)"


def shortened(name: str) -> str:
    """A column's name, shortened to fit into a message."""
    return name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..."


def counted(num_rows: int) -> str:
    """`1 row`, `12 rows`."""
    return f"{num_rows} row" if num_rows == 1 else f"{num_rows} rows"
