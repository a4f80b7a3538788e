"""What each pack cost as a whole: experiments that trained together in one process."""

from lorastudy.analysis.study import Study
from lorastudy.records import PackProfile
from lorastudy.report.document import Block, Cell, Column, Heading, Paragraph, Table
from lorastudy.report.numbers import count, duration_unit, number, size_unit

_MEMORY_KINDS = {
    "cuda_allocated": "the most that the device's allocator handed out",
    "cpu_resident": "the process's greatest resident size, libraries included",
}


def pack_blocks(study: Study, *, level: int) -> list[Block]:
    """One row for each pack; nothing where no pack was measured."""
    packs = {
        (result.pack_id, result.attempt): result.pack_profile
        for result in study.completed
        if result.pack_profile is not None
    }
    if not packs:
        return []
    profiles = list(packs.values())
    kinds = sorted({_MEMORY_KINDS[profile.memory_kind] for profile in profiles})
    text = (
        "The arms of a pack trained together on one base model. Tokens are real tokens, summed over the arms; "
        f"memory is {' or '.join(kinds)}."
    )
    return [Heading(level=level, text="Packs"), Paragraph((text,)), _table(profiles)]


def _table(profiles: list[PackProfile]) -> Table:
    memory_unit, memory_scale = size_unit(p.peak_memory_bytes for p in profiles if p.peak_memory_bytes)
    step_unit, step_scale = duration_unit(p.median_step_seconds for p in profiles if p.median_step_seconds)
    titles = (
        "Pack", "Experiments", "Engine", f"Peak memory ({memory_unit})", f"Step, median ({step_unit})",
        "Tokens/s", "Load and profile (s)", "Training (s)", "Evaluation (s)",
    )  # fmt: skip
    rows = tuple(
        (
            Cell(str(position), position),
            Cell(str(profile.num_arms), profile.num_arms),
            Cell(profile.engine),
            _scaled(profile.peak_memory_bytes, memory_scale),
            _scaled(profile.median_step_seconds, step_scale),
            Cell(count(profile.tokens_per_second), profile.tokens_per_second),
            *(_scaled(s, 1.0) for s in (profile.load_seconds, profile.train_seconds, profile.eval_seconds)),
        )
        for position, profile in enumerate(profiles, start=1)
    )
    columns = tuple(Column(title, numeric=title != "Engine") for title in titles)
    return Table(columns=columns, rows=rows)


def _scaled(value: float | None, scale: float) -> Cell:
    return Cell(number(None if value is None else value / scale, 1), value)
