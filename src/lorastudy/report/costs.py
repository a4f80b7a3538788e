"""How costs are described: what memory means for each meter, and how an arm's own cost was measured.

One place, since a number that is explained twice is soon explained in two ways.
"""

#: Steps that time an arm alone, after a warm-up; the worker's own number, which the control side cannot import.
NUM_TIMED_STEPS = 3

#: Follows a pair of medians, in place of a percentage that would look like an effect.
WITHOUT_NOISE_FLOOR = f"measured over {NUM_TIMED_STEPS} steps each; no noise floor was measured"

#: Follows whatever is said of an arm training alone.
MEASURED_ONCE = (
    "measured once per arm and not per seed: memory at the step with the most tokens, time as the median of "
    f"{NUM_TIMED_STEPS} steps"
)

#: By the `memory_kind` of a profile: of an arm alone on either device, and of a whole pack on a CPU.
MEMORY_KINDS = {
    "cuda_allocated": "the most that the CUDA allocator held",
    "cpu_tensors": "the peak of live tensor bytes on the CPU",
    "cpu_resident": (
        "the greatest resident size of the worker process: earlier packs, profiling and libraries included"
    ),
}
