"""How numbers are written, and how costs are described.

Numbers show as many digits as their spread supports, with their unit; an absent one is a dash. What memory means for each
meter, and how the cost of an arm alone was measured, is said here once.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from lorastudy.protocol.records import STEP_TIME_FLOOR
from lorastudy.stats.summary import ArmSummary, Spread, StepNoise

ABSENT = "\N{EN DASH}"
#: A sentence lists at most this many things; of more, the first few and the number of the rest. Tables list all.
MOST_LISTED = 24
NUM_LISTED_OF_MANY = 8
_SIZES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("bytes", 1))
_DURATIONS = (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3))


def decimals_for(uncertainties: Iterable[float | None], *, default: int = 4) -> int:
    """Decimals that show the median uncertainty with two significant digits; 1 to 5."""
    known = [value for value in uncertainties if value]
    if not known:
        return default
    return min(5, max(1, 1 - math.floor(math.log10(statistics.median(known)))))


def decimals_that_differ(values: Iterable[float], *, least: int, most: int) -> int:
    """The fewest decimals with which values look different that are different with `most`."""
    exact = {round(value, most) for value in values}
    return next(
        decimals
        for decimals in range(least, most + 1)
        if len({round(value, decimals) for value in exact}) == len(exact)
    )


def number(value: float | None, decimals: int) -> str:
    """Fixed decimals with a true minus sign; a rounded zero has no sign."""
    if value is None:
        return ABSENT
    text = f"{value:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "\N{MINUS SIGN}")


def signed(value: float, decimals: int) -> str:
    """As `number`, with a plus sign above zero."""
    text = number(value, decimals)
    return text if value <= 0 or not any(digit in text for digit in "123456789") else f"+{text}"


def mean_sd(spread: Spread | None, decimals: int) -> str:
    """`mean ± sd`, the mean alone for one value."""
    if spread is None:
        return ABSENT
    mean = number(spread.mean, decimals)
    return mean if spread.sd is None else f"{mean} ± {number(spread.sd, decimals)}"


def interval(bounds: tuple[float, float] | None, decimals: int) -> str:
    """`[low, high]`."""
    if bounds is None:
        return ABSENT
    return f"[{number(bounds[0], decimals)}, {number(bounds[1], decimals)}]"


def p_value(p: float | None) -> str:
    """Two significant digits, never 0."""
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return ABSENT if value is None else f"{value:,.0f}"


def percent(share: float, *, decimals: int = 1) -> str:
    """A share in percent."""
    return f"{number(100 * share, decimals)} %"


def percent_more(value: float, base: float) -> str:
    """How much more `value` is than `base`, in percent with its sign."""
    return f"{signed(100 * (value / base - 1), 1)} %"


def size_unit(values: Iterable[float]) -> tuple[str, int]:
    """The unit in which the largest value is at least 1, and its bytes; MiB for none."""
    largest = max(map(abs, values), default=2**20)
    return next(((name, scale) for name, scale in _SIZES if largest >= scale), _SIZES[-1])


def size(value: float | None) -> str:
    """Bytes in a unit that fits, three significant digits or so."""
    if value is None:
        return ABSENT
    unit, scale = size_unit([value])
    return f"{number(value / scale, 0 if scale == 1 else decimals_of_size(value / scale))} {unit}"


def decimals_of_size(value: float) -> int:
    """Decimals with which the value shows three significant digits; 0 to 3."""
    return 2 if value == 0 else min(3, max(0, 2 - math.floor(math.log10(abs(value)))))


def duration_unit(values: Iterable[float]) -> tuple[str, float]:
    """The unit in which the largest value is at least 1, and its seconds; seconds for none."""
    largest = max(values, default=1.0)
    return next(((name, scale) for name, scale in _DURATIONS if largest >= scale), _DURATIONS[-1])


def duration(value: float | None) -> str:
    """Seconds in a unit that fits, three significant digits or so."""
    if value is None:
        return ABSENT
    unit, scale = duration_unit([value])
    return f"{number(value / scale, decimals_of_size(value / scale))} {unit}"


def plural(number: int, noun: str) -> str:
    """`1 pack`, `2 packs`."""
    return f"{count(number)} {noun}{'s' * (number != 1)}"


def listing(items: Iterable[str], *, every: bool = False) -> str:
    """`a`, `a and b`, `a, b and c`; of a long list only the first few, unless `every` is set."""
    listed = list(items)
    if len(listed) > MOST_LISTED and not every:
        listed[NUM_LISTED_OF_MANY:] = [f"{len(listed) - NUM_LISTED_OF_MANY} more"]
    *head, last = listed
    return f"{', '.join(head)} and {last}" if head else last


def names(items: Iterable[str], *, every: bool = False) -> str:
    """As `listing`; in a list, a name with a comma stands in quotation marks."""
    named = list(items)
    is_list = len(named) > 1
    return listing((f"“{name}”" if is_list and "," in name else name for name in named), every=every)


#: Of more arms than this with an unknown time, one stands for all.
_MOST_TIMES = 3
#: A note after a pair of times.
EQUAL_TIMES = f"times that differ by at most {percent(STEP_TIME_FLOOR, decimals=0)} count as equal"
_DIFFERED = "two measurements of the arm, or of most arms of its pack, differed"
_TOO_FEW = "the time for timing ended after too few steps"
#: By the `memory_kind` of a profile: an arm alone on either device, and a whole pack on a CPU.
MEMORY_KINDS = {
    "cuda_allocated": "the most that the CUDA allocator held",
    "cpu_tensors": "the peak of live tensor bytes on the CPU",
    "cpu_resident": (
        "the greatest resident size of the worker process: earlier packs, profiling and libraries included"
    ),
}


def how_measured(summaries: Sequence[ArmSummary]) -> str:
    """How the costs of an arm alone were measured, and which times noise hid."""
    start = (
        "Memory, step time and tokens/s are those of the arm training alone, measured before its pack trains: memory at the "
        "step with the most tokens, time"
    )
    if any(summary.costs.step_seconds and not summary.costs.step_noise for summary in summaries):
        return f"{start} over a few steps. The noise of the times was not measured."
    return (
        f"{start} at the step with the median number of tokens. Arms take turns, and each is timed as if it were two arms, until "
        f"its two medians are within {percent(STEP_TIME_FLOOR, decimals=0)}.{unknown_times(summaries)}"
    )


def unknown_times(summaries: Sequence[ArmSummary]) -> str:
    """Which arms' step times are unknown, and why; empty if all are known."""
    unknown = [
        (summary.arm.name, noise)
        for summary in summaries
        if (noise := summary.costs.step_noise) and not summary.costs.step_seconds
    ]
    differ = [(arm, noise) for arm, noise in unknown if noise.apart > STEP_TIME_FLOOR]
    few = [(arm, noise) for arm, noise in unknown if noise.apart <= STEP_TIME_FLOOR]
    text = ""
    if differ:
        text += f" Step time unknown, since {_DIFFERED} ({_of_arms(differ, _how_far_apart)})."
    if few:
        text += f" Step time unknown, since {_TOO_FEW} ({_of_arms(few, _how_many_steps)})."
    return text


def _of_arms(unknown: Sequence[tuple[str, StepNoise]], words: Callable[[StepNoise], str]) -> str:
    """`r=4: 23.0 % apart`; of many arms that with the fewest steps or the most noise stands for all."""
    if len(unknown) <= _MOST_TIMES:
        return "; ".join(f"{arm}: {words(noise)}" for arm, noise in unknown)
    arm, worst = max(unknown, key=lambda pair: (pair[1].apart, -pair[1].num_steps))
    return f"{len(unknown)} arms, such as {arm}: {words(worst)}"


def _how_far_apart(noise: StepNoise) -> str:
    return f"{percent(noise.apart)} apart"


def _how_many_steps(noise: StepNoise) -> str:
    return f"{plural(noise.num_steps, 'timed step')} in {plural(noise.num_packs, 'pack')}"
