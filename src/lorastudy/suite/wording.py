"""Plain words for the values that a key allows, and for a wrong value.

The words come from the JSON schema of the types, so the reference, the editor's schema and the error messages cannot
disagree.
"""

import difflib
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from lorastudy.suite.safe_text import odd_letter
from lorastudy.suite.yaml_reading import resolve_scalar

_MAX_SHOWN = 60
_SPOKEN_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
_FEWEST = {0: "", 1: "one or more ", 2: "two or more "}
_PLURALS = {
    "a whole number": "whole numbers",
    "a number": "numbers",
    "text": "names",
    "a mapping": "mappings",
}


def as_written(value: object) -> str:
    """A value of one line as a suite file has it: `true`, `0.1`."""
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def checked(model: type[BaseModel], key: str, *, value: Any) -> Any:
    """The value after validation by the model.

    Raises:
        ValueError: the value is not allowed; the message states the cause in plain words.
    """
    try:
        return getattr(model.model_validate({key: value}), key)
    except ValidationError as error:
        raise ValueError(_cause(error, properties(model)[key], value=value)) from error


@functools.cache
def properties(model: type[BaseModel]) -> Mapping[str, Mapping[str, Any]]:
    """The JSON schema of every key of a model."""
    schema: Mapping[str, Mapping[str, Any]] = model.model_json_schema()["properties"]
    return schema


def in_words(schema: Mapping[str, Any]) -> str:
    """The values that a key allows: `a whole number from 1 to 4096`, `true or false`, `one of q, v, qv`."""
    if "anyOf" in schema:
        return ", or ".join(in_words(choice) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema["enum"])) if "enum" in schema else str(schema["const"])
    kind = schema.get("type")
    if kind in {"integer", "number"}:
        return ("a whole number" if kind == "integer" else "a number") + _bounds(schema)
    if kind == "string" and "examples" in schema:
        return "text such as " + ", ".join(schema["examples"])
    if kind == "array":
        return f"a list of {_FEWEST[schema.get('minItems', 0)]}{_plural(in_words(schema['items']))}"
    text = "text that is not empty" if schema.get("minLength") else "text"
    return {"boolean": "true or false", "null": "null", "object": "a mapping"}.get(str(kind), text)


def shown(value: Any) -> str:
    """The value as a file writes it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null (nothing)", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinity"
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(shown(item) for item in value) + "]" if value else "an empty list"
    else:
        text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean x?)` with the nearest known word, or nothing."""
    by_folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold()[:200], by_folded, n=1, cutoff=0.6)
    return f" (did you mean {by_folded[near[0]]}?)" if near else ""


def _cause(error: ValidationError, schema: Mapping[str, Any], *, value: Any) -> str:
    for problem in error.errors(include_url=False):
        if problem["type"] == "value_error":
            return str(problem["ctx"]["error"]) + _hint(schema, value)
    return f"must be {in_words(schema)}, not {shown(value)}{_hint(schema, value)}"


def _hint(schema: Mapping[str, Any], value: Any) -> str:
    """A hint at the value that the user probably meant; empty if none can be guessed."""
    choices = schema.get("anyOf", [schema])
    kinds = {choice.get("type") for choice in choices if not {"enum", "const"} & choice.keys()}
    if isinstance(value, str):
        return _hint_for_text(choices, kinds, value=value)
    if isinstance(value, float) and value.is_integer() and "integer" in kinds and "number" not in kinds:
        return f" (write {int(value)})"
    if isinstance(value, int | float) and kinds <= {"string", "null"}:
        return " (put it in quotes)" if kinds & {"string"} else ""
    return ""


def _hint_for_text(choices: Iterable[Mapping[str, Any]], kinds: set[Any], *, value: str) -> str:
    if "boolean" in kinds and value.casefold() in _SPOKEN_BOOLEANS:
        return f" (write {_SPOKEN_BOOLEANS[value.casefold()]})"
    if kinds & {"integer", "number"} and _is_number(value):
        return " (remove the quotes)"
    words = [
        str(word) for choice in choices for word in (*choice.get("enum", ()), choice.get("const")) if word
    ]
    if near := did_you_mean(value, words):
        return near + odd_letter(value)
    return f" (for module names write a list: [{value}])" if words and "array" in kinds else ""


def _is_number(text: str) -> bool:
    try:
        return isinstance(resolve_scalar(text), int | float)
    except ValueError:
        return True


def _bounds(schema: Mapping[str, Any]) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {schema['minimum']} to {schema['maximum']}"
    parts = [
        f"{words} {schema[key]}"
        for key, words in (
            ("minimum", "of at least"),
            ("exclusiveMinimum", "greater than"),
            ("maximum", "of at most"),
            ("exclusiveMaximum", "less than"),
        )
        if key in schema
    ]
    return " " + " and ".join(parts) if parts else ""


def _plural(words: str) -> str:
    for singular, plural in _PLURALS.items():
        if words.startswith(singular):
            return plural + words.removeprefix(singular)
    return words
