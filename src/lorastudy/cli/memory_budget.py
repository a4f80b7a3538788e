"""The memory that a recommendation is to fit: a device's as the user says, else this machine's own."""

from dataclasses import dataclass

from lorastudy.cli.estimate import memory_size
from lorastudy.cli.estimating import margin_words
from lorastudy.errors import StudyError
from lorastudy.planning.estimate import MARGIN, Machine, cpu_memory_for, physical_memory, within_margin
from lorastudy.report.numbers import size


@dataclass(frozen=True, kw_only=True)
class Room:
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


def room_of(vram: str) -> Room:
    """A device with so much memory.

    Raises:
        StudyError: it is no size.
    """
    return Room(budget_bytes=within_margin(memory_size(vram)), words=vram)


def room_here(machine: Machine) -> Room:
    """For one training on this machine.

    Raises:
        StudyError: the system does not say how much memory it has.
    """
    budget, memory = machine.budget_bytes(num_workers=1), machine.memory_bytes or physical_memory()
    if budget is None or memory is None:
        raise StudyError("--vram: this system does not say how much memory it has; give a size such as 8GB")
    return Room(
        budget_bytes=budget, words=f"this machine's {size(memory)}", is_of_cpu=machine.device != "cuda"
    )
