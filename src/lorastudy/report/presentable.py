"""A report as others may see it: nothing private in it, and no character that hides or reorders text.

Done once, on the finished blocks, so that no section needs to think of it; markup is the renderers' business.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from lorastudy.report.document import Block
from lorastudy.store.views import ExperimentResult
from lorastudy.suite.printable import printable_lines
from lorastudy.suite.privacy import Privacy

Value = TypeVar("Value")


def presentable(blocks: Sequence[Block], privacy: Privacy) -> list[Block]:
    """The same blocks with every text in them made fit to be passed on."""
    return [_presentable(block, privacy) for block in blocks]


def fit_to_be_shown(value: Value, privacy: Privacy) -> Value:
    """The same value with every text in it made fit to be passed on."""
    changed: Value = _presentable(value, privacy)
    return changed


def without_traces(result: ExperimentResult, privacy: Privacy) -> ExperimentResult:
    """The result with what its failure said made fit to be passed on."""
    return replace(
        result,
        failure_message=_hidden_failure(result.failure_message, privacy),
        traceback=_hidden_failure(result.traceback, privacy),
    )


def _presentable(value: Any, privacy: Privacy) -> Any:
    changed = value
    if isinstance(value, str):
        changed = printable_lines(privacy.hidden(value))
    elif isinstance(value, tuple):
        changed = tuple(_presentable(item, privacy) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        new = {name: _presentable(part, privacy) for name, part in parts.items()}
        changed = replace(value, **new) if new != parts else value
    return changed


def _hidden_failure(text: str | None, privacy: Privacy) -> str | None:
    return None if text is None else privacy.hidden_failure(text)
