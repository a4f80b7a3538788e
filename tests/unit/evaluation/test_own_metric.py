"""A function of the user's own: what it is called with, and what becomes of a row that it fails for."""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from lorastudy.evaluation.own_metric import OwnMetric, RowFailedError
from lorastudy.suite.metrics import parameters_of


def called(function: Callable[..., Any], *, max_seconds: float = 10.0) -> float:
    metric = OwnMetric(function=function, parameters=parameters_of(function), max_seconds=max_seconds)
    return metric(prompt="p", answer="a", reference="r", row={"question": "q"})


def test_it_gets_what_its_parameters_ask_for() -> None:
    seen: list[Any] = []

    def everything(prompt: str, answer: str, reference: str, row: dict[str, Any]) -> int:
        seen.extend([prompt, answer, reference, row])
        return 1

    def some(row: dict[str, Any], answer: str, *, weight: float = 0.5) -> bool:
        seen.extend([row["question"], answer])
        return weight == 0.5

    assert called(everything) == 1.0
    assert called(some) == 1.0
    assert seen == ["p", "a", "r", {"question": "q"}, "q", "a"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda answer: 1 / len(answer[1:]), "ZeroDivisionError: division by zero"),
        (lambda answer: int(answer + "!"), "ValueError: invalid literal"),
        (lambda answer: None, "returned None, which is not a number"),
        (lambda answer: "0.5", "returned '0.5', which is not a number"),
        (lambda answer: math.nan, "returned nan, which is not a finite number"),
        (lambda answer: sys.exit(len(answer)), "SystemExit: 1"),
    ],
)
def test_a_row_fails_with_its_message(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(RowFailedError, match=message):
        called(function)


def test_a_slow_row_ends_at_the_limit_whatever_it_catches() -> None:
    def slow(answer: str) -> float:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(5)

    before, began = signal.getsignal(signal.SIGALRM), time.monotonic()
    with pytest.raises(RowFailedError, match=r"took longer than 0\.1 s"):
        called(slow, max_seconds=0.1)
    assert time.monotonic() - began < 3
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_that_rings_after_the_row_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before, real, late = signal.getsignal(signal.SIGALRM), signal.setitimer, []

    def rings_first(which: int, seconds: float, interval: float = 0.0) -> None:
        if seconds == 0:
            late.append(signal.getsignal(signal.SIGALRM))
            signal.raise_signal(signal.SIGALRM)
        real(which, seconds, interval)

    def one(answer: str) -> int:
        return len(answer)

    monkeypatch.setattr(signal, "setitimer", rings_first)
    assert called(one) == 1.0
    assert len(late) == 1
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
