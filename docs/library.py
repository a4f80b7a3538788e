"""The reference of the Python entry, made of signatures and docstrings."""

import inspect
from typing import Any

import lorastudy as ls

#: In the order in which they are used.
FUNCTIONS = ("load_suite", "plan", "run", "analyse", "write_report", "tune")
RESULT_METHODS = ("frame", "items")


def library_reference() -> str:
    """Every public name with its signature and its docstring."""
    parts = [_entry(f"lorastudy.{name}", getattr(ls, name)) for name in FUNCTIONS]
    parts += [_entry(f"StudyResult.{name}", getattr(ls.StudyResult, name)) for name in RESULT_METHODS]
    parts.append(f"### `lorastudy.Store`\n\n{_doc(ls.Store)}")
    return "\n\n".join(parts)


def _entry(name: str, function: Any) -> str:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    shown = []
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        prefix = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        shown.append(f"{prefix}{parameter.name}{default}")
    return f"### `{name}({', '.join(shown)})`\n\n{_doc(function)}"


def _doc(documented: Any) -> str:
    """The docstring; its indented parts become blocks of code, its errors a list."""
    text = inspect.getdoc(documented) or ""
    lines, is_code, in_raises = [], False, False
    for line in text.splitlines():
        if line == "Raises:":
            in_raises = True
            lines.append("Raises:\n")
            continue
        if in_raises and line.startswith("    ") and not line.startswith("     "):
            error, _, when = line.strip().partition(": ")
            lines.append(f"- `{error}`: {when}")
            continue
        indented = line.startswith("    ") and not in_raises
        if indented != is_code and (line or is_code):
            lines.append("```python" if indented else "```\n")
            is_code = indented
        lines.append(line[4:] if is_code else line)
    return "\n".join([*lines, "```"] if is_code else lines).replace("```\n\n\n", "```\n\n")
