"""The memory that a recommendation is to fit: a device's as the user says, else this machine's own."""

import re
from dataclasses import dataclass

from lorastudy.errors import StudyError
from lorastudy.planning.estimate import MARGIN, Machine, cpu_memory_for, physical_memory, within_margin
from lorastudy.report.numbers import percent, size

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """A memory, and what of it tensors may take at their peak."""

    budget_bytes: int
    words: str
    is_of_cpu: bool = False

    def left_free(self) -> str:
        """Why the budget is less than the memory."""
        if self.is_of_cpu:
            return (
                f"{margin_words()}, and half of the rest for what a worker on a CPU holds besides its tensors"
            )
        return f"{margin_words()} for the device's context and the prediction's error"

    def needed(self, peak_bytes: float) -> str:
        """The memory in which a peak would fit, in words."""
        return size(cpu_memory_for(peak_bytes) if self.is_of_cpu else peak_bytes / (1 - MARGIN))


def budget_of(vram: str) -> MemoryBudget:
    """A device with so much memory.

    Raises:
        StudyError: it is no size.
    """
    return MemoryBudget(budget_bytes=within_margin(memory_size(vram)), words=vram)


def budget_here(machine: Machine) -> MemoryBudget:
    """For one training on this machine.

    Raises:
        StudyError: the system does not say how much memory it has.
    """
    budget, memory = machine.budget_bytes(num_workers=1), machine.memory_bytes or physical_memory()
    if budget is None or memory is None:
        raise StudyError("--vram: this system does not say how much memory it has; give a size such as 8GB")
    return MemoryBudget(
        budget_bytes=budget, words=f"this machine's {size(memory)}", is_of_cpu=machine.device != "cuda"
    )


def memory_size(text: str) -> int:
    """Bytes of `8GB`, `80 GiB` or `512MB`. GB is read as GiB, as the makers of graphics cards write it.

    Raises:
        StudyError: it is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or float(match["number"]) <= 0:
        raise StudyError(f"--vram: {text}: give a size such as 8GB, 24GiB or 512MB")
    return int(float(match["number"]) * 1024 ** " KMGT".index(match["unit"].upper() or " "))


def margin_words() -> str:
    """The margin as text."""
    return f"{percent(MARGIN, decimals=0)} of the memory is left free"
