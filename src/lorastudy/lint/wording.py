"""How findings name the arms they are about, and the rows that they were found on."""

from collections.abc import Sequence

from lorastudy.protocol.records import DataSummary

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


def sample_in_words(data: DataSummary) -> str:
    """On which part of the rows near copies were counted; empty where all were compared with all."""
    compared, compared_with, known = data.num_compared_rows, data.num_compared_with, data.num_known_rows
    if compared is None or compared_with is None or known is None:
        return ""
    num_texts = data.num_usable_texts + data.num_refused_rows
    if compared >= num_texts and compared_with >= known:
        return ""
    things = "rows" if data.num_usable_texts == data.num_rows else "texts"
    these = f"a sample of {compared:,} of {num_texts:,} {things} was compared"
    if compared >= num_texts:
        these = f"all {num_texts:,} {things} were compared"
    others = f"a sample of {compared_with:,} of {known:,}" if compared_with < known else f"all {known:,}"
    whose = "trained on or among the rows that choose" if data.split == "test" else "trained on"
    return f"{these} with {others} that are {whose}"
