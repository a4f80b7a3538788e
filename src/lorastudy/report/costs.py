"""How costs are described: what memory means for each meter, and how an arm's own cost was measured.

One place, since a number that is explained twice is soon explained in two ways.
"""

from collections.abc import Sequence

from lorastudy.protocol.records import STEP_TIME_FLOOR
from lorastudy.report.numbers import percent
from lorastudy.stats.summary import ArmSummary

#: Follows a pair of times.
NOT_TOLD_APART = f"times that differ by at most {percent(STEP_TIME_FLOOR, decimals=0)} are not told apart"

_DIFFERED = "two measurements of the arm, or of most arms of its pack, differed"
_TOO_FEW = "the time for timing ended after too few steps"

#: By the `memory_kind` of a profile: of an arm alone on either device, and of a whole pack on a CPU.
MEMORY_KINDS = {
    "cuda_allocated": "the most that the CUDA allocator held",
    "cpu_tensors": "the peak of live tensor bytes on the CPU",
    "cpu_resident": (
        "the greatest resident size of the worker process: earlier packs, profiling and libraries included"
    ),
}


def how_measured(summaries: Sequence[ArmSummary]) -> str:
    """What an arm costs alone, how that was found, and which times noise hid."""
    start = (
        "Memory, step time and tokens/s are those of the arm training alone, measured before its pack trains: memory at the "
        "step with the most tokens, time"
    )
    if any(summary.costs.step_seconds and not summary.costs.step_noise for summary in summaries):
        return f"{start} over a few steps. The noise of the times was not measured."
    return (
        f"{start} at the step with the median number of tokens. Arms take turns, each as if it were two, until the two medians "
        f"of each arm are within {percent(STEP_TIME_FLOOR, decimals=0)}.{unknown_times(summaries)}"
    )


def unknown_times(summaries: Sequence[ArmSummary]) -> str:
    """Which arms' times are unknown, and why; empty where all are known."""
    unknown = [
        (summary.arm.name, noise)
        for summary in summaries
        if (noise := summary.costs.step_noise) and not summary.costs.step_seconds
    ]
    differ = [
        f"{arm}: {percent(noise.apart, decimals=0)} after {noise.num_steps} steps"
        for arm, noise in unknown
        if noise.apart > STEP_TIME_FLOOR
    ]
    few = [f"{arm}: {noise.num_steps} steps" for arm, noise in unknown if noise.apart <= STEP_TIME_FLOOR]
    reasons = ((_DIFFERED, differ), (_TOO_FEW, few))
    return "".join(
        f" Step time unknown, since {reason} ({'; '.join(arms)})." for reason, arms in reasons if arms
    )
