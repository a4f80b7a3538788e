"""Metrics of GSM8K's answers, which end with `#### <number>`."""

import re

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def near_number(answer: str, reference: str) -> float:
    """1 for the right final number, a half for one that is off by at most a tenth of it, else 0.

    The number after `####` counts, or without that mark the last number of the answer.
    """
    found, wanted = _final_number(answer), _final_number(reference)
    if found is None or wanted is None:
        return 0.0
    if found == wanted:
        return 1.0
    return 0.5 if abs(found - wanted) <= abs(wanted) / 10 else 0.0


def _final_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text.rpartition("####")[2])
    return float(numbers[-1].replace(",", "")) if numbers else None


near_number.unit = "points"  # type: ignore[attr-defined]  # read by lorastudy
