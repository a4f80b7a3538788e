"""A metric of the user's own: a function in a file, called for each row within a time limit.

A row fails if the function raises, takes too long, or returns anything but a finite number. Then this row has no number
and its message is kept; the other rows and the study go on.

The limit is an alarm in this process. It ends Python code and regular expressions. It cannot end a library's code that
does not return to Python.
"""

import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorastudy.errors import first_line
from lorastudy.suite.metrics import MetricDefinition, load_function, parameters_of

#: The most characters of a message that are kept.
_MAX_CHARACTERS = 300


class RowFailedError(Exception):
    """The metric gave no number for a row. The message says why."""


class _TooLong(BaseException):
    """The function took longer than its limit. Not an `Exception`, so that the user's code does not catch it."""


@dataclass(frozen=True, kw_only=True)
class OwnMetric:
    """The user's function with the parameters that it asks for."""

    function: Callable[..., Any]
    parameters: tuple[str, ...]
    max_seconds: float

    @classmethod
    def load(cls, definition: MetricDefinition) -> "OwnMetric":
        """The function of a definition. Its file is run.

        Raises:
            StudyError: as `load_function`.
        """
        function = load_function(definition)
        return cls(function=function, parameters=parameters_of(function), max_seconds=definition.max_seconds)

    def __call__(self, *, prompt: str, answer: str, reference: str, row: Mapping[str, Any]) -> float:
        """The number of one row.

        Raises:
            RowFailedError: there is none.
        """
        values = {"prompt": prompt, "answer": answer, "reference": reference, "row": dict(row)}
        try:
            number = _within(
                self.max_seconds,
                lambda: _number(self.function(**{name: values[name] for name in self.parameters})),
            )
        except RowFailedError:
            raise
        except _TooLong as error:
            raise RowFailedError(f"took longer than {self.max_seconds:g} s") from error
        except (Exception, SystemExit) as error:
            message = f"{type(error).__name__}: {first_line(error)}"
            raise RowFailedError(message[:_MAX_CHARACTERS]) from error
        if not math.isfinite(number):
            raise RowFailedError(f"returned {number}, which is not a finite number")
        return number


def _number(value: Any) -> float:
    """The value as a float. A text is no number, even if it has digits.

    Raises:
        RowFailedError: it is not a number.
    """
    if not hasattr(value, "__float__"):
        raise RowFailedError(f"returned {value!r:.60}, which is not a number")
    return float(value)


def _within(seconds: float, call: Callable[[], float]) -> float:
    """What the call returns. Raises `_TooLong` in it after so many seconds. Only the main thread gets alarms.

    An alarm may ring when the call is over and the timer is not yet put away. It does nothing then: a raise there would
    leave the timer running, and its next alarm would end the worker. So the flag is set by the first step after the call.
    """
    is_over = False

    def ring(*_: object) -> None:
        if not is_over:
            raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(
            signal.ITIMER_REAL, seconds, 1.0
        )  # again each second, if something swallowed the first
        return call()
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
