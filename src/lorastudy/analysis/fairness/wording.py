"""How findings name the arms they are about."""

from collections.abc import Sequence

#: With more arms than this only the first few are named, and how many there are is said.
MAX_NAMES = 6
NUM_NAMED_OF_MANY = 3


def arms_in_words(arms: Sequence[str], *, num_arms: int) -> str:
    """`r4, r8`; `all 5 arms`; `12 of 30 arms: r4, r8, ...` where a list would be too long to read."""
    if len(arms) == num_arms:
        return f"all {num_arms} arms"
    shown = [f"“{name}”" if " " in name or "," in name else name for name in arms]
    if len(arms) > MAX_NAMES:
        return f"{len(arms)} of {num_arms} arms: {', '.join(shown[:NUM_NAMED_OF_MANY])}, ..."
    return ", ".join(shown)
